package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor"
)

// TerminalSize is a terminal's, in characters.
type TerminalSize struct{ Columns, Lines uint16 }

// Streams are a client's ends of a process's streams; nil: not asked for. The caller closes them once the call has returned: only that ends a
// Read of Stdin, or a Write to a client that has stalled, which may still be under way then.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool                // the streams are a terminal's: Stdout has all of its output
	Resize         <-chan TerminalSize // may be nil; read until it is closed or the call ends
}

const (
	drainTimeout = 200 * time.Millisecond // how long what a command left behind may hold its streams open
	drainMost    = 1 << 20                // bytes that a pipe may hold (pipe-max-size); a terminal holds less
)

// scratch are buffers to copy with.
var scratch = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// newPipe makes a pipe of which both ends block, as a process expects of its own.
func newPipe() (p [2]int, err error) {
	if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		err = fmt.Errorf("make pipe: %w", err)
	}
	return p, err
}

// outlet carries what a process writes to a client.
type outlet struct {
	from *os.File
	to   io.Writer
	done chan struct{}
}

// carry starts to copy. failed is called when the client does not take more; then what the process writes is left alone.
func carry(from *os.File, to io.Writer, failed func(error)) *outlet {
	o := &outlet{from: from, to: to, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		if err := o.copy(); err != nil {
			failed(err)
		}
	}()
	return o
}

// copy reads to the end, or at the deadline what is there. Its error is the client's.
func (o *outlet) copy() error {
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	left := drainMost
	for {
		n, err := o.from.Read(*buf)
		if errors.Is(err, os.ErrDeadlineExceeded) && left > 0 {
			if n = readNow(o.from, *buf); n > 0 {
				left, err = left-n, nil
			}
		}
		if n > 0 {
			if _, err := o.to.Write((*buf)[:n]); err != nil {
				return err
			}
		}
		if err != nil { // io.EOF, a terminal's EIO, the deadline, or closed
			return nil
		}
	}
}

// readNow reads what is there, whatever the deadline says, and returns 0 when that is nothing.
func readNow(from *os.File, b []byte) (n int) {
	if raw, err := from.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), b) }) //nolint:errcheck // closed: nothing is there
	}
	return max(n, 0)
}

// drain ends the copying: at the end of the stream, and where others hold it open a little later with what it has until then.
func (o *outlet) drain() {
	o.from.SetReadDeadline(time.Now().Add(drainTimeout)) //nolint:errcheck // pipes and terminals have deadlines
}

// firstSize is how long an exec waits for the size of its terminal: clients send it with the streams, and programs ask for it first thing.
const firstSize = 20 * time.Millisecond

// transfer are the streams of one exec on their way.
type transfer struct {
	client  Streams
	failed  func(error) // told when the client takes no more
	theirs  []*os.File  // the process's ends
	stdin   *os.File    // our end, or the terminal's master
	outlets []*outlet
	ended   chan struct{}

	mu  sync.Mutex
	err error // the first of a Writer
}

// prepare connects the client's streams to what the process gets.
func (t *transfer) prepare(ctx context.Context, process *specs.Process, r *monitor.ExecRequest) error {
	t.ended = make(chan struct{})
	if t.client.Terminal {
		if size := t.size(ctx); size != (TerminalSize{}) {
			process.ConsoleSize = &specs.Box{Height: uint(size.Lines), Width: uint(size.Columns)}
		}
		return nil // its streams come with its start
	}
	for _, out := range []struct {
		name  string
		to    io.Writer
		child **os.File
	}{{"stdout", t.client.Stdout, &r.Stdout}, {"stderr", t.client.Stderr, &r.Stderr}} {
		if out.to == nil {
			continue
		}
		p, err := newPipe()
		if err != nil {
			return err
		}
		unix.SetNonblock(p[0], true) //nolint:errcheck // a pipe takes the flag
		*out.child = os.NewFile(uintptr(p[1]), "pipe")
		t.theirs = append(t.theirs, *out.child)
		t.carry(out.name, os.NewFile(uintptr(p[0]), "pipe"), out.to)
	}
	if t.client.Stdin != nil {
		p, err := newPipe()
		if err != nil {
			return err
		}
		unix.SetNonblock(p[1], true) //nolint:errcheck // a pipe takes the flag
		r.Stdin, t.stdin = os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe")
		t.theirs = append(t.theirs, r.Stdin)
		go t.feed(t.stdin, func() { t.stdin.Close() })
	}
	return nil
}

