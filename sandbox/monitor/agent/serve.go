package agent

import (
	"errors"
	"os"
	"sync"

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
	m, err := conn.Receive()
	if err != nil {
		return
	}
	defer m.CloseDescriptors()
	var body wire.Coder
	switch m.Verb {
	case wire.VerbHello:
		body, err = a.hello(), failed
	case wire.VerbStart:
		body, err = a.start(m)
	case wire.VerbSignal:
		body, err = a.signal(m)
	case wire.VerbReopenLog:
		body, err = a.reopenLog(m)
	case wire.VerbExec:
		body, err = a.exec(conn, &m)
	case wire.VerbWatch:
		a.watch(conn)
		return
	case wire.VerbForget:
		body, err = a.forget(m)
	case wire.VerbShutdown:
		conn.Send(wire.Message{Verb: wire.AnswerDone, Body: wire.Encode(&wire.ID{})})
		stop()
		return
	default:
		err = &wire.Failure{Text: "verb is not known to this monitor; it is older than the daemon"}
	}
	if err != nil {
		conn.Send(wire.Message{Verb: wire.AnswerFailed, Body: wire.Encode(failure(err))})
		return
	}
	conn.Send(wire.Message{Verb: wire.AnswerDone, Body: wire.Encode(body)})
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

// exec runs a process in a container and answers when it has ended. A connection that closes before ends the process.
func (a *Agent) exec(conn *wire.Conn, m *wire.Message) (wire.Coder, error) {
	var r wire.Exec
	if err := wire.Decode(m.Body, &r); err != nil {
		return nil, err
	}
	c, err := a.find(r.ContainerID)
	if err != nil {
		return nil, err
	}
	groups, io, kill, err := execDescriptors(&r, m.Descriptors)
	if err != nil {
		return nil, err
	}
	child, ended, err := a.execBirth(c, &r.Process, groups, io)
	if err != nil {
		return nil, err
	}
	defer unix.Close(child.PIDFD)
	if child.Master >= 0 {
		defer unix.Close(child.Master)
	}
	// The streams' other ends see the end of file when the process closes them, and not when this call ends.
	if kill, err = duplicate(kill); err != nil {
		kill = -1
	}
	defer closeIf(kill)
	m.CloseDescriptors()
	gone := make(chan struct{})
	go func() {
		conn.Receive() // nothing more is sent: this returns when the connection ends
		close(gone)
	}()
	select {
	case status := <-ended:
		return &wire.Exit{ContainerID: c.id, PID: child.PID, ExitCode: exitCode(status)}, nil
	case <-gone:
		if kill >= 0 {
			unix.Write(kill, []byte("1"))
		}
		unix.PidfdSendSignal(child.PIDFD, unix.SIGKILL, nil, 0)
		<-ended
		return nil, &wire.Failure{Text: "connection closed"}
	}
}

func closeIf(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}

// execDescriptors tells what the descriptors of an exec are; kill is -1 when there is none.
func execDescriptors(r *wire.Exec, fds []int) (groups engine.Cgroups, io engine.Stdio, kill int, err error) {
	groups, io, kill = engine.Cgroups{Unified: -1}, engine.Stdio{In: -1, Out: -1, Err: -1}, -1
	if len(fds) != len(r.Cgroups)+len(r.Present) {
		return groups, io, kill, wire.ErrMalformed
	}
	for _, dir := range fds[:len(r.Cgroups)] {
		var st unix.Statfs_t
		if err := unix.Fstatfs(dir, &st); err != nil {
			return groups, io, kill, err
		}
		if st.Type == unix.CGROUP2_SUPER_MAGIC {
			groups.Unified = dir
		} else {
			groups.V1 = append(groups.V1, engine.V1Cgroup{Dir: dir})
		}
	}
	for i, fd := range fds[len(r.Cgroups):] {
		switch r.Present[i] {
		case wire.ExecKill:
			kill = fd
		case wire.ExecStdin:
			io.In = fd
		case wire.ExecStdout:
			io.Out = fd
		case wire.ExecStderr:
			io.Err = fd
		default:
			return groups, io, kill, wire.ErrMalformed
		}
	}
	return groups, io, kill, nil
}

func (a *Agent) execBirth(c *container, process *engine.Process, groups engine.Cgroups, io engine.Stdio) (engine.Child, <-chan unix.WaitStatus, error) {
	a.births.RLock()
	defer a.born()
	a.mu.Lock()
	target := engine.Target{PIDFD: -1, PIDNamespace: -1, Namespaces: c.namespaces}
	var err error
	unknown := c.pidns == unknownNamespace
	if !c.exited {
		// Duplicates: the container may end and close its own while the child is made.
		if target.PIDFD, err = duplicate(c.pidfd); err == nil {
			target.PIDNamespace, err = duplicate(c.pidns)
		}
	}
	a.mu.Unlock()
	defer closeIf(target.PIDFD)
	defer closeIf(target.PIDNamespace)
	if err != nil {
		return engine.Child{}, nil, err
	}
	if target.PIDFD < 0 {
		return engine.Child{}, nil, &wire.Failure{Kind: wire.FailedExited}
	}
	if unknown {
		return engine.Child{}, nil, &wire.Failure{Text: "pid namespace of container " + c.id + " could not be opened"}
	}
	child, err := engine.Exec(process, target, groups, io)
	if err != nil {
		return engine.Child{}, nil, err
	}
	return child, a.register(child.PID), nil
}

// watcher is a connection that is told of exits.
type watcher struct {
	pending []wire.Exit // guarded by Agent.mu
	wake    chan struct{}
}

// add queues an exit. The caller holds Agent.mu.
func (w *watcher) add(e wire.Exit) {
	w.pending = append(w.pending, e)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// watch tells the connection of every exit, until it ends.
func (a *Agent) watch(conn *wire.Conn) {
	w := &watcher{wake: make(chan struct{}, 1)}
	a.mu.Lock()
	for _, c := range a.containers {
		if c.exited {
			w.add(c.exit)
		}
	}
	a.watchers[w] = struct{}{}
	a.mu.Unlock()
	gone := make(chan struct{})
	go func() {
		conn.Receive()
		close(gone)
	}()
	defer func() {
		a.mu.Lock()
		delete(a.watchers, w)
		a.mu.Unlock()
	}()
	for {
		select {
		case <-gone:
			return
		case <-w.wake:
		}
		a.mu.Lock()
		exits := w.pending
		w.pending = nil
		a.mu.Unlock()
		for i := range exits {
			if err := conn.Send(wire.Message{Verb: wire.AnswerDone, Body: wire.Encode(&exits[i])}); err != nil {
				return
			}
		}
	}
}
