package agent

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// serve accepts connections until one asks for a shutdown. failed is why the pod could not be set up.
func (a *Agent) serve(socket int, failed error) error {
	if err := unix.SetNonblock(socket, true); err != nil {
		return err
	}
	unix.CloseOnExec(socket)
	listener := os.NewFile(uintptr(socket), "listener")
	defer listener.Close()
	raw, err := listener.SyscallConn()
	if err != nil {
		return err
	}
	var once sync.Once
	stop := func() { once.Do(func() { a.shutdown(); listener.Close() }) }
	for {
		fd := -1
		var failure error
		err := raw.Read(func(l uintptr) bool {
			fd, _, failure = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return failure != unix.EAGAIN
		})
		if err != nil { // closed: told to shut down
			return nil
		}
		if failure != nil { // the caller went away, or no descriptor is free for now
			if failure != unix.ECONNABORTED && failure != unix.EINTR {
				unix.Poll(nil, 10)
			}
			continue
		}
		conn, err := wire.NewConn(fd)
		if err != nil {
			continue
		}
		go a.answer(conn, failed, stop)
	}
}

// answer serves one connection: one request.
func (a *Agent) answer(conn *wire.Conn, failed error, stop func()) {
	defer conn.Close()
	if uid, err := conn.PeerUID(); err != nil || uid != 0 {
		return
	}
	m, err := conn.ReceiveInto(newBody)
	defer dropBody(&m)
	if err != nil {
		return
	}
	defer m.CloseDescriptors()
	defer a.trim.count()
	var body wire.Coder
	switch m.Verb {
	case wire.VerbHello:
		body, err = a.hello(), failed
	case wire.VerbStart:
		body, err = a.start(conn, m)
	case wire.VerbSignal:
		body, err = a.signal(m)
	case wire.VerbReopenLog:
		body, err = a.reopenLog(m)
	case wire.VerbExec:
		body, err = a.exec(conn, &m)
	case wire.VerbWatch:
		a.watch(conn)
		return
	case wire.VerbContinue:
		body, err = a.resume(m)
	case wire.VerbForget:
		body, err = a.forget(m)
	case wire.VerbAttach:
		body, err = a.attach(conn, &m)
	case wire.VerbCloseStdin:
		body, err = a.closeStdin(m)
	case wire.VerbDial:
		a.dial(conn, m)
		return
	case wire.VerbShutdown:
		conn.Send(wire.Message{Verb: wire.AnswerDone, Body: wire.Encode(&wire.ID{})})
		stop()
		return
	default:
		err = &wire.Failure{Text: "verb is not known to this monitor; it is older than the daemon"}
	}
	reply(conn, body, err)
}

// reply ends a call. A peer that is gone does not hear it.
func reply(conn *wire.Conn, body wire.Coder, err error) {
	m := wire.Message{Verb: wire.AnswerDone}
	if err != nil {
		m.Verb, body = wire.AnswerFailed, failure(err)
	}
	m.Body = wire.Encode(body)
	conn.Send(m)
}

// spareBody is the memory of a request that has been answered, for the next one.
var spareBody atomic.Pointer[[spareBodySize]byte]

const spareBodySize = 8 << 10

func newBody(size int) []byte {
	if size == 0 || size > spareBodySize {
		return make([]byte, size)
	}
	b := spareBody.Swap(nil)
	if b == nil {
		b = new([spareBodySize]byte)
	}
	return b[:size]
}

// dropBody gives a request's memory to the next one: a call that takes long does so as soon as it can, and all do at their end. What was
// decoded from it is gone then, and not by chance: it is zero.
func dropBody(m *wire.Message) {
	b := m.Body
	m.Body = nil
	clear(b)
	if cap(b) == spareBodySize {
		spareBody.Store((*[spareBodySize]byte)(b[:spareBodySize]))
	}
}

// failure puts an error into the answer's form.
func failure(err error) *wire.Failure {
	var f *wire.Failure
	if errors.As(err, &f) {
		return f
	}
	var e *engine.Error
	if errors.As(err, &e) {
		return &wire.Failure{Kind: wire.FailedEngine, Step: e.Step, Path: e.Path, Errno: int(e.Errno)}
	}
	return &wire.Failure{Text: err.Error()}
}

func (a *Agent) hello() *wire.Hello {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := &wire.Hello{Version: wire.Version, PID: os.Getpid(), PIDNSInit: a.init.PID}
	for _, c := range a.containers {
		if c.pid != 0 {
			h.Containers = append(h.Containers, c.state())
		}
	}
	return h
}

// hangup tells when the peer has nothing more to say: it closed its side, or is gone.
func hangup(conn *wire.Conn) <-chan struct{} {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			m, err := conn.Receive()
			m.CloseDescriptors() // nothing is expected
			if err != nil {
				return
			}
		}
	}()
	return gone
}
