package monitor

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// ExecRequest is a process to run in a container. The descriptors stay the caller's; a nil stream is the null device.
type ExecRequest struct {
	ContainerID           string
	Process               *engine.Process
	Cgroups               []*os.File
	CgroupKill            *os.File // cgroup.kill of the exec's own cgroup, or nil
	Stdin, Stdout, Stderr *os.File
	// Command has another runtime run the process; RuntimeGroup is the cgroup that its program runs in, or nil.
	Command      Command
	RuntimeGroup *os.File
	// Started, if set, is told when the process has executed, with its terminal's master, which becomes the callee's, or nil.
	// A monitor of protocol 1 does not tell.
	Started func(master *os.File)
	// Waiting is for a container whose start waits.
	Waiting bool
}

// ExitStatus is how an exec ended.
type ExitStatus struct {
	ExitCode int32 // 128 + the signal's number when a signal ended it
}

// endTime bounds how long a call whose context has ended waits until the monitor has undone it.
const endTime = time.Second

// letEnd tells the monitor that the call is over, and gives it a moment to say that it has undone what it began.
func letEnd(conn *wire.Conn) {
	conn.CloseWrite()
	conn.SetDeadline(time.Now().Add(endTime))
}

// Exec runs a process and returns when it has ended. When ctx ends first the monitor kills what the exec started, and
// Exec returns when that is gone.
func (c *Client) Exec(ctx context.Context, r ExecRequest) (ExitStatus, error) {
	if r.Process.Terminal {
		if err := c.need(ctx, 2, "exec with a terminal"); err != nil {
			return ExitStatus{}, err
		}
	}
	if err := c.confines(ctx, r.Process); err != nil {
		return ExitStatus{}, err
	}
	if len(r.Command.Args) > 0 {
		if err := c.need(ctx, 3, "exec by another runtime"); err != nil {
			return ExitStatus{}, err
		}
	}
	body := wire.Exec{ContainerID: r.ContainerID, Process: *r.Process, Started: r.Started != nil, Command: r.Command, Waiting: r.Waiting}
	m := wire.Message{Verb: wire.VerbExec}
	for _, f := range r.Cgroups {
		body.Cgroups = append(body.Cgroups, f.Name())
		m.Descriptors = append(m.Descriptors, int(f.Fd()))
	}
	for _, s := range []struct {
		file   *os.File
		letter string
	}{{r.CgroupKill, string(wire.ExecKill)}, {r.Stdin, string(wire.ExecStdin)}, {r.Stdout, string(wire.ExecStdout)}, {r.Stderr, string(wire.ExecStderr)},
		{r.RuntimeGroup, string(wire.ExecGroup)}} {
		if s.file != nil {
			body.Present += s.letter
			m.Descriptors = append(m.Descriptors, int(s.file.Fd()))
		}
	}
	m.Body = wire.Encode(&body)
	var exit wire.Exit
	err := c.converse(ctx, m, conversation{into: &exit, end: letEnd, started: func(fds []int) {
		r.Started(pollable(fds, "terminal"))
	}})
	return ExitStatus{exit.ExitCode}, err
}

// ErrSlow means that an attached client did not take what the container wrote. The container does not wait for it.
var ErrSlow = errors.New("client fell too far behind the container's output and was detached")

// AttachRequest asks for the output of a container from now on. The descriptors stay the caller's: they are pipes' write ends, or nil.
type AttachRequest struct {
	ContainerID    string
	Stdout, Stderr *os.File
	Input          bool
	// Started is told when what the container writes goes to the pipes, with the write end of its stdin, or its terminal's
	// master, which becomes the callee's. It is nil when there is none, or Input is not set.
	Started func(input *os.File)
}

// Attach returns when the container has exited and its streams are in the pipes to their end, or ctx has ended. A terminal has no
// stderr: its pipe is closed at once. Errors: ErrSlow, ErrExited.
func (c *Client) Attach(ctx context.Context, r AttachRequest) error {
	if err := c.need(ctx, 5, "attach to a container"); err != nil {
		return err
	}
	body := wire.Attach{ContainerID: r.ContainerID, Input: r.Input}
	m := wire.Message{Verb: wire.VerbAttach}
	if r.Stdout != nil {
		body.Present += string(wire.ExecStdout)
		m.Descriptors = append(m.Descriptors, int(r.Stdout.Fd()))
	}
	if r.Stderr != nil {
		body.Present += string(wire.ExecStderr)
		m.Descriptors = append(m.Descriptors, int(r.Stderr.Fd()))
	}
	m.Body = wire.Encode(&body)
	return c.converse(ctx, m, conversation{into: &wire.ID{}, end: cut, started: func(fds []int) {
		r.Started(pollable(fds, "container input"))
	}})
}

// CloseStdin ends a container's input: the container sees the end once those who got it by Attach have closed theirs as well. It is
// idempotent. A terminal's has no end.
func (c *Client) CloseStdin(ctx context.Context, containerID string) error {
	if err := c.need(ctx, 5, "close a container's stdin"); err != nil {
		return err
	}
	return c.callID(ctx, wire.VerbCloseStdin, containerID)
}

// Dial connects to a TCP port of the pod's loopback, 127.0.0.1 or else ::1. The error wraps the errno, such as ECONNREFUSED.
func (c *Client) Dial(ctx context.Context, port uint16) (*os.File, error) {
	if err := c.need(ctx, 5, "connect to a pod's port"); err != nil {
		return nil, err
	}
	var socket *os.File
	m := wire.Message{Verb: wire.VerbDial, Body: wire.Encode(&wire.Dial{Port: int(port)})}
	err := c.converse(ctx, m, conversation{into: &wire.ID{}, end: cut, done: func(fds []int) { socket = pollable(fds, "connection") }})
	if err == nil && socket == nil {
		err = wire.ErrMalformed
	}
	return socket, err
}

// pollable makes a file of the only descriptor, if there is one.
func pollable(fds []int, name string) *os.File {
	if len(fds) == 0 {
		return nil
	}
	for _, fd := range fds[1:] {
		unix.Close(fd)
	}
	unix.SetNonblock(fds[0], true) // for the poller
	return os.NewFile(uintptr(fds[0]), name)
}
