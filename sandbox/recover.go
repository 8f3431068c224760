package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// Bounds of recovery.
const (
	recoveryTimeout = 5 * time.Second  // of one sandbox
	recoveryWidth   = 32               // sandboxes at once
	sweepTimeout    = 30 * time.Second // of each kind of things
)

// recover loads the records into memory, so that lists answer at once, and deals with each sandbox in the background; then with what no
// record names.
func (m *Manager) recover() error {
	folders, err := m.store.Load()
	if err != nil {
		return err
	}
	// Before anything of our own runs.
	strays, err := m.runningMonitors()
	if err != nil {
		return err
	}
	runtimes, err := m.cfg.Cgroups.Runtimes()
	if err != nil {
		return err
	}
	for i := range folders {
		m.load(&folders[i])
	}
	m.background.start(func() {
		pause(m.ctx, recentTime)
		m.events.forgetRecent()
	})
	m.background.start(func() {
		slots := make(chan struct{}, recoveryWidth)
		var group sync.WaitGroup
		for _, p := range m.loaded() {
			slots <- struct{}{}
			group.Go(func() {
				defer func() { <-slots }()
				m.recoverPod(p)
			})
		}
		group.Wait()
		m.collect(func() error { return m.sweep(strays, runtimes) })
	})
	return nil
}

// loaded lists the sandboxes that wait for their recovery.
func (m *Manager) loaded() []*pod {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []*pod
	for _, p := range m.pods {
		if p.create == nil {
			all = append(all, p)
		}
	}
	return all
}

// load puts one sandbox with its containers into memory. What cannot be read is put there as NotReady or Exited, so that it can be seen and
// removed; it has no name.
func (m *Manager) load(folder *store.PodFolder) {
	logger := m.logger(m.ctx)
	p := &pod{id: folder.ID, turn: newTurn(), recovered: make(chan struct{}), config: &runtimeapi.PodSandboxConfig{}}
	err := folder.Err
	if err == nil {
		p.rec = *folder.Pod
		err = errors.Join(proto.Unmarshal(p.rec.Config, p.config), p.recallAttachment())
	}
	switch {
	case err == nil:
		p.name = podName(p.config.GetMetadata())
	case errors.Is(err, fs.ErrNotExist) && len(folder.Containers) == 0:
		// Cut short before the first record, or after the last: sweep takes what is left of it.
		if err := m.store.RemovePod(folder.ID); err != nil {
			logger.Error(err, "Could not remove an empty record", "podSandboxID", folder.ID)
		}
		return
	default:
		logger.Error(err, "Quarantined a sandbox whose record cannot be read", "podSandboxID", folder.ID)
		p.rec = store.Pod{ID: folder.ID, State: store.NotReady, CreatedAt: now(), Cgroup: m.cfg.Cgroups.Find(folder.ID), BootID: m.bootID}
		p.rec.Ancestors = []string{p.rec.Cgroup}
		p.config = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "quarantined-" + folder.ID[:13], Uid: folder.ID,
			Namespace: "berth-quarantine"}}
		p.message = "its record cannot be read: " + err.Error()
		p.lingering = true
	}
	if err := m.recallPodResources(p); err != nil {
		logger.Error(err, "Could not read what a sandbox was updated to", "podSandboxID", p.id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pods[p.id] = p
	if !p.lingering && (m.names[p.name] == nil || p.rec.State == store.Ready) {
		m.names[p.name] = p
	}
	p.told.stop = p.rec.State == store.NotReady
	for i := range folder.Containers {
		m.loadContainer(p, &folder.Containers[i])
		p.told.stop = p.told.stop && !m.runs(folder.Containers[i].ID)
	}
	known := p.rec.State != store.Creating && !p.lingering
	p.told.known, p.told.owed, p.told.stopOwed = known, known, known && !p.told.stop
}

// runs tells whether the record of a container says that it runs: then a stop of its sandbox was cut short. Preconditions: m.mu held.
func (m *Manager) runs(containerID string) bool {
	c := m.containers[containerID]
	return c != nil && c.rec.State == store.Running
}

// loadContainer puts one container into memory. Preconditions: m.mu held.
func (m *Manager) loadContainer(p *pod, folder *store.ContainerFolder) {
	config := &runtimeapi.ContainerConfig{}
	err := folder.Err
	var rec store.Container
	if err == nil {
		rec = *folder.Container
		err = proto.Unmarshal(rec.Config, config)
	}
	c := newContainer(p, folder.ID, "", config)
	if err == nil {
		err = c.limits.recall(rec.Resources)
	}
	switch {
	case err == nil:
		c.name = containerName(p.id, config.GetMetadata())
		c.recallUser(&rec)
		m.childNames[c.name] = c
	case errors.Is(err, fs.ErrNotExist):
		if err := m.store.RemoveContainer(p.id, folder.ID); err != nil {
			m.logger(m.ctx).Error(err, "Could not remove an empty record", "containerID", folder.ID)
		}
		return // the writable layer, if there is one, goes with the sweep
	default:
		m.logger(m.ctx).Error(err, "Quarantined a container whose record cannot be read", "podSandboxID", p.id, "containerID", folder.ID)
		c.config = &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "quarantined-" + folder.ID[:13]}, Image: &runtimeapi.ImageSpec{}}
		// Running, so that recovery kills what may run; it ends as Exited.
		rec = store.Container{ID: folder.ID, SandboxID: p.id, State: store.Running, CreatedAt: now(),
			Place: store.Place{SnapshotKey: folder.ID, Cgroup: p.rec.Cgroup + "/" + folder.ID}}
		rec.Message = "its record cannot be read: " + err.Error()
	}
	c.rec = rec
	if rec.State == store.Exited {
		close(c.exited)
	}
	c.told.known, c.told.owed, c.told.stopOwed = true, true, rec.State == store.Running
	m.containers[c.id] = c
}

