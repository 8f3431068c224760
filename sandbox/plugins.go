package sandbox

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/sandbox/store"
)

// otherUpdateTimeout bounds what a plugin asks for of another container than the one that it was told of.
const otherUpdateTimeout = 5 * time.Second

// Plugins are told what happens to sandboxes and containers, see package adjust. Which of them change containers, they do as an Adjuster. An error
// of theirs is one of the call that it was told within, or is logged.
type Plugins interface {
	// Active tells whether anybody is to be told.
	Active() bool
	// Enter keeps plugins from joining until leave. What is made visible to Present between the two is told of there by the same caller. Nothing
	// may be waited for in between but plugins.
	Enter() (leave func())
	Pod(ctx context.Context, e adjust.Event, s *adjust.Sandbox) error
	UpdatePod(ctx context.Context, s *adjust.Sandbox, overhead, resources *runtimeapi.LinuxContainerResources) error
	Container(ctx context.Context, e adjust.Event, c *adjust.Container) ([]adjust.Update, error)
	// Update returns what plugins make of an update, and their updates of other containers.
	Update(ctx context.Context, c *adjust.Container, asked *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, []adjust.Update, error)
}

// noPlugins is nobody.
type noPlugins struct{ Plugins }

func (noPlugins) Active() bool          { return false }
func (noPlugins) Enter() (leave func()) { return func() {} }

// podTold is what has been told of a sandbox. Guarded by Manager.mu.
type podTold struct {
	stop     bool // its stop, by an event
	known    bool // to plugins that join: it is among what is present
	owed     bool // plugins have heard of it, so they hear of its end
	stopOwed bool // and of its stop
}

// containerTold is what plugins have been told of a container.
type containerTold struct {
	known, owed bool // as of a sandbox; guarded by Manager.mu

	sync.Mutex      // held from the start's first word to its last, and while the stop is told
	stopOwed   bool // it has started, and nobody was told of its stop
}

// introducePod tells plugins of a sandbox that is about to be ready.
func (m *Manager) introducePod(ctx context.Context, p *pod) error {
	leave := m.cfg.Plugins.Enter()
	defer leave()
	active := m.cfg.Plugins.Active()
	m.mu.Lock()
	p.told.owed, p.told.stopOwed = active, active
	m.mu.Unlock()
	if active {
		if err := m.cfg.Plugins.Pod(ctx, adjust.RunPod, m.showPod(p)); err != nil {
			return err
		}
	}
	m.mu.Lock()
	p.told.known, p.told.owed, p.told.stopOwed = true, true, true
	m.mu.Unlock()
	return nil
}

// tellPod tells plugins what has happened to a sandbox. That goes on when the caller goes away.
func (m *Manager) tellPod(ctx context.Context, e adjust.Event, p *pod) {
	if !m.cfg.Plugins.Active() {
		return
	}
	if err := m.cfg.Plugins.Pod(context.WithoutCancel(ctx), e, m.showPod(p)); err != nil {
		m.logger(ctx).Info("A plugin could not deal with what happened to a sandbox", "podSandboxID", p.id, "err", err)
	}
}

// tellPodStopped tells once that the containers of a sandbox have ended, each before.
func (m *Manager) tellPodStopped(ctx context.Context, p *pod) {
	for _, c := range m.containersOf(p) {
		m.tellExit(ctx, c)
	}
	m.mu.Lock()
	owed := p.told.stopOwed
	p.told.stopOwed = false
	m.mu.Unlock()
	if owed {
		m.tellPod(ctx, adjust.StopPod, p)
	}
}

// tellPodRemoved tells once that a sandbox is gone.
func (m *Manager) tellPodRemoved(ctx context.Context, p *pod) {
	m.mu.Lock()
	owed := p.told.owed
	p.told.owed, p.told.known = false, false
	m.mu.Unlock()
	if owed {
		m.tellPod(ctx, adjust.RemovePod, p)
	}
}

// notifyContainer tells plugins what has happened to a container, and does behind the call what they ask for. That goes on when the caller goes away.
func (m *Manager) notifyContainer(ctx context.Context, e adjust.Event, shown *adjust.Container) {
	if !m.cfg.Plugins.Active() {
		return
	}
	ctx = context.WithoutCancel(ctx)
	updates, err := m.cfg.Plugins.Container(ctx, e, shown)
	if err != nil {
		m.logger(ctx).Info("A plugin could not deal with what happened to a container", "containerID", shown.ID, "err", err)
	}
	if len(updates) == 0 {
		return
	}
	m.background.start(func() {
		if err := m.doUpdates(ctx, updates); err != nil {
			m.logger(ctx).Info("Could not do what a plugin asked for", "containerID", shown.ID, "err", err)
		}
	})
}

// tellExit tells once that a container that was started has exited, after all of its start was told.
func (m *Manager) tellExit(ctx context.Context, c *container) {
	c.told.Lock()
	defer c.told.Unlock()
	if c.told.stopOwed && m.containerRecord(c).State == store.Exited {
		c.told.stopOwed = false
		if m.cfg.Plugins.Active() {
			m.notifyContainer(ctx, adjust.StopContainer, m.showContainer(c))
		}
	}
}

// tellRemoved tells that a container is gone, as it was shown before.
func (m *Manager) tellRemoved(ctx context.Context, c *container, shown *adjust.Container) {
	m.mu.Lock()
	owed := c.told.owed
	c.told.owed, c.told.known = false, false
	m.mu.Unlock()
	if owed && shown != nil {
		m.notifyContainer(ctx, adjust.RemoveContainer, shown)
	}
}

