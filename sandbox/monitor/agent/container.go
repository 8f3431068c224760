package agent

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// container is one container of the pod. The fields below mu belong to Agent.mu.
type container struct {
	id         string
	pid        int
	pidfd      int
	pidns      int  // descriptor, -1 when it is the monitor's own, or unknownNamespace
	ownPID     bool // the kernel kills all of it with its first process
	namespaces uint64
	unified    int // folder in the unified hierarchy, or -1
	memory     int // folder with the memory controller's files, or -1
	startedAt  int64
	log        *logFile
	stdio
	ended chan struct{} // closed when exited is set

	// mu: Agent.mu
	exited bool
	exit   wire.Exit
	waits  chan struct{} // closed when the start that waits may go on; nil when none does
}

// unknownNamespace stands for a pid namespace that could not be opened.
const unknownNamespace = -2

func newContainer(id string) *container {
	return &container{id: id, pidfd: -1, pidns: -1, unified: -1, memory: -1, stdio: stdio{input: -1, slave: -1}, ended: make(chan struct{})}
}

// start makes a container. With a connection that closes before it runs, what was made is undone.
func (a *Agent) start(conn *wire.Conn, m wire.Message) (wire.Coder, error) {
	var r wire.Start
	if err := wire.Decode(m.Body, &r); err != nil {
		return nil, wire.ErrMalformed
	}
	dirs, runtimeGroup := m.Descriptors, -1
	if r.Command.InGroup && len(dirs) > 0 {
		dirs, runtimeGroup = dirs[:len(dirs)-1], dirs[len(dirs)-1]
	}
	if len(r.Cgroups) != len(dirs) {
		return nil, wire.ErrMalformed
	}
	c := newContainer(strings.Clone(r.ContainerID)) // what is kept must not keep the message
	a.mu.Lock()
	_, taken := a.containers[c.id]
	if !taken {
		a.containers[c.id] = c
	}
	a.mu.Unlock()
	if taken {
		return nil, &wire.Failure{Text: "container " + c.id + " was started before"}
	}
	gone := hangup(conn)
	by := a.maker(&r.Command, runtimeGroup, gone)
	if len(r.Command.Args) == 0 && r.Plan.Pauses != 0 {
		by = native{func(at engine.Point, child engine.Child) error {
			return a.pause(c, &r.Plan, conn, wire.Paused{Point: at, PID: child.PID}, gone)
		}}
	}
	undone, err := a.birth(c, &r, dirs, by, gone)
	if err != nil {
		if undone != nil {
			<-undone
		}
		a.mu.Lock()
		delete(a.containers, c.id)
		a.mu.Unlock()
		c.close()
		return nil, err
	}
	return &wire.Exit{ContainerID: c.id, PID: c.pid}, nil
}

