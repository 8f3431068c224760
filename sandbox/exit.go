package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// lingerTimeout bounds the removal of a cgroup behind a container's exit, besides the time of hooks. RemoveContainer does it again.
const lingerTimeout = 10 * time.Second

// exit is how a container ended.
type exit struct {
	code            int32
	oom             bool
	reason, message string // "": what the code says
	at              int64  // nanoseconds since 1970
	pid             int
}

func seen(e monitor.Exit) exit {
	return exit{code: e.ExitCode, oom: e.OOMKilled, at: e.FinishedAt, pid: e.PID}
}

// sawExit takes an exit from the monitor. The monitor tells all that it knows after each connection, so most are old.
func (m *Manager) sawExit(p *pod, e monitor.Exit) {
	c, err := m.findContainer(e.ContainerID)
	if err != nil || c.pod != p {
		return
	}
	m.finish(m.ctx, c, seen(e))
}

// finish makes a container Exited, unless it is already, and kills what its first process left: in a pid namespace that it shares, its
// children live on. The cgroup is removed behind the call.
func (m *Manager) finish(ctx context.Context, c *container, e exit) {
	rec := m.containerRecord(c)
	if rec.State == store.Exited {
		return
	}
	if failed := c.start.failed.Load(); failed != nil { // it was killed for that
		e = exit{code: failed.code, reason: failed.reason, message: failed.message, at: e.at, pid: e.pid}
	}
	logger := m.logger(ctx)
	if !e.oom && e.code == exitKilled {
		kills, err := m.cfg.Cgroups.OOMKills(rec.Cgroup)
		if err != nil {
			logger.Info("Could not count OOM kills", "containerID", c.id, "err", err)
		}
		e.oom = kills > 0
	}
	if c.killed.Load() { // the count is of all processes that the container ever had
		e.oom = false
	}
	err := m.effect("kill container")
	if err == nil {
		err = m.cfg.Cgroups.Kill(rec.Cgroup)
	}
	err = errors.Join(err, m.updateContainer(c, func(rec *store.Container) {
		if rec.State != store.Exited {
			m.settle(c, rec, e)
		}
	}))
	if err != nil {
		logger.Error(err, "Could not finish a container that exited", "containerID", c.id)
	}
	logger.V(2).Info("Container exited", "podSandboxID", c.pod.id, "containerID", c.id, "exitCode", e.code, "oomKilled", e.oom)
	c.shed()
	m.background.start(func() { m.tellExit(m.ctx, c) })
	m.cleanUp(ctx, c)
}

// cleanUp takes away, behind the call, what a container that has exited leaves on the host, and runs the hooks that follow its end.
func (m *Manager) cleanUp(ctx context.Context, c *container) {
	logger := m.logger(ctx)
	m.background.start(func() {
		c.told.Lock() //nolint:staticcheck // a start may be under way, with hooks that follow it
		c.told.Unlock()
		ctx, cancel := context.WithTimeout(m.ctx, lingerTimeout+m.stoppedHooksTime(c))
		defer cancel()
		if m.effect("remove cgroup behind exit") != nil {
			return
		}
		if err := errors.Join(m.handlerOf(c.pod).end(ctx, c), m.cfg.Cgroups.Remove(ctx, m.containerRecord(c).Cgroup)); err != nil && m.ctx.Err() == nil {
			logger.Info("Could not clean up behind a container that exited", "containerID", c.id, "err", err)
		}
	})
}

// settle writes the end into the record.
func (m *Manager) settle(c *container, rec *store.Container, e exit) {
	if e.at == 0 {
		e.at = now()
	}
	if rec.StartedAt == 0 && e.reason != ReasonStartError {
		m.mu.RLock()
		rec.StartedAt = c.start.at
		m.mu.RUnlock()
		if rec.StartedAt == 0 || rec.StartedAt > e.at {
			rec.StartedAt = e.at
		}
	}
	if e.pid != 0 {
		rec.PID = e.pid
	}
	rec.State, rec.ExitCode, rec.FinishedAt, rec.Reason, rec.Message = store.Exited, e.code, e.at, e.reason, e.message
	switch {
	case e.reason != "":
	case e.oom:
		rec.Reason = ReasonOOMKilled
	case e.code == 0:
		rec.Reason = ReasonCompleted
	default:
		rec.Reason = ReasonError
	}
}

// recordedExit reads what the monitor wrote about a container's exit. False: it wrote nothing.
func (m *Manager) recordedExit(c *container) (exit, bool, error) {
	e, err := m.hooks.readExit(m.store.ExitPath(c.pod.id, c.id))
	if errors.Is(err, fs.ErrNotExist) {
		return exit{}, false, nil
	}
	if err != nil {
		return exit{}, false, fmt.Errorf("read how container %s exited: %w", c.id, err)
	}
	return seen(e), true, nil
}

// loseContainer settles a container that has no monitor any more: with the exit that the monitor recorded, or by killing it.
func (m *Manager) loseContainer(ctx context.Context, c *container, reason string) error {
	rec := m.containerRecord(c)
	if rec.State != store.Running && !(rec.State == store.Created && m.cfg.Cgroups.Exists(rec.Cgroup)) {
		return nil
	}
	e, known, err := m.recordedExit(c)
	if !known {
		e = exit{code: exitMonitorLost, reason: reason, message: "the pod's monitor ended while the container ran; it was killed"}
		if reason == ReasonUnknown {
			e.code, e.message = exitKilled, "the host was restarted while the container ran"
		}
		err = errors.Join(err, m.killContainer(ctx, c))
	}
	m.finish(ctx, c, e)
	return err
}

// killContainer kills all of a container's processes, and another runtime's that is about to make some, and waits until they are gone.
func (m *Manager) killContainer(ctx context.Context, c *container) error {
	if err := m.effect("kill container"); err != nil {
		return err
	}
	for _, cgroup := range []string{m.cfg.Cgroups.RuntimePath(c.id), m.containerRecord(c).Cgroup} {
		if err := m.cfg.Cgroups.Kill(cgroup); err != nil {
			return err
		}
		if err := m.cfg.Cgroups.Wait(ctx, cgroup); err != nil {
			return err
		}
	}
	return nil
}
