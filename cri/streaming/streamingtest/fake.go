package streamingtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox"
)

// Fake runs commands on this host. Its container, of any ID but "gone", is a process of the fake's own that says back each line that it reads,
// after "got ", and "bye" before it ends at the line "end".
type Fake struct {
	mu       sync.Mutex
	attached map[chan []byte]bool
	ended    chan struct{}
	partial  []byte
}

// NewFake makes a Fake whose container runs.
func NewFake() *Fake {
	return &Fake{attached: make(map[chan []byte]bool), ended: make(chan struct{})}
}

// Exec implements streaming.Runtime.
func (f *Fake) Exec(ctx context.Context, containerID string, args []string, s sandbox.Streams) (int32, error) {
	if containerID == "gone" {
		return 0, fmt.Errorf("exec in container gone: %w", sandbox.ErrNotFound)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 200 * time.Millisecond
	run := runPipes
	if s.Terminal {
		run = runTerminal
	}
	err := run(cmd, s, cancel)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if status := exit.Sys().(syscall.WaitStatus); status.Signaled() {
			return 128 + int32(status.Signal()), nil
		}
		return int32(exit.ExitCode()), nil
	}
	if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		return 0, fmt.Errorf("%w: %w", sandbox.ErrInvalid, err)
	}
	return 0, nil
}

// output takes a command's output and ends the command when its client takes no more.
type output struct {
	io.Writer
	failed func(error)
}

func (o output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if err != nil {
		o.failed(err)
	}
	return n, err
}

func runPipes(cmd *exec.Cmd, s sandbox.Streams, failed func(error)) error {
	if s.Stdout != nil {
		cmd.Stdout = output{s.Stdout, failed}
	}
	if s.Stderr != nil {
		cmd.Stderr = output{s.Stderr, failed}
	}
	if s.Stdin != nil {
		in, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			io.Copy(in, s.Stdin)
			in.Close()
		}()
	}
	return cmd.Run()
}

func runTerminal(cmd *exec.Cmd, s sandbox.Streams, failed func(error)) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer master.Close()
	var slave *os.File
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err != nil {
			return
		}
		peer, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY)
		if errno != 0 {
			err = errno
			return
		}
		slave = os.NewFile(peer, "terminal")
	})
	if err := errors.Join(ctlErr, err); err != nil {
		return err
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true
	select {
	case size := <-s.Resize:
		setSize(raw, size)
	case <-time.After(100 * time.Millisecond):
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	slave.Close()
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			select {
			case size, ok := <-s.Resize:
				if !ok {
					return
				}
				setSize(raw, size)
			case <-over:
				return
			}
		}
	}()
	if s.Stdin != nil {
		go io.Copy(master, s.Stdin)
	}
	out := s.Stdout
	if out == nil {
		out = io.Discard
	}
	io.Copy(output{out, failed}, master) // until EIO
	return cmd.Wait()
}

func setSize(raw syscall.RawConn, size sandbox.TerminalSize) {
	raw.Control(func(fd uintptr) {
		unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Lines, Col: size.Columns})
	})
}

// Attach implements streaming.Runtime.
func (f *Fake) Attach(ctx context.Context, containerID string, s sandbox.Streams) error {
	if containerID == "gone" {
		return fmt.Errorf("attach to container gone: %w", sandbox.ErrNotFound)
	}
	out := make(chan []byte, 64)
	f.mu.Lock()
	f.attached[out] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.attached, out)
		f.mu.Unlock()
	}()
	if s.Stdin != nil {
		go f.feed(s.Stdin)
	}
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case p := <-out:
			if s.Stdout == nil {
				continue
			}
			if _, err := s.Stdout.Write(p); err != nil {
				return err
			}
		case <-f.ended:
			for {
				select {
				case p := <-out:
					if s.Stdout != nil {
						s.Stdout.Write(p)
					}
				default:
					return nil
				}
			}
		}
	}
}

// feed is the container.
func (f *Fake) feed(r io.Reader) {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		f.mu.Lock()
		for _, b := range buf[:n] {
			f.partial = append(f.partial, b)
			if b == '\n' {
				f.line(string(f.partial))
				f.partial = nil
			}
		}
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// line takes one line. Preconditions: f.mu held.
func (f *Fake) line(text string) {
	answer := "got " + text
	if text == "end\n" {
		answer = "bye\n"
	}
	for out := range f.attached {
		select {
		case out <- []byte(answer):
		default: // a client that stalls
		}
	}
	if text == "end\n" {
		close(f.ended)
	}
}

// Attached is how many clients there are.
func (f *Fake) Attached() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.attached)
}

// Dial implements streaming.Runtime.
func (f *Fake) Dial(ctx context.Context, sandboxID string, port uint16) (net.Conn, error) {
	if sandboxID == "gone" {
		return nil, fmt.Errorf("connect to pod gone: %w", sandbox.ErrNotFound)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
}
