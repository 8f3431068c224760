package sandbox

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor"
)

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

// feed gives the process what the client sends. What it does not read any more is dropped: the client's end is to be seen.
func (t *transfer) feed(to *os.File, atEnd func()) {
	defer atEnd()
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for {
		n, err := t.client.Stdin.Read(*buf)
		if n > 0 {
			to.Write((*buf)[:n]) //nolint:errcheck // see above
		}
		select {
		case <-t.ended:
			return
		default:
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
		if err == nil {
			return
		}
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
