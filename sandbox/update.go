package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/store"
)

// updateTimeout bounds an update, for which the kernel may have to reclaim memory.
const updateTimeout = time.Minute

// UpdateContainer changes what a created or running container may use: what update sets; the rest stays. It is all or nothing, also when the
// daemon is killed meanwhile, and is carried through when ctx ends. The score that the kernel's memory killer goes by is a process's own once it
// runs, and stays.
// What plugins ask for of other containers is done after.
// Errors: ErrNotFound, ErrState (it is neither, or it uses more than it would have), *spec.InvalidError, ErrInvalid (the kernel refuses a value).
func (m *Manager) UpdateContainer(ctx context.Context, containerID string, update *runtimeapi.LinuxContainerResources) error {
	return m.changeLimits(ctx, containerID, func(ctx context.Context, c *container) ([]adjust.Update, error) {
		asked, others, err := m.askUpdate(ctx, c, update)
		if err != nil {
			return nil, err
		}
		if err := m.applyUpdate(ctx, c, asked); err != nil {
			return nil, err
		}
		if m.cfg.Plugins.Active() {
			m.notifyContainer(ctx, adjust.UpdatedContainer, m.showContainer(c))
		}
		return others, nil
	})
}

// changeLimits does an update in the container's turn, and those of others that it returns after: two containers whose updates are each other's would
// wait for each other's turn. All of it is carried through when ctx ends.
func (m *Manager) changeLimits(ctx context.Context, containerID string, update func(context.Context, *container) ([]adjust.Update, error)) error {
	c, err := m.readyContainer(ctx, containerID)
	if err != nil {
		return err
	}
	err = m.carryThrough(ctx, c, updateTimeout, func(ctx context.Context) (then func(context.Context) error, err error) {
		start := time.Now()
		others, err := update(ctx, c)
		if err != nil {
			return nil, err
		}
		m.logger(ctx).V(2).Info("Updated container", "podSandboxID", c.pod.id, "containerID", c.id, "duration", time.Since(start))
		return func(ctx context.Context) error { return m.doUpdates(ctx, others) }, nil
	})
	if err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	return nil
}

// applyUpdate records the update, applies it, and records that it is applied. Preconditions: the container's turn is held.
func (m *Manager) applyUpdate(ctx context.Context, c *container, update *runtimeapi.LinuxContainerResources) error {
	rec := m.containerRecord(c)
	if rec.State != store.Created && rec.State != store.Running {
		return fmt.Errorf("it is %s, neither Created nor Running: %w", rec.State, ErrState)
	}
	merged := spec.MergeResources(c.asked(), update)
	if rec.State == store.Running {
		merged.OomScoreAdj = c.asked().GetOomScoreAdj()
	}
	limits, err := spec.Update(merged, update, m.cfg.Host)
	if err != nil {
		return err
	}
	for _, note := range limits.Notes {
		m.logger(ctx).Info("Container does not get all that it asks for", "containerID", c.id, "field", note.Field, "rule", note.String())
	}
	packed, err := proto.MarshalOptions{Deterministic: true}.Marshal(merged)
	if err != nil {
		return fmt.Errorf("serialize resources: %w", err)
	}
	if rec.State == store.Created { // the cgroup is made when it starts
		return m.commitUpdate(c, merged, packed)
	}
	if err := m.updateContainer(c, func(rec *store.Container) { rec.Changing = packed }); err != nil {
		return errors.Join(err, m.updateContainer(c, func(rec *store.Container) { rec.Changing = nil }))
	}
	err = m.effect("update cgroup")
	if err == nil {
		err = m.cfg.Cgroups.Update(rec.Cgroup, limits.Spec)
	}
	c.gauge.refresh()
	if err != nil {
		return errors.Join(updateFault(err), m.updateContainer(c, func(rec *store.Container) { rec.Changing = nil }))
	}
	if err := m.commitUpdate(c, merged, packed); err != nil {
		// It is applied, and the record says that it was to be: the next daemon does it again. Better than to take it back for a full disk.
		m.logger(ctx).Error(err, "Could not record that a container is updated", "containerID", c.id)
	}
	return nil
}

// commitUpdate makes the limits those of the container. The specification is made anew, with them in it, when it is asked for next.
func (m *Manager) commitUpdate(c *container, merged *runtimeapi.LinuxContainerResources, packed []byte) error {
	before := m.containerRecord(c).Limits
	err := m.updateContainer(c, func(rec *store.Container) { rec.Limits = store.Limits{Resources: packed} })
	if err != nil && len(before.Changing) == 0 { // nothing is applied yet
		return errors.Join(err, m.updateContainer(c, func(rec *store.Container) { rec.Limits = before }))
	}
	c.limits.set(merged)
	c.exec.Lock()
	c.exec.spec = nil
	c.exec.Unlock()
	return err
}

