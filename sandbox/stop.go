package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/berthd/berth/sandbox/store"
)

// StopPod kills the containers of a sandbox, gives its network back, ends its monitor and takes its mounts away. It is idempotent, and may be
// repeated after an error. The containers and the record stay. Errors: ErrNotFound, ErrInvalid (the prefix is not unique).
func (m *Manager) StopPod(ctx context.Context, sandboxID string) error {
	p, err := m.findPod(sandboxID)
	if err != nil {
		return err
	}
	if err := m.ready(ctx, p); err != nil {
		return err
	}
	defer p.turn.give()
	if m.gone(p) {
		return nil
	}
	start := time.Now()
	if err := m.stopPod(ctx, p); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", p.id, err)
	}
	m.logger(ctx).V(2).Info("Stopped sandbox", "podSandboxID", p.id, "duration", time.Since(start))
	return nil
}

// stopPod stops a sandbox, from whatever state. Preconditions: its turn is held.
func (m *Manager) stopPod(ctx context.Context, p *pod) error {
	if rec := m.record(p); rec.State != store.NotReady {
		// From here on no container is created or started. A record that cannot be written does not keep the sandbox from being stopped: at
		// the next start its monitor is not there, which says the same.
		m.tolerate(p, m.updatePod(p, func(rec *store.Pod) { rec.State = store.NotReady }))
	}
	// What cannot be killed keeps its network and its monitor: the next call goes on from here.
	if err := each(m.containersOf(p), func(c *container) error { return m.endContainer(ctx, c) }); err != nil {
		return err
	}
	by := m.handlerOf(p)
	if err := each(m.containersOf(p), func(c *container) error { return by.end(ctx, c) }); err != nil {
		return err
	}
	m.tellStopped(p)
	m.tellPodStopped(ctx, p)
	return m.tearDown(ctx, p)
}

// tolerate logs that a record could not be written where that must not keep a sandbox from being stopped.
func (m *Manager) tolerate(p *pod, recordErr error) {
	if recordErr != nil {
		m.logger(m.ctx).Error(recordErr, "Could not record that a sandbox is stopped", "podSandboxID", p.id)
	}
}

// tearDown takes away all that a sandbox has on the host but its containers' records: network, monitor, mounts, pin, state folder. It is
// idempotent, and goes as far as it can. Preconditions: the sandbox's turn is held.
func (m *Manager) tearDown(ctx context.Context, p *pod) error {
	p.gauge.close(&m.meters) // it holds the network namespace
	detached := make(chan error, 1)
	go func() { detached <- protect(func() error { return m.detach(ctx, p) }) }()
	ended := m.endMonitor(ctx, p)
	err := errors.Join(<-detached, ended)
	if ended == nil {
		err = errors.Join(err, m.unmount(p), m.releaseScope(p))
	}
	// The pin is the way to the network namespace: it stays until the network has let go of it.
	if m.attached(p) {
		return err
	}
	if stepErr := m.effect("unpin network namespace"); stepErr != nil {
		return errors.Join(err, stepErr)
	}
	return errors.Join(err, m.pins.Unpin(p.id))
}

func (m *Manager) attached(p *pod) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return p.attachment != nil
}

// detach gives the network back. The record keeps the attachment until the network has nothing of it.
func (m *Manager) detach(ctx context.Context, p *pod) error {
	m.mu.RLock()
	attachment := p.attachment
	m.mu.RUnlock()
	if attachment == nil {
		return nil
	}
	if err := m.effect("delete network"); err != nil {
		return err
	}
	if err := m.cfg.Network.Del(ctx, *attachment); err != nil {
		return fmt.Errorf("give network back: %w", err)
	}
	if _, err := m.setAttachment(p, nil); err != nil {
		return err
	}
	if m.record(p).State == store.Creating { // the record goes as a whole
		return nil
	}
	m.tolerate(p, m.updatePod(p, func(rec *store.Pod) { rec.Attachment = nil }))
	return nil
}

