package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// oomScore is the monitor's own: it goes after everything else in a pod, and before the daemon.
const oomScore = "-998"

// Agent is one pod's monitor.
type Agent struct {
	setup  wire.Setup
	users  *engine.UserNamespace // the pod's, or nil
	init   engine.Child          // of the shared pid namespace; PID 0 is none
	ended  chan os.Signal        // a child has ended, or may have without notice
	births sync.RWMutex          // held for reading while a child is made and not yet in children
	execs  chan struct{}         // has a place for each that is being started
	trim   trimmer

	mu         sync.Mutex
	containers map[string]*container
	children   map[int]chan unix.WaitStatus
	watchers   map[*watcher]struct{}
}

// execsAtOnce is how many execs may be starting. Each needs a thread, which Go keeps; more at once start no sooner.
const execsAtOnce = 16

// users is the descriptor of the pod's user namespace, when it has one.
const users = 4

// Run serves the listening socket for the pod that setup describes. It returns when it is told to shut down.
func Run(setup io.Reader, socket int) error {
	a := newAgent()
	b, err := io.ReadAll(setup)
	if err != nil {
		return fmt.Errorf("read set-up: %w", err)
	}
	if err := wire.Decode(b, &a.setup); err != nil {
		return fmt.Errorf("read set-up: %w", err)
	}
	if len(a.setup.UIDs) > 0 {
		unix.CloseOnExec(users)
		a.users = &engine.UserNamespace{UIDs: a.setup.UIDs, GIDs: a.setup.GIDs, Descriptor: users}
	}
	protect()
	engine.DefaultSignals()
	signal.Notify(a.ended, unix.SIGCHLD)
	// The daemon's end, a terminal's end and a closed log are no reasons to end. Caught and not ignored: what is ignored
	// stays ignored in the containers.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGPIPE)
	go a.reap()
	failed := a.prepare()
	return a.serve(socket, failed)
}

func newAgent() *Agent {
	return &Agent{ended: make(chan os.Signal, 1), execs: make(chan struct{}, execsAtOnce), containers: map[string]*container{},
		children: map[int]chan unix.WaitStatus{}, watchers: map[*watcher]struct{}{}}
}

// protect keeps containers from reading the monitor's memory, and makes it the parent of what they leave behind.
func protect() {
	os.WriteFile("/proc/self/comm", []byte("berth-monitor"), 0) // else it is that of the descriptor it was executed by
	unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)                // no core file either; a limit would be the containers' too
	unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	// What the daemon was started with by accident goes into no other runtime's program, which might hand it on to its container.
	unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC)
	os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0) // without CAP_SYS_RESOURCE it stays the daemon's
}

// prepare sets up what belongs to the pod. The error is told to everyone who says hello.
func (a *Agent) prepare() error {
	if a.setup.Hostname != "" {
		if err := unix.Sethostname([]byte(a.setup.Hostname)); err != nil {
			return fmt.Errorf("set hostname %q: %w", a.setup.Hostname, err)
		}
	}
	if err := a.setSysctls(a.setup.Sysctls); err != nil {
		return err
	}
	if a.setup.SharedPID {
		a.births.RLock()
		defer a.born()
		child, err := engine.StartInit(a.users)
		if err != nil {
			return fmt.Errorf("start the pod's init: %w", err)
		}
		a.init = child
		a.register(child.PID)
	}
	return nil
}

// setSysctls sets kernel parameters of the pod's namespaces.
func (a *Agent) setSysctls(list []wire.Sysctl) error {
	for _, s := range list {
		path := "/proc/sys/" + strings.ReplaceAll(s.Key, ".", "/")
		err := writeFile(path, s.Value)
		if a.users != nil && errors.Is(err, unix.EACCES) {
			// Those of an ipc namespace belong to root of its user namespace, and to no capability (ipc/ipc_sysctl.c).
			err = a.users.Impersonate(func() error { return writeFile(path, s.Value) })
		}
		if err != nil {
			return fmt.Errorf("set kernel parameter %s to %q: %w", s.Key, s.Value, err)
		}
	}
	return nil
}

func writeFile(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return errors.Unwrap(err)
	}
	_, err = f.WriteString(value)
	return errors.Join(errors.Unwrap(err), f.Close())
}

// reap collects every child that ends, also those that containers left to their nearest subreaper. Those may be taken only
// while no child is being made, which the engine waits for itself; but a birth may hang, and known children do not wait for it.
func (a *Agent) reap() {
	for range a.ended {
		a.mu.Lock()
		for known := range a.children {
			a.collect(known)
		}
		a.mu.Unlock()
		if a.births.TryLock() { // else born asks again
			a.mu.Lock()
			for a.collect(-1) {
			}
			a.mu.Unlock()
			a.births.Unlock()
		}
	}
}

// collect takes one exit, of the child pid or with -1 of any, and tells whether there was one. The caller holds mu.
func (a *Agent) collect(pid int) bool {
	var status unix.WaitStatus
	pid, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil) // never EINTR: it does not block
	if err != nil || pid <= 0 {
		return false
	}
	if waiter, ok := a.children[pid]; ok {
		delete(a.children, pid)
		waiter <- status
	}
	return true
}

// born ends what births.RLock began.
func (a *Agent) born() {
	a.births.RUnlock()
	select {
	case a.ended <- unix.SIGCHLD:
	default:
	}
}

// register returns where the exit of a child arrives. The caller holds births for reading since before the birth.
func (a *Agent) register(pid int) <-chan unix.WaitStatus {
	waiter := make(chan unix.WaitStatus, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.children[pid] = waiter
	return waiter
}

// exitCode is the shell's: a signal's number counts from 128.
func exitCode(status unix.WaitStatus) int32 {
	if status.Signaled() {
		return 128 + int32(status.Signal())
	}
	return int32(status.ExitStatus())
}

// find returns a container that was born.
func (a *Agent) find(containerID string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.containers[containerID]; ok && c.pid != 0 {
		return c, nil
	}
	return nil, &wire.Failure{Kind: wire.FailedNotFound}
}

// shutdown kills what is left of the pod.
func (a *Agent) shutdown() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.containers {
		if c.pid != 0 && !c.exited {
			c.kill()
		}
	}
	if a.init.PID != 0 {
		unix.PidfdSendSignal(a.init.PIDFD, unix.SIGKILL, nil, 0)
	}
}
