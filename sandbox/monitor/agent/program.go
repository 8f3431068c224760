package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// maker makes the first process of a container, or that of an exec. The child is the agent's and runs; the caller holds Agent.births for reading
// until it has registered it. After an error no process is left that runs.
type maker interface {
	start(plan *engine.Plan, groups engine.Cgroups, io engine.Stdio) (engine.Child, error)
	exec(process *engine.Process, target engine.Target, groups engine.Cgroups, io engine.Stdio) (engine.Child, error)
}

// native is the engine. It asks whether a child that waits may go on.
type native struct {
	ask func(engine.Point, engine.Child) error
}

func (n native) start(plan *engine.Plan, groups engine.Cgroups, io engine.Stdio) (engine.Child, error) {
	return engine.StartAsking(plan, groups, io, n.ask)
}

func (native) exec(process *engine.Process, target engine.Target, groups engine.Cgroups, io engine.Stdio) (engine.Child, error) {
	return engine.Exec(process, target, groups, io)
}

// program is another OCI runtime. It has made the cgroups' and namespaces' business its own.
type program struct {
	agent   *Agent
	command *wire.Command
	cgroup  int             // folder in the unified hierarchy that the program runs in, or -1
	gone    <-chan struct{} // closed when nobody waits any more
}

// maker is what a request names. The folder cgroup may be -1.
func (a *Agent) maker(command *wire.Command, cgroup int, gone <-chan struct{}) maker {
	if len(command.Args) == 0 {
		return native{}
	}
	return &program{a, command, cgroup, gone}
}

func (p *program) start(plan *engine.Plan, _ engine.Cgroups, io engine.Stdio) (engine.Child, error) {
	return p.make(&plan.Process, io)
}

func (p *program) exec(process *engine.Process, _ engine.Target, _ engine.Cgroups, io engine.Stdio) (engine.Child, error) {
	return p.make(process, io)
}

// make executes the program, which leaves the process that it made to the agent, its subreaper, and takes that over.
func (p *program) make(process *engine.Process, io engine.Stdio) (engine.Child, error) {
	none := engine.Child{PIDFD: -1, Master: -1}
	null, err := engine.NullDevice()
	if err != nil {
		return none, err
	}
	idle := engine.Stdio{In: null, Out: null, Err: null}
	for _, fd := range []*int{&io.In, &io.Out, &io.Err} {
		if *fd < 0 {
			*fd = null
		}
	}
	listener := -1
	if process.Terminal {
		io = idle
		if listener, err = wire.Listen(p.command.Console); err != nil {
			return none, err
		}
		defer os.Remove(p.command.Console)
		defer unix.Close(listener)
	}
	if err := p.run(p.command.Args, process, io); err != nil {
		return none, err
	}
	child, err := p.adopt()
	if err != nil {
		return none, err
	}
	setScore(child.PID, process)
	if process.Terminal {
		child.Master, err = receiveMaster(listener)
	}
	if err == nil && len(p.command.Then) > 0 {
		err = p.run(p.command.Then, process, idle)
	}
	if err != nil {
		unix.PidfdSendSignal(child.PIDFD, unix.SIGKILL, nil, 0) // it is reaped as a child that nobody knows
		unix.Close(child.PIDFD)
		closeIf(child.Master)
		return none, err
	}
	return child, nil
}

// run executes a command line and waits for its end, which it brings about when nobody waits any more. No descriptor but the standard ones goes
// into the program, and nothing of the environment.
func (p *program) run(args []string, process *engine.Process, io engine.Stdio) error {
	pidfd := -1
	sys := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if p.cgroup >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, p.cgroup
	}
	p.agent.births.RLock()
	pid, err := syscall.ForkExec(args[0], args, &syscall.ProcAttr{Dir: p.command.Folder, Sys: sys,
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: []uintptr{uintptr(io.In), uintptr(io.Out), uintptr(io.Err)}})
	var ended <-chan unix.WaitStatus
	if err == nil {
		ended = p.agent.register(pid)
		setScore(pid, process)
	}
	p.agent.born()
	if err != nil {
		return &wire.Failure{Text: "execute " + args[0] + ": " + err.Error()}
	}
	defer closeIf(pidfd)
	var status unix.WaitStatus
	select {
	case status = <-ended:
	case <-p.gone:
		// What it has started and not yet put into the container's cgroup ends with it.
		killGroup(p.cgroup)
		unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
		status = <-ended
	}
	switch {
	case status.Signaled():
		return &wire.Failure{Text: args[0] + " was ended by signal " + strconv.Itoa(int(status.Signal()))}
	case status.ExitStatus() != 0:
		return &wire.Failure{Text: args[0] + " ended with exit status " + strconv.Itoa(status.ExitStatus())}
	}
	return nil
}

// setScore gives a program the score that what it makes is to have, and then that itself, before it has children if it can be: some programs leave an
// exec the score that they were started with (crun 1.8), which is this process's own. What may not be lowered stays.
func setScore(pid int, process *engine.Process) {
	if process.OOMScoreSet {
		os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(process.OOMScoreAdj)), 0) // it may have ended
	}
}

// adopt finds the process that the program has left.
func (p *program) adopt() (engine.Child, error) {
	child := engine.Child{PIDFD: -1, Master: -1}
	text, err := os.ReadFile(p.command.PIDFile)
	if err == nil {
		child.PID, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err == nil && child.PID <= 1 {
		err = unix.ESRCH
	}
	if err == nil { // ECHILD: it is no child of the agent; one that is cannot be reaped yet, so the number is its own
		err = unix.Waitid(unix.P_PID, child.PID, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	}
	if err == nil {
		child.PIDFD, err = unix.PidfdOpen(child.PID, 0)
	}
	if err != nil {
		return child, &wire.Failure{Text: "find the process of " + filepath.Base(p.command.PIDFile) + " that " + p.command.Args[0] + " made: " + err.Error()}
	}
	return child, nil
}

// receiveMaster takes the terminal's master, which the program has sent before it ended.
func receiveMaster(listener int) (int, error) {
	failed := func(err error) (int, error) {
		return -1, &engine.Error{Step: "receive", Path: "the terminal", Errno: errno(err)}
	}
	conn, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
	if err != nil {
		return failed(err)
	}
	defer unix.Close(conn)
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(conn, make([]byte, 4096), control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return failed(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return failed(unix.EBADMSG)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return failed(unix.EBADMSG)
	}
	return fds[0], nil
}

func errno(err error) syscall.Errno {
	if e, ok := err.(syscall.Errno); ok {
		return e
	}
	return unix.EIO
}
