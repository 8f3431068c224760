package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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

// carry starts to copy. ended is called at the end, with an error when the client takes no more.
func carry(from *os.File, to io.Writer, ended func(error)) *outlet {
	o := &outlet{from: from, to: to, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		ended(o.copy())
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
