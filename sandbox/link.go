package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// Deadlines of calls to a monitor. One that is stopped, or hangs, accepts calls and never answers.
const (
	callTimeout  = 5 * time.Second // signals, logs, farewells
	startTimeout = 2 * time.Minute // mounts may be on a network
	endTimeout   = 2 * time.Second // the monitor's own end
	watchPause   = 50 * time.Millisecond
	awaitPause   = 5 * time.Millisecond
)

// link is the connection to one sandbox's monitor.
type link struct {
	client  Monitor
	process store.Process
	pidfd   *os.File      // non-blocking, for the poller; closed by awaitEnd
	dead    chan struct{} // closed when the process has ended
	pidInit int           // first process of the shared pid namespace, 0 without; guarded by Manager.mu

	life context.Context //nolint:containedctx // ends with the process, or with the Manager
	end  context.CancelFunc
}

// connect makes the link to a running monitor. pidfd may be nil: then it is found by pid and start time. It is not taken over.
// The error wraps os.ErrProcessDone when the process has ended.
func (m *Manager) connect(p *pod, process store.Process, pidfd *os.File) (*link, error) {
	own, err := ownPidfd(process, pidfd)
	if err != nil {
		return nil, fmt.Errorf("connect to monitor %d: %w", process.PID, err)
	}
	l := &link{client: m.cfg.Dial(m.socket(p.id)), process: process, pidfd: own, dead: make(chan struct{})}
	l.life, l.end = context.WithCancel(m.ctx)
	if !m.background.start(l.awaitEnd) {
		l.end()
		return nil, errors.Join(ErrClosing, own.Close())
	}
	return l, nil
}

func ownPidfd(process store.Process, pidfd *os.File) (*os.File, error) {
	var fd int
	var err error
	if pidfd != nil {
		fd, err = unix.FcntlInt(pidfd.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	} else {
		fd, err = openProcess(process)
	}
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // so that the runtime's poller takes it, and no thread waits
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// openProcess opens a pidfd of exactly this process. os.ErrProcessDone: it has ended, whoever has its pid now.
func openProcess(process store.Process) (int, error) {
	if process.PID <= 0 {
		return -1, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(process.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return -1, os.ErrProcessDone
	}
	if err != nil {
		return -1, err
	}
	// Looked at after the pidfd is held: the pid cannot go to another process from here on.
	started, _, err := processStat(process.PID)
	if err == nil && started == process.StartTime {
		return fd, nil
	}
	unix.Close(fd)
	if err == nil || isGone(err) {
		return -1, os.ErrProcessDone
	}
	return -1, err
}

// isGone tells whether processStat found that the process has ended.
func isGone(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrProcessDone)
}

// processStat reads start time (clock ticks since boot) and parent of a process (proc_pid_stat(5), fields 22 and 4).
func processStat(pid int) (start uint64, parent int, err error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	_, after, _ := strings.Cut(string(text[max(0, strings.LastIndexByte(string(text), ')')):]), " ")
	fields := strings.Fields(after)
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, 0, os.ErrProcessDone
	}
	parent, perr := strconv.Atoi(fields[1])
	start, serr := strconv.ParseUint(fields[19], 10, 64)
	return start, parent, errors.Join(perr, serr)
}

// awaitEnd closes dead when the process has ended, and reaps it if it is a child. It gives up when life ends.
func (l *link) awaitEnd() {
	defer l.end()
	stop := context.AfterFunc(l.life, func() { l.pidfd.SetReadDeadline(time.Now()) })
	defer stop()
	defer l.pidfd.Close()
	raw, err := l.pidfd.SyscallConn()
	if err != nil {
		return
	}
	ended := false
	raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		ended = err == nil && n == 1
		if ended {
			unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil) // ECHILD when an earlier daemon started it
		}
		return ended
	})
	if ended {
		close(l.dead)
	}
}

func (l *link) ended() bool {
	select {
	case <-l.dead:
		return true
	default:
		return false
	}
}

// endsWithin waits for the process's end, for d at most.
func (l *link) endsWithin(d time.Duration) bool {
	pause(l.life, d)
	return l.ended()
}

// kill ends the monitor by force and waits until it is gone.
func (l *link) kill(ctx context.Context) error {
	if l.ended() {
		return nil
	}
	fd, err := openProcess(l.process)
	if err == nil {
		err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		unix.Close(fd)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill monitor %d: %w", l.process.PID, err)
	}
	return l.await(ctx)
}

// await waits until the process has ended, also when the Manager ends: then awaitEnd does not tell it any more.
func (l *link) await(ctx context.Context) error {
	select {
	case <-l.dead:
	case <-l.life.Done():
	case <-ctx.Done():
	}
	for !l.ended() {
		fd, err := openProcess(l.process)
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		if err == nil {
			unix.Close(fd)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the end of monitor %d: %w", l.process.PID, ctx.Err())
		}
		pause(ctx, awaitPause)
	}
	return nil
}

func (m *Manager) linkOf(p *pod) *link {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return p.link
}

func (m *Manager) setLink(p *pod, l *link) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p.link = l
}

// follow takes the exits of the sandbox's containers from its monitor, and sees its end.
func (m *Manager) follow(p *pod) {
	l := m.linkOf(p)
	m.background.start(func() {
		for l.life.Err() == nil {
			err := l.client.Watch(l.life, func(exit monitor.Exit) { m.sawExit(p, exit) })
			if l.life.Err() != nil {
				break
			}
			m.logger(m.ctx).V(4).Info("Lost the exits of a monitor", "podSandboxID", p.id, "err", err)
			pause(l.life, watchPause)
		}
		if l.ended() && m.ctx.Err() == nil {
			m.lostMonitor(p, l)
		}
	})
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// lostMonitor ends what a monitor that nobody ended leaves behind: without it a container has nobody to write its log or to tell how it
// exits, so its containers are killed.
func (m *Manager) lostMonitor(p *pod, l *link) {
	if p.turn.take(m.ctx) != nil {
		return
	}
	defer p.turn.give()
	if m.linkOf(p) != l { // it was ended by StopPod, or the sandbox is gone
		return
	}
	if m.record(p).State == store.NotReady { // a stop that was given up had asked it to end
		m.logger(m.ctx).V(2).Info("Went on with the stop of a sandbox", "podSandboxID", p.id)
	} else {
		m.logger(m.ctx).Error(nil, "Lost the monitor of a sandbox", "podSandboxID", p.id, "pid", l.process.PID)
	}
	ctx, cancel := context.WithTimeout(m.ctx, undoTimeout)
	defer cancel()
	m.abandon(ctx, p, ReasonMonitorLost)
}

// abandon makes a sandbox without a monitor NotReady, and its containers Exited, and gives back what it holds of the host: it never becomes ready
// again. What cannot be given back is left to StopPod. Preconditions: the sandbox's turn is held.
func (m *Manager) abandon(ctx context.Context, p *pod, reason string) {
	m.mu.Lock()
	p.link, p.message = nil, "its monitor has ended"
	m.mu.Unlock()
	err := m.updatePod(p, func(rec *store.Pod) { rec.State, rec.Monitor = store.NotReady, store.Process{} })
	err = errors.Join(err, each(m.containersOf(p), func(c *container) error { return m.loseContainer(ctx, c, reason) }))
	err = errors.Join(err, m.stopPod(ctx, p))
	if err != nil {
		m.logger(ctx).Error(err, "Could not clean up after a lost monitor", "podSandboxID", p.id)
	}
}
