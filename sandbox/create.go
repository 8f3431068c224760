package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/apparmor"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/oci/spec/host"
	"github.com/berthd/berth/sandbox/store"
)

// maxProfileBytes bounds a seccomp profile.
const maxProfileBytes = 4 << 20

// CreateContainer makes a container in a ready sandbox and returns its ID: its record, its spec and its writable layer. Nothing runs. With the
// metadata and configuration of one that is created, or being made, it returns that one's.
// Errors: ErrNotFound, ErrState (the sandbox is not ready), ErrNameInUse, *spec.InvalidError, ErrInvalid, ErrExhausted.
func (m *Manager) CreateContainer(ctx context.Context, r CreateRequest) (string, error) {
	p, err := m.findPod(r.SandboxID)
	if err != nil {
		return "", err
	}
	if err := p.awaitRecovery(ctx); err != nil {
		return "", fmt.Errorf("create container: %w", err)
	}
	packed, hash, err := pack(r.Config, r.ImageID)
	if err != nil {
		return "", err
	}
	rec := store.Container{SandboxID: p.id, State: store.Creating, ConfigHash: hash, Config: packed, ImageID: r.ImageID, ImageRef: r.ImageRef,
		ImageDigest: r.ImageDigest}
	for {
		c, err := m.claimContainer(ctx, p, r, rec)
		if errors.Is(err, errAbandoned) {
			if err := c.create.settled(ctx); err != nil {
				return "", fmt.Errorf("create container: wait for the undo of container %s: %w", c.id, err)
			}
			continue
		}
		if err != nil {
			return "", err
		}
		if c.create == nil || m.containerRecord(c).State != store.Creating {
			return c.id, nil
		}
		if err := c.create.wait(ctx); err != nil {
			return "", fmt.Errorf("create container %s: %w", c.id, classify(err))
		}
		return c.id, nil
	}
}

// claimContainer returns the container that has the name, joined if it is being made, or a new one whose making has begun.
// Errors: ErrState, ErrNameInUse; errAbandoned, with the container, when it is being undone.
func (m *Manager) claimContainer(ctx context.Context, p *pod, r CreateRequest, rec store.Container) (*container, error) {
	name := containerName(p.id, r.Config.GetMetadata())
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[p.id] != p {
		return nil, fmt.Errorf("sandbox %s: %w", p.id, ErrNotFound)
	}
	if p.rec.State != store.Ready {
		return nil, fmt.Errorf("sandbox %s is %s, not Ready: %w", p.id, p.rec.State, ErrState)
	}
	if c := m.childNames[name]; c != nil {
		return c, c.sharedBy(rec.ConfigHash)
	}
	c := newContainer(p, newID(), name, r.Config)
	rec.ID, rec.SnapshotKey, rec.CreatedAt, rec.Cgroup = c.id, c.id, now(), p.rec.Cgroup+"/"+c.id
	c.rec = rec
	c.turn <- struct{}{} // given back by makeContainer
	if c.create = m.begin(ctx, func(ctx context.Context) error { return m.makeContainer(ctx, c, r) }); c.create == nil {
		return nil, ErrClosing
	}
	m.containers[c.id], m.childNames[name] = c, c
	return c, nil
}

// sharedBy tells whether a request with the configuration hash may have this container. One that is being made is joined.
// Preconditions: Manager.mu held.
func (c *container) sharedBy(hash string) error {
	inUse := fmt.Errorf("container %s is %s and has the name %s: %w", c.id, c.rec.State, c.name, ErrNameInUse)
	switch {
	case c.rec.ConfigHash != hash:
		return inUse
	case c.rec.State == store.Created:
		return nil
	case c.rec.State == store.Creating && c.create != nil:
		if !c.create.join() {
			return errAbandoned
		}
		return nil
	}
	return inUse
}

