package monitor

import (
	"context"
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
	body := wire.Exec{ContainerID: r.ContainerID, Process: *r.Process, Started: r.Started != nil, Command: r.Command}
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
		var master *os.File
		if len(fds) > 0 {
			unix.SetNonblock(fds[0], true) // for the poller; a terminal takes the flag
			master = os.NewFile(uintptr(fds[0]), "terminal")
		}
		r.Started(master)
	}})
	return ExitStatus{exit.ExitCode}, err
}