// size is the first that the client tells, or none.
func (t *transfer) size(ctx context.Context) (size TerminalSize) {
	if t.client.Resize == nil {
		return size
	}
	timer := time.NewTimer(firstSize)
	defer timer.Stop()
	select {
	case size = <-t.client.Resize:
	case <-timer.C:
	case <-ctx.Done():
	}
	return size
}

// started takes the process's terminal, if it has one, and lets go of the process's ends of pipes.
func (t *transfer) started(master *os.File) {
	t.release()
	if master == nil {
		return
	}
	t.stdin = master
	var to io.Writer = io.Discard // a terminal that nobody reads would block who writes to it
	if t.client.Stdout != nil {
		to = t.client.Stdout
	}
	t.carry("stdout", master, to)
	if t.client.Stdin != nil {
		go t.feed(master, func() {}) // a terminal's input has no end
	}
	if t.client.Resize != nil {
		go t.resize(master)
	}
}

// feed gives the process what the client sends.
func (t *transfer) feed(to *os.File, atEnd func()) {
	defer atEnd()
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for {
		n, err := t.client.Stdin.Read(*buf)
		if n > 0 {
			if _, err := to.Write((*buf)[:n]); err != nil {
				return // the process does not read any more
			}
		}
		if err != nil {
			return
		}
	}
}

// resize gives the terminal its sizes. Each tells its processes by SIGWINCH.
func (t *transfer) resize(master *os.File) {
	for {
		select {
		case size, ok := <-t.client.Resize:
			if !ok {
				return
			}
			setSize(master, size)
		case <-t.ended:
			return
		}
	}
}

// setSize sets a terminal's size. It fails for one that has ended, which nobody needs to know.
func setSize(master *os.File, size TerminalSize) {
	if raw, err := master.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { //nolint:errcheck // closed: it has ended
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Lines, Col: size.Columns}) //nolint:errcheck // see above
		})
	}
}

func (t *transfer) carry(name string, from *os.File, to io.Writer) {
	t.outlets = append(t.outlets, carry(from, to, func(err error) {
		err = fmt.Errorf("deliver %s: %w", name, err)
		t.mu.Lock()
		if t.err == nil {
			t.err = err
		}
		t.mu.Unlock()
		t.failed(err)
	}))
}

// deliver waits until the client has all output of a process that has ended.
func (t *transfer) deliver(ctx context.Context) error {
	t.release()
	for _, o := range t.outlets {
		o.drain()
	}
	for _, o := range t.outlets {
		select {
		case <-o.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

func (t *transfer) release() {
	for _, f := range t.theirs {
		f.Close()
	}
	t.theirs = nil
}

// close ends the streams on our side. What waits for the client ends with the client's.
func (t *transfer) close() {
	t.release()
	if t.ended != nil {
		close(t.ended)
	}
	if t.stdin != nil {
		t.stdin.Close()
	}
	for _, o := range t.outlets {
		o.from.Close()
	}
}

// Attach connects a client to the streams of a running container.
func (m *Manager) Attach(ctx context.Context, containerID string, s Streams) error {
	return fmt.Errorf("attach to container %s: %w", containerID, errors.ErrUnsupported)
}

// Dial connects to a TCP port of the loopback in a sandbox's network namespace.
func (m *Manager) Dial(ctx context.Context, sandboxID string, port uint16) (net.Conn, error) {
	return nil, fmt.Errorf("connect to port %d of sandbox %s: %w", port, sandboxID, errors.ErrUnsupported)
}
