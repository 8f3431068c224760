package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// exitGrace is how long the monitor may take to tell an exit after the container was killed.
const exitGrace = 2 * time.Second

// exitUsual is how long that usually takes at most.
const exitUsual = 100 * time.Millisecond

// StopContainer ends a container: by its stop signal, and by force when it has not exited after timeout (0: at once). It is idempotent; one that
// does not run is stopped. A shorter timeout given in a second call counts from that call.
// Errors: ErrNotFound, ErrInvalid (the prefix is not unique), ctx's.
func (m *Manager) StopContainer(ctx context.Context, containerID string, timeout time.Duration) error {
	c, err := m.readyContainer(ctx, containerID) // waits for a start that is under way
	if err != nil {
		return err
	}
	c.turn.give() // a second call must be able to shorten the first one's timeout
	if m.containerRecord(c).State != store.Running {
		return nil
	}
	start := time.Now()
	if timeout <= 0 || !m.askToEnd(ctx, c, timeout) {
		if err := m.forceEnd(ctx, c); err != nil {
			return fmt.Errorf("stop container %s: %w", c.id, err)
		}
	}
	m.tellExit(ctx, c) // also when another call ended it
	m.logger(ctx).V(2).Info("Stopped container", "podSandboxID", c.pod.id, "containerID", c.id, "duration", time.Since(start))
	return nil
}

// askToEnd sends the stop signal and waits. True: the container has exited.
func (m *Manager) askToEnd(ctx context.Context, c *container, timeout time.Duration) bool {
	client, err := m.monitorOf(c.pod)
	if err == nil {
		call, cancel := context.WithTimeout(ctx, min(callTimeout, timeout))
		err = client.Signal(call, c.id, unix.Signal(m.containerRecord(c).StopSignal))
		cancel()
	}
	if err != nil && !errors.Is(err, monitor.ErrExited) { // one that has exited is about to be known as such
		m.logger(ctx).Info("Could not send the stop signal", "containerID", c.id, "err", err)
		return false
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-c.exited:
		return true
	case <-timer.C:
	case <-ctx.Done(): // the next call goes on from here
	}
	return false
}

// forceEnd kills a container's processes by their cgroup, which needs neither a new process nor the monitor, and waits for the exit to be
// known. When no monitor tells it, the kill is what is known.
func (m *Manager) forceEnd(ctx context.Context, c *container) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.effect("kill container"); err != nil {
		return err
	}
	cgroup := m.containerRecord(c).Cgroup
	c.killed.Store(true)
	if err := m.cfg.Cgroups.Kill(cgroup); err != nil {
		c.killed.Store(false)
		return err
	}
	if told, err := m.awaitExit(ctx, c); told || err != nil {
		return err
	}
	// No word from the monitor. The exit is not made up while a process, stuck in the kernel, is still there.
	if err := m.cfg.Cgroups.Wait(ctx, cgroup); err != nil {
		return err
	}
	e, known, err := m.recordedExit(c)
	if !known {
		e = exit{code: exitKilled, reason: ReasonUnknown, message: "it was killed, and its monitor did not tell how it exited"}
		m.logger(ctx).Info("Monitor did not tell an exit", "containerID", c.id, "err", err)
	}
	m.finish(ctx, c, e)
	return nil
}

// awaitExit waits a while for the monitor to tell that a container that was killed has exited. False: it did not. A first process that somebody has moved
// out of its cgroup was not killed: the monitor does that.
func (m *Manager) awaitExit(ctx context.Context, c *container) (bool, error) {
	client, err := m.monitorOf(c.pod)
	if err != nil { // nobody is there to tell
		return m.containerRecord(c).State == store.Exited, nil
	}
	grace, cancel := context.WithTimeout(ctx, exitGrace)
	defer cancel()
	usual := time.NewTimer(exitUsual)
	defer usual.Stop()
	select {
	case <-c.exited:
		return true, nil
	case <-usual.C:
		if err := client.Signal(grace, c.id, unix.SIGKILL); err != nil {
			m.logger(ctx).V(4).Info("Could not kill a container by its monitor", "containerID", c.id, "err", err)
		}
	case <-grace.Done():
	}
	select {
	case <-c.exited:
		return true, nil
	case <-grace.Done():
		return false, ctx.Err()
	}
}