// endMonitor asks the monitor to end, and makes it.
func (m *Manager) endMonitor(ctx context.Context, p *pod) error {
	if err := m.effect("end monitor"); err != nil {
		return err
	}
	if err := m.findMonitor(p); err != nil {
		return err
	}
	l := m.linkOf(p)
	if l == nil {
		return nil
	}
	farewell, cancel := context.WithTimeout(ctx, endTimeout)
	err := l.client.Shutdown(farewell)
	if err == nil {
		err = l.await(farewell)
	}
	cancel()
	if err != nil && !l.ended() {
		m.logger(ctx).Info("Monitor did not end when asked to", "podSandboxID", p.id, "pid", l.process.PID, "err", err)
		end, cancel := context.WithTimeout(ctx, endTimeout)
		defer cancel()
		if err := l.kill(end); err != nil {
			return err
		}
	}
	m.setLink(p, nil)
	return nil
}

// findMonitor links the sandbox to the monitor that an earlier daemon left, if there is one.
func (m *Manager) findMonitor(p *pod) error {
	if m.linkOf(p) != nil {
		return nil
	}
	l, err := m.strayMonitor(p)
	if l != nil {
		m.setLink(p, l)
	}
	return err
}

// strayMonitor finds the monitor of a sandbox that an earlier daemon began: by the record, else by its socket. nil, nil: there is none.
func (m *Manager) strayMonitor(p *pod) (*link, error) {
	rec := m.record(p)
	if rec.BootID != m.bootID {
		return nil, nil
	}
	process := rec.Monitor
	if process.PID == 0 {
		if _, err := os.Stat(m.socket(p.id)); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(m.ctx, endTimeout)
		defer cancel()
		hello, err := m.cfg.Dial(m.socket(p.id)).Hello(ctx)
		if m.ctx.Err() != nil { // the daemon ends: that says nothing of the monitor
			return nil, m.ctx.Err()
		}
		if err != nil {
			return nil, nil //nolint:nilerr // it does not answer: sweepMonitors finds it by its cgroup
		}
		started, _, err := processStat(hello.PID)
		if err != nil {
			return nil, nil //nolint:nilerr // it has ended meanwhile
		}
		process = store.Process{PID: hello.PID, StartTime: started}
	}
	l, err := m.connect(p, process, nil)
	if errors.Is(err, os.ErrProcessDone) {
		return nil, nil
	}
	return l, err
}

// unmount takes the sandbox's folder with its mount away.
func (m *Manager) unmount(p *pod) error {
	if err := m.effect("remove state folder"); err != nil {
		return err
	}
	return m.removeStateDir(p.id)
}

// RemovePod stops a sandbox and removes it with its containers. It is idempotent: one that is unknown is removed.
// Errors: ErrInvalid (the prefix is not unique).
func (m *Manager) RemovePod(ctx context.Context, sandboxID string) error {
	p, err := m.findPod(sandboxID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.ready(ctx, p); err != nil {
		return err
	}
	defer p.turn.give()
	if m.gone(p) {
		return nil
	}
	start := time.Now()
	if err := m.removePod(ctx, p); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", p.id, err)
	}
	m.logger(ctx).V(2).Info("Removed sandbox", "podSandboxID", p.id, "duration", time.Since(start))
	return nil
}

// removePod removes a sandbox from whatever state. Preconditions: its turn is held.
func (m *Manager) removePod(ctx context.Context, p *pod) error {
	if err := m.stopPod(ctx, p); err != nil {
		return err
	}
	err := each(m.containersOf(p), func(c *container) error {
		if err := c.turn.take(ctx); err != nil {
			return fmt.Errorf("container %s: wait for another call: %w", c.id, err)
		}
		defer c.turn.give()
		if m.containerGone(c) {
			return nil
		}
		return m.removeContainer(ctx, c)
	})
	if err != nil {
		return err
	}
	return m.dropPod(ctx, p)
}

// dropPod removes the cgroups that berth made for the sandbox, and then its record, which names them.
func (m *Manager) dropPod(ctx context.Context, p *pod) error {
	if err := m.effect("remove ancestor cgroups"); err != nil {
		return err
	}
	for _, cgroup := range slices.Backward(m.record(p).Ancestors) {
		if err := m.cfg.Cgroups.RemoveEmpty(cgroup); err != nil {
			return err
		}
	}
	if err := m.effect("remove pod record"); err != nil {
		return err
	}
	if err := p.write.remove(func() error { return m.store.RemovePod(p.id) }); err != nil {
		return err
	}
	m.forgetPod(p)
	m.tellPodRemoved(ctx, p)
	return nil
}
