package sandbox

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of what is kept of an exec's streams.
const (
	maxExecOutput = 16 << 20 // bytes of a stream (CRI: ExecSyncResponse)
	maxExecHead   = 64 << 10 // of these in memory: the rest is on disk, so that many execs that print much are not much memory
)

// Output is the beginning of what a command printed. Who gets one closes it.
type Output struct {
	Head []byte
	// Tail is what follows, in a file without a name that only this Output has; nil: nothing does.
	Tail     *os.File
	TailSize int
}

// Len is how many bytes it has.
func (o Output) Len() int { return len(o.Head) + o.TailSize }

// Close frees the disk. It is idempotent.
func (o Output) Close() {
	if o.Tail != nil {
		o.Tail.Close()
	}
}

// capture keeps the first maxExecOutput bytes, and takes the rest so that the writer never waits.
type capture struct {
	folder string // on whose file system the tail goes

	mu     sync.Mutex
	head   bytes.Buffer
	tail   *os.File
	size   int // of tail
	closed bool
}

// Write fails when the disk does, or after close.
func (c *capture) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, os.ErrClosed
	}
	keep := b[:min(len(b), maxExecOutput-c.head.Len()-c.size)]
	if len(keep) == 0 {
		return len(b), nil
	}
	if c.head.Len()+len(keep) > maxExecHead && c.folder != "" {
		c.tail, c.folder = nameless(c.folder), ""
	}
	if c.tail == nil {
		c.head.Write(keep)
		return len(b), nil
	}
	n, err := c.tail.Write(keep)
	c.size += n
	if err != nil {
		return n, fmt.Errorf("keep output: %w", err)
	}
	return len(b), nil
}

// nameless makes a file without a name, with room for all that a capture keeps, or returns nil: where the disk is full, or cannot do that,
// memory is used.
func nameless(folder string) *os.File {
	fd, err := unix.Open(folder, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil
	}
	if err := unix.Fallocate(fd, 0, 0, maxExecOutput); err != nil {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "output of an exec")
}

// output is what was captured; nothing more is taken.
func (c *capture) output() Output {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return Output{Head: c.head.Bytes(), Tail: c.tail, TailSize: c.size}
}
