package agent

import (
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// exec runs a process in a container and answers when it has ended, and if it is asked to when it has started as well: that answer has the
// terminal's master. A connection that closes before ends the process.
func (a *Agent) exec(conn *wire.Conn, m *wire.Message) (wire.Coder, error) {
	var r wire.Exec
	if err := wire.Decode(m.Body, &r); err != nil {
		return nil, err
	}
	find := a.find
	if r.Waiting {
		find = a.findWaiting
	}
	c, err := find(r.ContainerID)
	if err != nil {
		return nil, err
	}
	fds, err := execDescriptors(&r, m.Descriptors)
	if err != nil {
		return nil, err
	}
	gone := hangup(conn)
	child, ended, err := a.execBirth(c, &r, fds, gone)
	if err != nil {
		if fds.kill >= 0 {
			unix.Write(fds.kill, []byte("1")) // what another runtime has half made
		}
		return nil, err
	}
	defer unix.Close(child.PIDFD)
	// The streams' other ends see the end of file when the process closes them, and not when this call ends.
	kill, err := duplicate(fds.kill)
	if err != nil {
		kill = -1
	}
	defer closeIf(kill)
	m.CloseDescriptors()
	dropBody(m)
	if r.Started {
		started := wire.Message{Verb: wire.AnswerStarted, Body: wire.Encode(&wire.Exit{ContainerID: c.id, PID: child.PID})}
		if child.Master >= 0 {
			started.Descriptors = []int{child.Master}
		}
		conn.Send(started) // a peer that is gone is seen below
	}
	closeIf(child.Master) // it is the peer's: with the peer gone its processes are hung up
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

// execFiles are the descriptors of an exec; -1 is one that is not there. They are the message's.
type execFiles struct {
	groups  engine.Cgroups
	io      engine.Stdio
	kill    int // cgroup.kill of the exec's own cgroup
	program int // the cgroup of another runtime's program
}

// execDescriptors tells what the descriptors of an exec are.
func execDescriptors(r *wire.Exec, fds []int) (execFiles, error) {
	files := execFiles{groups: engine.Cgroups{Unified: -1}, io: engine.Stdio{In: -1, Out: -1, Err: -1}, kill: -1, program: -1}
	if len(fds) != len(r.Cgroups)+len(r.Present) {
		return files, wire.ErrMalformed
	}
	files.groups.V1 = make([]engine.V1Cgroup, 0, len(r.Cgroups))
	for _, dir := range fds[:len(r.Cgroups)] {
		var st unix.Statfs_t
		if err := unix.Fstatfs(dir, &st); err != nil {
			return files, err
		}
		if st.Type == unix.CGROUP2_SUPER_MAGIC {
			files.groups.Unified = dir
		} else {
			files.groups.V1 = append(files.groups.V1, engine.V1Cgroup{Dir: dir})
		}
	}
	for i, fd := range fds[len(r.Cgroups):] {
		switch r.Present[i] {
		case wire.ExecKill:
			files.kill = fd
		case wire.ExecStdin:
			files.io.In = fd
		case wire.ExecStdout:
			files.io.Out = fd
		case wire.ExecStderr:
			files.io.Err = fd
		case wire.ExecGroup:
			files.program = fd
		default:
			return files, wire.ErrMalformed
		}
	}
	return files, nil
}

func (a *Agent) execBirth(c *container, r *wire.Exec, files execFiles, gone <-chan struct{}) (engine.Child, <-chan unix.WaitStatus, error) {
	select {
	case a.execs <- struct{}{}:
		defer func() { <-a.execs }()
	case <-gone:
		return engine.Child{}, nil, &wire.Failure{Text: "connection closed"}
	}
	a.births.RLock()
	defer a.born()
	a.mu.Lock()
	target := engine.Target{PIDFD: -1, PIDNamespace: -1, Namespaces: c.namespaces}
	if c.namespaces&unix.CLONE_NEWUSER != 0 {
		target.Users = a.users
	}
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
	if unknown && len(r.Command.Args) == 0 {
		return engine.Child{}, nil, &wire.Failure{Text: "pid namespace of container " + c.id + " could not be opened"}
	}
	child, err := a.maker(&r.Command, files.program, gone).exec(&r.Process, target, files.groups, files.io)
	if err != nil {
		return engine.Child{}, nil, err
	}
	return child, a.register(child.PID), nil
}