func (p *pod) recallAttachment() error {
	if len(p.rec.Attachment) == 0 {
		return nil
	}
	p.attachment = &cni.Attachment{}
	if err := json.Unmarshal(p.rec.Attachment, p.attachment); err != nil {
		return fmt.Errorf("decode attachment: %w", err)
	}
	return nil
}

// recoverPod brings one sandbox to what its record says, or says why not.
func (m *Manager) recoverPod(p *pod) {
	ctx, cancel := context.WithTimeout(m.ctx, recoveryTimeout)
	defer cancel()
	if p.turn.take(ctx) != nil {
		return
	}
	defer p.turn.give()
	defer close(p.recovered)
	start := time.Now()
	err := protect(func() error { return m.recoverState(ctx, p) })
	logger := m.logger(m.ctx)
	if err != nil && m.ctx.Err() == nil {
		logger.Error(err, "Could not recover a sandbox", "podSandboxID", p.id)
		m.mu.Lock()
		p.message = "its recovery failed: " + err.Error()
		m.mu.Unlock()
		return
	}
	logger.V(2).Info("Recovered sandbox", "podSandboxID", p.id, "state", m.podState(p), "duration", time.Since(start))
}

func (m *Manager) recoverState(ctx context.Context, p *pod) error {
	rec := m.record(p)
	switch {
	case rec.State == store.Creating: // nobody waits for it any more
		return m.undoPod(ctx, p)
	case rec.State == store.Ready && rec.BootID != m.bootID:
		m.abandon(ctx, p, ReasonUnknown)
		return nil
	case rec.State == store.Ready:
		return m.reattach(ctx, p, &rec)
	}
	// A stop that was cut short goes on, with the monitor to tell how the containers exit. What it does is nothing when it had ended.
	err := m.findMonitor(p)
	if m.linkOf(p) != nil {
		m.follow(p)
	}
	err = errors.Join(err, m.stopPod(ctx, p))
	if m.ctx.Err() != nil { // the next daemon goes on
		return err
	}
	return errors.Join(err, each(m.containersOf(p), func(c *container) error { return m.loseContainer(ctx, c, ReasonUnknown) }))
}

