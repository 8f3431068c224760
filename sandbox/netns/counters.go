package netns

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Interface is what has gone through a network interface since it was made.
type Interface struct {
	Name   string
	Rx, Tx Traffic
}

// Traffic is one direction.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// Counters reads the traffic of all interfaces of one network namespace by a descriptor that stays open. It keeps the namespace alive, so
// it is closed before the namespace is to go. It is not for several goroutines at once.
type Counters struct {
	fd  int
	buf []byte
}

// Counters opens those of the sandbox's pinned network namespace.
func (p *Pins) Counters(sandboxID string) (*Counters, error) {
	fd, err := openIn(p.Path(sandboxID), "/proc/thread-self/net/dev")
	if err != nil {
		return nil, fmt.Errorf("open counters of network namespace %s: %w", p.Path(sandboxID), err)
	}
	return &Counters{fd: fd, buf: make([]byte, 2048)}, nil
}

// openIn opens a file as a thread in the network namespace sees it. A thread that cannot come home must not run anything else: openIn panics
// then, with the thread locked to its goroutine, and it ends with it.
func openIn(namespace, file string) (int, error) {
	target, err := unix.Open(namespace, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(target)
	home, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(home)
	runtime.LockOSThread()
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return -1, os.NewSyscallError("setns", err)
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("return from network namespace: %v", back))
	}
	runtime.UnlockOSThread()
	return fd, err
}

// Close gives the descriptor back. It is idempotent; a nil Counters has none.
func (c *Counters) Close() {
	if c != nil && c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// Read lists the interfaces, in the kernel's order.
func (c *Counters) Read() ([]Interface, error) {
	n := 0
	for {
		if n == len(c.buf) {
			c.buf = append(c.buf, make([]byte, n)...)
		}
		got, err := unix.Pread(c.fd, c.buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read counters of a network namespace: %w", err)
		}
		if got == 0 {
			break
		}
		n += got // a list comes in pieces
	}
	return parseCounters(c.buf[:n])
}

// parseCounters reads /proc/net/dev (proc_pid_net(5)): two lines of headings, then "NAME: 8 numbers received, 8 sent" a line.
func parseCounters(text []byte) ([]Interface, error) {
	var all []Interface
	for line := range bytes.Lines(text) {
		name, numbers, ok := bytes.Cut(line, []byte{':'})
		if !ok {
			continue
		}
		words := bytes.Fields(numbers)
		if len(words) < 12 {
			return nil, fmt.Errorf("read counters: line %q has %d numbers", line, len(words))
		}
		i := Interface{Name: string(bytes.TrimSpace(name))}
		for at, t := range map[int]*Traffic{0: &i.Rx, 8: &i.Tx} {
			for k, into := range []*uint64{&t.Bytes, &t.Packets, &t.Errors, &t.Dropped} {
				n, err := strconv.ParseUint(string(words[at+k]), 10, 64)
				if err != nil {
					return nil, fmt.Errorf("read counters of %s: %w", i.Name, err)
				}
				*into = n
			}
		}
		all = append(all, i)
	}
	return all, nil
}