// endContainer kills a container whatever its state, for a sandbox that is being stopped. What is being made or started ends first: neither
// goes on once the sandbox is not Ready.
func (m *Manager) endContainer(ctx context.Context, c *container) error {
	state, kill := m.containerRecord(c).State, []string{}
	if state == store.Created || state == store.Running { // perhaps with a start under way, or a hook that follows one: this cuts it short
		kill = append(kill, m.cfg.Cgroups.RuntimePath(c.id))
	}
	if state == store.Created {
		kill = append(kill, m.containerRecord(c).Cgroup)
	}
	for _, cgroup := range kill {
		if err := m.cfg.Cgroups.Kill(cgroup); err != nil {
			return err
		}
	}
	if err := c.turn.take(ctx); err != nil {
		return fmt.Errorf("container %s: wait for another call: %w", c.id, err)
	}
	defer c.turn.give()
	if m.containerGone(c) || m.containerRecord(c).State != store.Running {
		return nil
	}
	if err := m.forceEnd(ctx, c); err != nil {
		return fmt.Errorf("end container %s: %w", c.id, err)
	}
	return nil
}

// RemoveContainer removes a container, by force if it runs. It is idempotent: one that is unknown is removed. Its log file stays.
// Errors: ErrInvalid (the prefix is not unique), ctx's.
func (m *Manager) RemoveContainer(ctx context.Context, containerID string) error {
	c, err := m.readyContainer(ctx, containerID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer c.turn.give()
	start := time.Now()
	if err := m.removeContainer(ctx, c); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	m.logger(ctx).V(2).Info("Removed container", "podSandboxID", c.pod.id, "containerID", c.id, "duration", time.Since(start))
	return nil
}

// removeContainer removes a container from whatever state, its record last. Preconditions: its turn is held.
func (m *Manager) removeContainer(ctx context.Context, c *container) error {
	rec := m.containerRecord(c)
	if rec.State == store.Running {
		if err := m.forceEnd(ctx, c); err != nil {
			return err
		}
	}
	m.tellExit(ctx, c)
	if err := errors.Join(m.handlerOf(c.pod).end(ctx, c), m.removeCgroup(ctx, c)); err != nil {
		return err
	}
	if err := m.effect("release writable layer"); err != nil {
		return err
	}
	if err := m.cfg.RootFS.Release(ctx, rec.SnapshotKey); err != nil {
		return fmt.Errorf("release root filesystem: %w", err)
	}
	if rec.StartedAt != 0 {
		m.tellForget(ctx, c)
	}
	if err := m.effect("remove container record"); err != nil {
		return err
	}
	var shown *adjust.Container
	if m.cfg.Plugins.Active() {
		shown = m.showContainer(c)
	}
	if err := c.write.remove(func() error { return m.store.RemoveContainer(c.pod.id, c.id) }); err != nil {
		return err
	}
	m.forgetContainer(c)
	m.tellRemoved(ctx, c, shown)
	return nil
}

// tellForget lets the monitor drop what it knows of a container. A monitor that cannot be asked keeps a few bytes until the sandbox ends.
func (m *Manager) tellForget(ctx context.Context, c *container) {
	client, err := m.monitorOf(c.pod)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := client.Forget(ctx, c.id); err != nil {
		m.logger(ctx).V(4).Info("Monitor did not forget a container", "containerID", c.id, "err", err)
	}
}

// ReopenLog has the monitor open a running container's log file anew, after it was rotated.
// Errors: ErrNotFound, ErrState (it does not run).
func (m *Manager) ReopenLog(ctx context.Context, containerID string) error {
	c, err := m.recoveredContainer(ctx, containerID)
	if err != nil {
		return err
	}
	if state := m.containerRecord(c).State; state != store.Running {
		return fmt.Errorf("reopen log of container %s: it is %s, not Running: %w", c.id, state, ErrState)
	}
	client, err := m.monitorOf(c.pod)
	if err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := client.ReopenLog(ctx, c.id); err != nil {
		return fmt.Errorf("reopen log of container %s: %w", c.id, classify(err))
	}
	return nil
}