// makeContainer makes the container, or undoes what it did.
func (m *Manager) makeContainer(ctx context.Context, c *container, r CreateRequest) error {
	defer c.turn.give()
	start := time.Now()
	err := protect(func() error { return m.setUpContainer(ctx, c, r) })
	if err == nil {
		if m.cfg.Plugins.Active() {
			m.notifyContainer(ctx, adjust.CreatedContainer, m.showContainer(c))
		}
		m.logger(ctx).V(2).Info("Created container", "podSandboxID", c.pod.id, "containerID", c.id, "duration", time.Since(start))
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undoErr := m.removeContainer(undo, c); undoErr != nil {
		m.logger(ctx).Error(undoErr, "Could not undo container", "containerID", c.id)
		m.mu.Lock()
		if m.childNames[c.name] == c {
			delete(m.childNames, c.name)
		}
		m.mu.Unlock()
		failed := exit{code: exitStartError, reason: ReasonStartError, message: "its creation failed: " + err.Error()}
		return errors.Join(err, undoErr, m.updateContainer(c, func(rec *store.Container) { m.settle(c, rec, failed) }))
	}
	return err
}

// setUpContainer checks everything that can be checked before anything exists, then writes the records and makes the writable layer.
func (m *Manager) setUpContainer(ctx context.Context, c *container, r CreateRequest) error {
	rec := m.containerRecord(c)
	made, err := m.containerSpec(ctx, c, r, &rec)
	if err != nil {
		return err
	}
	rec.State = store.Created
	if err := m.effect("add container record"); err != nil {
		return err
	}
	if err := m.store.AddContainer(&rec, made); err != nil {
		return err
	}
	if err := relabelVolumes(ctx, r.Config, made); err != nil {
		return err
	}
	if err := m.effect("prepare writable layer"); err != nil {
		return err
	}
	if c.root.trees, err = m.cfg.RootFS.Prepare(ctx, rec.SnapshotKey, rec.ImageID, volumes(c.config)); err != nil {
		return fmt.Errorf("prepare root filesystem: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if c.pod.rec.State != store.Ready { // StopPod came between: it did not see this container
		return fmt.Errorf("sandbox %s is %s, not Ready: %w", c.pod.id, c.pod.rec.State, ErrState)
	}
	c.rec = rec
	m.tell(c.pod, c.id, EventCreated)
	return nil
}

// containerSpec makes the container's spec, and notes in the record what of it is needed later.
func (m *Manager) containerSpec(ctx context.Context, c *container, r CreateRequest, rec *store.Container) (*specs.Spec, error) {
	if err := spec.ValidateContainer(r.Config); err != nil {
		return nil, err
	}
	in := spec.Input{Pod: m.specPod(c.pod), Container: r.Config, Image: r.Image, Host: m.cfg.Host, ContainerID: c.id, CgroupPath: rec.Cgroup}
	signal, err := spec.StopSignal(r.Config, r.Image)
	if err != nil {
		return nil, err
	}
	rec.StopSignal = int(signal)
	if rec.LogPath, err = logPath(c.pod.config, r.Config); err != nil {
		return nil, err
	}
	if err := errors.Join(m.checkRecursive(ctx, c.pod, r.Config), checkMounts(r.Config)); err != nil {
		return nil, err
	}
	if in.SeccompProfile, err = seccompProfile(r.Config); err != nil {
		return nil, err
	}
	if in.Devices, err = host.Requested(r.Config, m.cfg.Host.ForAll...); err != nil {
		return nil, fmt.Errorf("find devices: %w: %w", ErrInvalid, err)
	}
	if in.TargetPIDNS, err = m.targetNamespace(c); err != nil {
		return nil, err
	}
	if in.Host.AppArmor, err = m.appArmor(ctx, r.Config); err != nil {
		return nil, err
	}
	made, notes, err := spec.Container(in)
	if err != nil {
		return nil, err
	}
	rec.MakeDirs, err = spec.MakeDirs(r.Image)
	for _, note := range notes {
		m.logger(ctx).Info("Container does not get all that it asks for", "containerID", c.id, "field", note.Field, "rule", note.String())
	}
	if err != nil {
		return nil, err
	}
	return made, m.adjustSpec(ctx, c, made, rec)
}

// adjustSpec has the adjusters change a spec, and does what they ask for of other containers.
func (m *Manager) adjustSpec(ctx context.Context, c *container, made *specs.Spec, rec *store.Container) error {
	in := &adjust.Container{ID: c.id, SandboxID: c.pod.id, Handler: m.record(c.pod).Handler, Pod: c.pod.config, Config: c.config, Image: showImage(c, rec),
		Spec: made}
	if err := m.introduceContainer(ctx, c, in); err != nil {
		return fmt.Errorf("adjust container: %w", err)
	}
	user := made.Process.User // devices of the node may have added groups
	if err := c.rememberUser(spec.User{UID: user.UID, GID: user.GID, Groups: user.AdditionalGids}, rec); err != nil {
		return err
	}
	if in.Resources != nil {
		packed, err := proto.MarshalOptions{Deterministic: true}.Marshal(in.Resources)
		if err != nil {
			return fmt.Errorf("serialize resources: %w", err)
		}
		rec.Limits = store.Limits{Resources: packed}
		c.limits.set(in.Resources)
	}
	return m.doUpdates(ctx, in.Updates)
}

// askAdjusters asks them in order, and checks what they made.
func (m *Manager) askAdjusters(ctx context.Context, c *container, in *adjust.Container) error {
	for _, a := range m.cfg.Adjusters {
		if err := a.Adjust(ctx, in); err != nil {
			return err
		}
	}
	if in.Resources != nil {
		if err := spec.SetResources(in.Spec, in.Resources, m.cfg.Host); err != nil {
			return err
		}
	}
	if err := spec.CheckSysctls(c.pod.config, in.Spec.Linux.Sysctl); err != nil {
		return err
	}
	if err := runtime.CheckHooks(in.Spec.Hooks); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if m.record(c.pod).Runtime != nil { // which knows by itself what it has
		return nil
	}
	if err := runtime.Check(in.Spec); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// introduceContainer asks the adjusters. From then on plugins that join are told of the container.
func (m *Manager) introduceContainer(ctx context.Context, c *container, in *adjust.Container) error {
	leave := m.cfg.Plugins.Enter()
	defer leave()
	if m.cfg.Plugins.Active() {
		in.Sandbox = m.showPod(c.pod)
		in.Status = adjust.Status{State: adjust.Creating, CreatedAt: m.containerRecord(c).CreatedAt}
		m.mu.Lock()
		c.told.owed = true
		m.mu.Unlock()
	}
	err := m.askAdjusters(ctx, c, in)
	c.exec.Lock()
	c.exec.spec = in.Spec
	c.exec.Unlock()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	c.told.known, c.told.owed = true, true
	return nil
}

// appArmor is the state of AppArmor as it matters to a container. The default profile is loaded when a container first needs it: it may
// have been unloaded since.
func (m *Manager) appArmor(ctx context.Context, config *runtimeapi.ContainerConfig) (spec.AppArmor, error) {
	if !m.cfg.Host.AppArmor.Enabled {
		return m.cfg.Host.AppArmor, nil
	}
	state, err := host.ReadAppArmor()
	if err != nil || !spec.DefaultAppArmor(config) {
		return state, err
	}
	if !slices.Contains(state.Loaded, apparmor.Name) {
		if err := apparmor.Load(ctx); err != nil {
			state.Missing = err.Error()
			return state, nil
		}
		m.logger(ctx).Info("Loaded the default AppArmor profile", "profile", apparmor.Name)
	}
	state.Default = apparmor.Name
	return state, nil
}

// seccompProfile reads the profile that the request names; nil when it names none.
func seccompProfile(config *runtimeapi.ContainerConfig) ([]byte, error) {
	path, err := spec.LocalhostSeccomp(config)
	if err != nil || path == "" {
		return nil, err
	}
	bad := func(rule string) error {
		return &spec.InvalidError{Field: "config.linux.security_context.seccomp.localhost_ref", Value: path, Rule: rule}
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, bad("must be a profile that is there: " + errors.Unwrap(err).Error())
	}
	if !st.Mode().IsRegular() || st.Size() > maxProfileBytes {
		return nil, bad(fmt.Sprintf("must be a regular file of at most %d bytes", maxProfileBytes))
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, bad(err.Error())
	}
	return text, nil
}

// targetNamespace is the pid namespace of the container that the request names as its target; "" when it names none.
func (m *Manager) targetNamespace(c *container) (string, error) {
	options := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if options.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return "", nil
	}
	target, err := m.findContainer(options.GetTargetId())
	if err != nil || target.pod != c.pod {
		return "", &spec.InvalidError{Field: "config.linux.security_context.namespace_options.target_id", Value: options.GetTargetId(),
			Rule: "must be a container of the same pod"}
	}
	rec := m.containerRecord(target)
	if rec.State != store.Running {
		return "", fmt.Errorf("target container %s is %s, not Running: %w", target.id, rec.State, ErrState)
	}
	return pidNamespace(rec.PID), nil
}