// reattach connects to the monitor of a sandbox that is ready, and takes what happened meanwhile. Without a monitor the sandbox is not ready
// any more; with one that does not answer, or cannot be connected to, neither, but it is left to StopPod to end.
func (m *Manager) reattach(ctx context.Context, p *pod, rec *store.Pod) error {
	var l *link
	err := outlast(ctx, func() (err error) { l, err = m.connect(p, rec.Monitor, nil); return err })
	if errors.Is(err, os.ErrProcessDone) {
		m.abandon(ctx, p, ReasonMonitorLost)
		return nil
	}
	var hello monitor.Hello
	if err == nil {
		m.setLink(p, l)
		err = outlast(ctx, func() (err error) { hello, err = l.client.Hello(ctx); return err })
	}
	ended := err != nil && l != nil && l.endsWithin(endTimeout) // one that is killed loses its sockets before it is gone
	if m.ctx.Err() != nil {                                     // the daemon ends: that says nothing of the monitor
		return m.ctx.Err()
	}
	if err != nil && !ended {
		return errors.Join(fmt.Errorf("its monitor does not answer: %w", err), m.updatePod(p, func(rec *store.Pod) { rec.State = store.NotReady }))
	}
	if err != nil {
		m.abandon(ctx, p, ReasonMonitorLost)
		return nil
	}
	m.mu.Lock()
	l.pidInit = hello.PIDNSInit
	m.mu.Unlock()
	known := map[string]monitor.ContainerState{}
	for _, state := range hello.Containers {
		known[state.ID] = state
	}
	err = each(m.containersOf(p), func(c *container) error {
		state, ok := known[c.id]
		if !ok {
			return m.fence(ctx, c)
		}
		return m.adopt(ctx, c, state)
	})
	m.follow(p)
	m.watchScope(p)
	return err
}

// outlast does something again as long as it fails for a shortage, until ctx ends.
func outlast(ctx context.Context, do func() error) error {
	for {
		err := do()
		if !store.Shortage(err) {
			return err
		}
		if pause(ctx, watchPause); ctx.Err() != nil {
			return err
		}
	}
}

// adopt takes a container's state from its monitor.
func (m *Manager) adopt(ctx context.Context, c *container, state monitor.ContainerState) error {
	rec := m.containerRecord(c)
	switch {
	case rec.State == store.Exited:
		m.resumeEnd(ctx, c)
		return nil
	case len(rec.Config) == 0: // its record cannot be read
		err := m.killContainer(ctx, c)
		m.finish(ctx, c, exit{code: exitKilled, reason: ReasonUnknown, message: rec.Message})
		return err
	case !state.Running:
		e, known, err := m.recordedExit(c)
		if !known {
			e = exit{code: state.ExitCode, oom: state.OOMKilled, at: state.FinishedAt, pid: state.PID}
		}
		m.finish(ctx, c, e)
		return err
	case rec.State == store.Running && rec.PID == state.PID:
		return errors.Join(m.endStartedHook(ctx, c), m.settleUpdate(ctx, c))
	}
	return m.updateContainer(c, func(rec *store.Container) {
		rec.State, rec.PID = store.Running, state.PID
		if rec.StartedAt == 0 {
			rec.StartedAt = state.StartedAt
		}
	})
}

// resumeEnd goes on behind the call with what follows an exit, if that was cut short: the recovery of a sandbox does not wait for hooks.
func (m *Manager) resumeEnd(ctx context.Context, c *container) {
	if _, err := os.Lstat(m.bundle(c)); err == nil {
		m.cleanUp(ctx, c)
	}
}

// endStartedHook ends a hook that followed the start of a container that runs: nobody waits for it any more, nor for its time to be up.
func (m *Manager) endStartedHook(ctx context.Context, c *container) error {
	group := m.cfg.Cgroups.RuntimePath(c.id)
	if !m.cfg.Cgroups.Exists(group) {
		return nil
	}
	return errors.Join(m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(ctx, group))
}

// fence settles a container that its monitor does not know. A created one whose start was cut short gets its cgroups removed, so that a
// request that the monitor reads late cannot start it any more; it stays Created.
func (m *Manager) fence(ctx context.Context, c *container) error {
	rec := m.containerRecord(c)
	switch rec.State {
	case store.Running:
		return m.loseContainer(ctx, c, ReasonUnknown)
	case store.Exited:
		m.resumeEnd(ctx, c)
		return nil
	}
	if m.cfg.Cgroups.Exists(rec.Cgroup) || m.cfg.Cgroups.Exists(m.cfg.Cgroups.RuntimePath(c.id)) {
		if err := errors.Join(m.killContainer(ctx, c), m.removeCgroup(ctx, c)); err != nil {
			return err
		}
	}
	return m.handlerOf(c.pod).end(ctx, c)
}