// askUpdate asks plugins what they make of an update of a container, and what of others. Preconditions: its turn is held.
func (m *Manager) askUpdate(ctx context.Context, c *container, update *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, []adjust.Update, error) {
	state := m.containerRecord(c).State
	if !m.cfg.Plugins.Active() || state != store.Created && state != store.Running {
		return update, nil, nil
	}
	return m.cfg.Plugins.Update(ctx, m.showContainer(c), update)
}

// doUpdates does what plugins ask for. Preconditions: no container's turn is held but that of one that is being created: others never wait for that.
func (m *Manager) doUpdates(ctx context.Context, updates []adjust.Update) error {
	var errs []error
	for _, u := range updates {
		err := func() error {
			ctx, cancel := context.WithTimeout(ctx, otherUpdateTimeout)
			defer cancel()
			return m.Change(ctx, u)
		}()
		if err != nil && !u.MayFail {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Change does what a plugin asks for of a container. One that has ended needs nothing more. Evictions are done behind the call, and so are updates
// of a container that is being created.
// Errors: as UpdateContainer's, but for ErrNotFound.
func (m *Manager) Change(ctx context.Context, u adjust.Update) error {
	if u.Evict {
		m.logger(ctx).Info("Evicted a container for a plugin", "containerID", u.ContainerID, "reason", u.Reason)
		m.background.start(func() {
			if err := m.StopContainer(m.ctx, u.ContainerID, 0); err != nil && !errors.Is(err, ErrNotFound) {
				m.logger(m.ctx).Error(err, "Could not evict a container", "containerID", u.ContainerID)
			}
		})
		return nil
	}
	c, err := m.findContainer(u.ContainerID)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	switch m.containerRecord(c).State {
	case store.Exited:
		return nil
	case store.Creating:
		m.background.start(func() {
			if err := m.changeOne(m.ctx, c, u.Resources); err != nil {
				m.logger(m.ctx).Info("Could not do what a plugin asked for", "containerID", c.id, "err", err)
			}
		})
		return nil
	}
	return m.changeOne(ctx, c, u.Resources)
}

// changeOne updates one container, once it is created. One that has ended needs nothing more.
func (m *Manager) changeOne(ctx context.Context, c *container, resources *runtimeapi.LinuxContainerResources) error {
	err := m.changeLimits(ctx, c.id, func(ctx context.Context, c *container) ([]adjust.Update, error) {
		return nil, m.applyUpdate(ctx, c, resources)
	})
	if errors.Is(err, ErrNotFound) || m.containerRecord(c).State == store.Exited {
		return nil
	}
	return err
}

// Present lists what plugins are told of when they join: sandboxes that are ready, or will be, and their containers that have not exited.
func (m *Manager) Present() ([]*adjust.Sandbox, []*adjust.Container) {
	var pods []*pod
	var containers []*container
	m.mu.RLock()
	for _, p := range m.pods {
		if p.present() {
			pods = append(pods, p)
		}
	}
	for _, c := range m.containers {
		if c.told.known && c.pod.present() && c.rec.State != store.Exited && len(c.rec.Config) > 0 {
			containers = append(containers, c)
		}
	}
	m.mu.RUnlock()
	shownPods := make([]*adjust.Sandbox, len(pods))
	for i, p := range pods {
		shownPods[i] = m.showPod(p)
	}
	shown := make([]*adjust.Container, len(containers))
	for i, c := range containers {
		shown[i] = m.showContainer(c)
	}
	return shownPods, shown
}

// present tells whether plugins that join are told of the sandbox. Preconditions: Manager.mu held.
func (p *pod) present() bool { return p.told.known && !p.lingering && p.rec.State != store.NotReady }

// showPod is the sandbox as plugins see it.
func (m *Manager) showPod(p *pod) *adjust.Sandbox {
	ips := m.addresses(p)
	m.mu.RLock()
	defer m.mu.RUnlock()
	s := &adjust.Sandbox{ID: p.id, Handler: p.rec.Handler, Config: p.shown(), IPs: p.rec.IPs, NetNS: p.rec.NetNS, Cgroup: p.rec.Cgroup, PID: p.rec.Monitor.PID}
	if len(s.IPs) == 0 {
		s.IPs = ips
	}
	if p.link != nil {
		s.PID = p.link.process.PID
	}
	return s
}

// showContainer is the container as plugins see it. Without its specification, which cannot be read, it has none.
func (m *Manager) showContainer(c *container) *adjust.Container {
	s := m.showPod(c.pod)
	out := &adjust.Container{ID: c.id, SandboxID: c.pod.id, Handler: s.Handler, Pod: s.Config, Config: c.config, Sandbox: s}
	rec := m.containerRecord(c)
	out.Image = showImage(c, &rec)
	out.Status = adjust.Status{State: rec.State, CreatedAt: rec.CreatedAt, StartedAt: rec.StartedAt, FinishedAt: rec.FinishedAt, ExitCode: rec.ExitCode,
		Reason: rec.Reason, Message: rec.Message}
	if rec.State == store.Running {
		out.Status.PID = rec.PID
	}
	var err error
	if out.Spec, err = m.specOf(c); err != nil {
		m.logger(m.ctx).Info("Could not read a container's spec for plugins", "containerID", c.id, "err", err)
	}
	return out
}

// showImage says of a container's image what its user called it, where that is known.
func showImage(c *container, rec *store.Container) adjust.Image {
	asked := c.config.GetImage()
	return adjust.Image{Name: cmp.Or(asked.GetUserSpecifiedImage(), asked.GetImage()), Digest: rec.ImageDigest, ConfigDigest: rec.ImageID}
}
