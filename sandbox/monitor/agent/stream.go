package agent

import (
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
)

// drainTimeout bounds how long the exit of a container waits for the end of its streams: a process that it left outside
// of its pid namespace may hold them open.
const drainTimeout = 2 * time.Second

// pipeSize is how much a pipe may hold (pipe(7), pipe-max-size): a container may enlarge its own.
const pipeSize = 1 << 20

// stdio is the agent's side of a container's streams.
type stdio struct {
	streams []*stream // stdout and stderr, or a terminal
	readers sync.WaitGroup

	// Agent.mu:
	input int // the write end of stdin, kept open so that the container sees no end of file; -1 is none
	slave int // the terminal's, or -1
}

// stream is what a container writes: its stdout, its stderr, or its terminal. All of it goes to the log, and to every client that is attached.
type stream struct {
	name string // as the log has it
	from *os.File

	mu    sync.Mutex
	ended bool
	taps  []*tap
}

// tap is one attached client's end of a stream: a descriptor that is never waited for.
type tap struct {
	fd   int
	slow func() // called once, when the client has not taken enough to take more
}

func newStream(name string, fd int) *stream {
	unix.SetNonblock(fd, true)
	return &stream{name: name, from: os.NewFile(uintptr(fd), name)}
}

// pipes makes the streams of a process without a terminal. ends are the child's, to be closed after its birth.
func (c *stdio) pipes(process *engine.Process) (engine.Stdio, []int, error) {
	io := engine.Stdio{In: -1, Out: -1, Err: -1}
	if process.Terminal {
		return io, nil, nil
	}
	var ends []int
	for _, out := range []struct {
		name  string
		child *int
	}{{"stdout", &io.Out}, {"stderr", &io.Err}} {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return io, ends, err
		}
		c.streams = append(c.streams, newStream(out.name, p[0]))
		*out.child = p[1]
		ends = append(ends, p[1])
	}
	if process.Stdin {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			return io, ends, err
		}
		io.In = p[0]
		ends = append(ends, p[0])
		c.input = p[1]
	}
	return io, ends, nil
}

// terminal takes the container's terminal. Its slave is held open as well: a container may close its terminal and open it again, and a
// master none of whose slaves is open has only errors to read.
func (c *stdio) terminal(master int) {
	slave, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if err == 0 {
		c.slave = int(slave)
	}
	c.streams = append(c.streams, newStream("stdout", master))
}

// drain waits for the end of the streams, and no longer than drainTimeout.
func (c *stdio) drain() {
	timer := time.AfterFunc(drainTimeout, func() {
		for _, s := range c.streams {
			s.from.SetReadDeadline(time.Unix(1, 0))
		}
	})
	c.readers.Wait()
	timer.Stop()
}

// copy writes all of the stream to the log and to who is attached, until its end, or at its deadline what the stream still holds.
func (s *stream) copy(log *logFile) {
	defer s.end()
	buf := make([]byte, 0, lineMax+1)
	prefix := " " + s.name + " "
	left := pipeSize
	for {
		n, err := s.from.Read(buf[len(buf):cap(buf)])
		if errors.Is(err, os.ErrDeadlineExceeded) && left > 0 {
			if n = readNow(s.from, buf[len(buf):cap(buf)]); n > 0 {
				left, err = left-n, nil
			}
		}
		s.fan(buf[len(buf) : len(buf)+n])
		buf = buf[:len(buf)+n]
		rest := log.lines(prefix, buf)
		buf = buf[:copy(buf[:cap(buf)], rest)]
		if err != nil {
			if len(buf) > 0 {
				log.write(prefix, [][]byte{buf}, "F ")
			}
			return
		}
	}
}

// readNow reads what is there, whatever the deadline says, and returns 0 when that is nothing.
func readNow(from *os.File, b []byte) (n int) {
	if raw, err := from.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), b) })
	}
	return max(n, 0)
}

// fan gives b to who is attached. A client whose pipe is full, or closed, is let go of: nobody holds up the container or its log.
func (s *stream) fan(b []byte) {
	if len(b) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.taps[:0]
	for _, t := range s.taps {
		n, err := unix.Write(t.fd, b)
		if n == len(b) {
			kept = append(kept, t)
			continue
		}
		unix.Close(t.fd)
		if err != unix.EPIPE {
			t.slow()
		}
	}
	clear(s.taps[len(kept):])
	s.taps = kept
}

// attach adds a client, and takes its descriptor over.
func (s *stream) attach(t *tap) {
	unix.SetNonblock(t.fd, true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		unix.Close(t.fd)
		return
	}
	s.taps = append(s.taps, t)
}

// detach lets go of a client, if it is still there.
func (s *stream) detach(t *tap) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.taps {
		if s.taps[i] == t {
			unix.Close(t.fd)
			s.taps = append(s.taps[:i], s.taps[i+1:]...)
			return
		}
	}
}

// end tells who is attached that nothing more comes.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, t := range s.taps {
		unix.Close(t.fd)
	}
	s.taps = nil
}

func (s *stream) close() {
	s.end()
	s.from.Close()
}