// birth makes the container, unless gone is closed first. With an error, undone tells the end of a process that is being killed; it may be nil.
func (a *Agent) birth(c *container, r *wire.Start, dirs []int, by maker, gone <-chan struct{}) (undone <-chan unix.WaitStatus, err error) {
	groups, err := c.joins(r.Plan.CgroupPath, r.Cgroups, dirs)
	if err != nil {
		return nil, err
	}
	var resolve uint64
	if r.LogIsReal {
		resolve = unix.RESOLVE_NO_SYMLINKS
	}
	if c.log, err = openLog(strings.Clone(r.LogPath), resolve); err != nil {
		return nil, err
	}
	if err := a.setSysctls(r.Sysctls); err != nil {
		return nil, err
	}
	process := &r.Plan.Process
	io, ends, err := c.pipes(process)
	defer func() {
		for _, fd := range ends {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return nil, err
	}
	a.births.RLock()
	defer a.born()
	if r.Plan.Users != nil {
		if a.users == nil {
			return nil, &wire.Failure{Text: "the pod has no user namespace"}
		}
		r.Plan.Users = a.users
	}
	child, err := by.start(&r.Plan, groups, io)
	if err != nil {
		killGroup(c.unified) // what another runtime has half made
		return nil, err
	}
	a.mu.Lock()
	closeIf(c.pidfd) // one that pause made
	c.pidfd = child.PIDFD
	a.mu.Unlock()
	select {
	case <-gone:
		closeIf(child.Master)
		c.kill()
		return a.register(child.PID), &wire.Failure{Text: "connection closed"}
	default:
	}
	a.mu.Lock()
	c.pid, c.startedAt = child.PID, time.Now().UnixNano()
	c.find(&r.Plan, child.PID)
	a.mu.Unlock()
	ended := a.register(child.PID)
	if process.Terminal {
		c.terminal(child.Master)
	}
	for _, s := range c.streams {
		c.readers.Go(func() { s.copy(c.log) })
	}
	c.ownPID = r.Plan.NewPID
	go a.await(c, ended)
	return nil, nil
}

// joins sorts the descriptors of a container's cgroups by hierarchy and keeps what its end needs.
func (c *container) joins(cgroupPath string, paths []string, dirs []int) (engine.Cgroups, error) {
	groups := engine.Cgroups{Unified: -1}
	for i, dir := range dirs {
		var st unix.Statfs_t
		if err := unix.Fstatfs(dir, &st); err != nil {
			return groups, err
		}
		if st.Type == unix.CGROUP2_SUPER_MAGIC {
			groups.Unified = dir
			continue
		}
		mount := strings.TrimSuffix(filepath.Clean(paths[i]), filepath.Clean("/"+cgroupPath))
		groups.V1 = append(groups.V1, engine.V1Cgroup{Name: filepath.Base(mount), Dir: dir})
	}
	var err error
	if groups.Unified >= 0 {
		if c.unified, err = duplicate(groups.Unified); err != nil {
			return groups, err
		}
	}
	for _, v1 := range groups.V1 {
		if v1.Name == "memory" {
			if c.memory, err = duplicate(v1.Dir); err != nil {
				return groups, err
			}
		}
	}
	if c.memory < 0 { // the unified hierarchy has the controller
		c.memory, err = duplicate(groups.Unified)
	}
	return groups, err
}

func duplicate(fd int) (int, error) {
	if fd < 0 {
		return -1, nil
	}
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
}

// await takes the container's exit: logs to the end, record, then everybody who watches.
func (a *Agent) await(c *container, ended <-chan unix.WaitStatus) {
	status := <-ended
	e := wire.Exit{ContainerID: c.id, PID: c.pid, ExitCode: exitCode(status), FinishedAt: time.Now().UnixNano()}
	a.mu.Lock()
	closeIf(c.slave) // the terminal's end is seen once nobody has it open
	c.slave = -1
	a.mu.Unlock()
	if !c.ownPID {
		c.kill() // what it started lives on in the pod's or the host's pid namespace
	}
	c.drain()
	e.OOMKilled = e.ExitCode == 128+int32(unix.SIGKILL) && c.oomKills() > 0
	folder := filepath.Join(a.setup.RecordDir, c.id)
	// A record that cannot be written is told all the same; only a daemon that is not there now would miss it.
	wire.WriteExit(folder, e)
	a.mu.Lock()
	defer a.mu.Unlock()
	c.exited, c.exit = true, e
	close(c.ended)
	for w := range a.watchers {
		w.add(e)
	}
	c.close()
}

// kill ends all processes of the container, also those that took another session or pid namespace, and the first one wherever somebody moved it.
func (c *container) kill() {
	killGroup(c.unified)
	unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
}

// killGroup ends all processes of a cgroup, a folder in the unified hierarchy, if there is one and the kernel can.
func killGroup(dir int) {
	if dir < 0 {
		return
	}
	fd, err := unix.Openat(dir, "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.Write(fd, []byte("1"))
}

// oomKills counts processes that the memory limit killed (memory.events on cgroup v2, memory.oom_control on v1).
func (c *container) oomKills() int {
	for _, name := range []string{"memory.events", "memory.oom_control"} {
		fd, err := unix.Openat(c.memory, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		b := make([]byte, 4096)
		n, _ := unix.Read(fd, b)
		unix.Close(fd)
		for _, line := range strings.Split(string(b[:max(n, 0)]), "\n") {
			if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
				kills, _ := strconv.Atoi(v)
				return kills
			}
		}
	}
	return 0
}

// close gives the descriptors back. The caller holds Agent.mu, or is the only one who knows c.
func (c *container) close() {
	for _, fd := range []*int{&c.pidfd, &c.pidns, &c.unified, &c.memory, &c.input, &c.slave} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
	for _, s := range c.streams {
		s.close()
	}
	if c.log != nil {
		c.log.close()
	}
}

// state is what the monitor tells of the container. The caller holds Agent.mu.
func (c *container) state() wire.Container {
	return wire.Container{ID: c.id, PID: c.pid, StartedAt: c.startedAt, Running: !c.exited,
		ExitCode: c.exit.ExitCode, OOMKilled: c.exit.OOMKilled, FinishedAt: c.exit.FinishedAt}
}

// signal sends a signal to the first process.
func (a *Agent) signal(m wire.Message) (wire.Coder, error) {
	var r wire.Signal
	if err := wire.Decode(m.Body, &r); err != nil {
		return nil, err
	}
	c, err := a.find(r.ContainerID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.exited {
		return nil, &wire.Failure{Kind: wire.FailedExited}
	}
	if err := unix.PidfdSendSignal(c.pidfd, unix.Signal(r.Signal), nil, 0); err == unix.ESRCH {
		return nil, &wire.Failure{Kind: wire.FailedExited}
	} else if err != nil {
		return nil, err
	}
	return &wire.ID{}, nil
}

// reopenLog makes the log anew.
func (a *Agent) reopenLog(m wire.Message) (wire.Coder, error) {
	c, err := a.named(m)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	exited := c.exited
	a.mu.Unlock()
	if exited {
		return nil, &wire.Failure{Kind: wire.FailedExited}
	}
	return &wire.ID{}, c.log.reopen()
}

// forget drops a container that has exited.
func (a *Agent) forget(m wire.Message) (wire.Coder, error) {
	var id wire.ID
	if err := wire.Decode(m.Body, &id); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.containers[id.ContainerID]; ok && !c.exited {
		return nil, &wire.Failure{Text: "container " + c.id + " is running"}
	}
	delete(a.containers, id.ContainerID)
	return &wire.ID{}, nil
}

func (a *Agent) named(m wire.Message) (*container, error) {
	var id wire.ID
	if err := wire.Decode(m.Body, &id); err != nil {
		return nil, err
	}
	return a.find(id.ContainerID)
}