// settleUpdate ends an update that an earlier daemon was killed in: it is applied, or when the kernel refuses, what was before.
func (m *Manager) settleUpdate(ctx context.Context, c *container) error {
	rec := m.containerRecord(c)
	if len(rec.Changing) == 0 {
		return nil
	}
	merged := &runtimeapi.LinuxContainerResources{}
	if err := proto.Unmarshal(rec.Changing, merged); err != nil {
		return fmt.Errorf("decode an update: %w", err)
	}
	refused := m.imposeLimits(rec.Cgroup, merged)
	if refused == nil {
		return m.commitUpdate(c, merged, rec.Changing)
	}
	m.logger(ctx).Info("Undid an update that was cut short", "containerID", c.id, "err", refused)
	return errors.Join(m.imposeLimits(rec.Cgroup, c.asked()), m.updateContainer(c, func(rec *store.Container) { rec.Changing = nil }))
}

// imposeLimits sets all limits of a running container.
func (m *Manager) imposeLimits(cgroup string, resources *runtimeapi.LinuxContainerResources) error {
	limits, err := spec.Resources(resources, m.cfg.Host)
	if err != nil {
		return err
	}
	if err := m.effect("update cgroup"); err != nil {
		return err
	}
	return m.cfg.Cgroups.Update(cgroup, limits.Spec)
}

// updateFault adds the sentinel that an error of the kernel's stands for: the values are the request's.
func updateFault(err error) error {
	for _, c := range []struct{ below, ours error }{
		{cgroup.ErrInUse, ErrState}, {cgroup.ErrGone, ErrState},
		{unix.EINVAL, ErrInvalid}, {unix.ERANGE, ErrInvalid}, {unix.EACCES, ErrInvalid}, {unix.ENODEV, ErrInvalid}, {unix.ENOENT, ErrInvalid}, {unix.ENOSPC, ErrInvalid},
	} {
		if errors.Is(err, c.below) {
			return fmt.Errorf("%w: %w", c.ours, err)
		}
	}
	return classify(err)
}

// UpdatePod takes note of a sandbox's overhead and resources. They say what its containers may use together; the limits of the cgroup above them are
// the kubelet's, which has set them when it says so. nil leaves what was. Errors: ErrNotFound, *spec.InvalidError.
func (m *Manager) UpdatePod(ctx context.Context, sandboxID string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	for _, r := range []*runtimeapi.LinuxContainerResources{overhead, resources} {
		if err := spec.CheckResources(r); err != nil {
			return err
		}
	}
	p, err := m.findPod(sandboxID)
	if err != nil {
		return err
	}
	if err := m.ready(ctx, p); err != nil {
		return err
	}
	defer p.turn.give()
	if m.gone(p) {
		return fmt.Errorf("sandbox %s: %w", p.id, ErrNotFound)
	}
	if m.cfg.Plugins.Active() {
		if err := m.cfg.Plugins.UpdatePod(ctx, m.showPod(p), overhead, resources); err != nil {
			return fmt.Errorf("update sandbox %s: %w", p.id, err)
		}
	}
	if err := m.recordPodUpdate(p, overhead, resources); err != nil {
		return err
	}
	m.tellPod(ctx, adjust.UpdatedPod, p)
	return nil
}

// recordPodUpdate makes the update the sandbox's. Preconditions: its turn is held.
func (m *Manager) recordPodUpdate(p *pod, overhead, resources *runtimeapi.LinuxContainerResources) error {
	before := m.record(p).Resources
	updated := &store.PodResources{}
	if before != nil {
		*updated = *before
	}
	for _, r := range []struct {
		from *runtimeapi.LinuxContainerResources
		to   *[]byte
	}{{overhead, &updated.Overhead}, {resources, &updated.Resources}} {
		if r.from == nil {
			continue
		}
		packed, err := proto.MarshalOptions{Deterministic: true}.Marshal(r.from)
		if err != nil {
			return fmt.Errorf("serialize resources: %w", err)
		}
		*r.to = packed
	}
	if err := m.updatePod(p, func(rec *store.Pod) { rec.Resources = updated }); err != nil {
		return errors.Join(fmt.Errorf("update sandbox %s: %w", p.id, err), m.updatePod(p, func(rec *store.Pod) { rec.Resources = before }))
	}
	return m.recallPodResources(p)
}

// recallPodResources puts what an update has changed into the configuration that the sandbox's status shows.
func (m *Manager) recallPodResources(p *pod) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := p.rec.Resources
	if kept == nil {
		return nil
	}
	config := proto.CloneOf(p.config)
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	for _, r := range []struct {
		from []byte
		to   **runtimeapi.LinuxContainerResources
	}{{kept.Overhead, &config.Linux.Overhead}, {kept.Resources, &config.Linux.Resources}} {
		if r.from == nil {
			continue
		}
		*r.to = &runtimeapi.LinuxContainerResources{}
		if err := proto.Unmarshal(r.from, *r.to); err != nil {
			return fmt.Errorf("decode resources: %w", err)
		}
	}
	p.updated = config
	return nil
}
