package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// StartContainer starts a created container. A start that has begun is carried through even if ctx ends; then the container runs, or has
// exited, its status says so, and the next call for it returns how that start went. One that the engine could not start is Exited, reason
// StartError.
// Errors: ErrNotFound, ErrState (it is not Created, or its sandbox not Ready), ErrInvalid (the request cannot be executed).
func (m *Manager) StartContainer(ctx context.Context, containerID string) error {
	c, err := m.readyContainer(ctx, containerID)
	if err != nil {
		return err
	}
	err = m.carryThrough(ctx, c, startTimeout, func(work context.Context) (then func(context.Context) error, err error) {
		outcome := c.start.unheard
		if outcome == nil {
			err := m.startContainer(work, c)
			outcome = &err
		}
		c.start.unheard = nil
		if ctx.Err() != nil {
			c.start.unheard = outcome
		}
		return nil, *outcome
	})
	if err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	return nil
}

// carryThrough does work that goes on when ctx ends, and returns then. It gives the container's turn back, which the caller holds, and does what
// the work leaves for then.
func (m *Manager) carryThrough(ctx context.Context, c *container, timeout time.Duration, work func(context.Context) (then func(context.Context) error, err error)) error {
	result := make(chan error, 1)
	begun := m.background.start(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		var then func(context.Context) error
		err := protect(func() (err error) {
			then, err = work(ctx)
			return err
		})
		c.turn.give()
		if err == nil && then != nil {
			err = protect(func() error { return then(ctx) })
		}
		result <- err
	})
	if !begun {
		c.turn.give()
		return ErrClosing
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// startContainer starts a container. Preconditions: its turn is held.
func (m *Manager) startContainer(ctx context.Context, c *container) error {
	start := time.Now()
	if err := m.mustBeReady(c.pod); err != nil {
		return err
	}
	if rec := m.containerRecord(c); rec.State != store.Created {
		return fmt.Errorf("it is %s, not Created: %w", rec.State, ErrState)
	}
	target, err := m.holdTarget(c)
	if err != nil {
		return err
	}
	defer target.release()
	pid, err := m.runContainer(ctx, c, target)
	if err != nil {
		if stopped := m.mustBeReady(c.pod); stopped != nil { // meanwhile: that ends whatever makes the container
			err = fmt.Errorf("%w: %w", stopped, err)
		}
		return m.undoStart(ctx, c, err)
	}
	m.logger(ctx).V(2).Info("Started container", "podSandboxID", c.pod.id, "containerID", c.id, "pid", pid, "duration", time.Since(start))
	return nil
}

// runContainer makes a container run, and tells plugins before and after. What its end is told by waits meanwhile.
func (m *Manager) runContainer(ctx context.Context, c *container, target target) (pid int, err error) {
	c.told.Lock()
	defer c.told.Unlock()
	c.told.stopOwed = true
	if m.cfg.Plugins.Active() {
		if _, err := m.cfg.Plugins.Container(ctx, adjust.StartContainer, m.showContainer(c)); err != nil {
			return 0, err
		}
	}
	pid, err = m.launch(ctx, c)
	if err == nil {
		err = target.stillThere()
	}
	if err != nil {
		return 0, err
	}
	m.mu.RLock()
	started := c.start.at
	m.mu.RUnlock()
	err = m.updateContainer(c, func(rec *store.Container) {
		rec.PID = pid
		if rec.State == store.Created { // else its exit was faster
			rec.State, rec.StartedAt = store.Running, started
		}
	})
	if err != nil {
		// It runs, and its monitor knows it: recovery would find it so. Better than to kill it for a full disk.
		m.logger(ctx).Error(err, "Could not record that a container runs", "containerID", c.id)
	}
	if err := m.startedHooks(ctx, c, pid); err != nil {
		return 0, err
	}
	if m.cfg.Plugins.Active() {
		m.notifyContainer(ctx, adjust.StartedContainer, m.showContainer(c))
	}
	return pid, nil
}

// launch makes the cgroups and has the monitor start the process.
func (m *Manager) launch(ctx context.Context, c *container) (pid int, err error) {
	client, err := m.monitorOf(c.pod)
	if err != nil {
		return 0, err
	}
	made, err := m.specOf(c)
	if err != nil {
		return 0, err
	}
	var group *cgroup.Group
	by := m.handlerOf(c.pod)
	request := monitor.StartRequest{ContainerID: c.id, LogPath: m.realLogPath(c), LogIsReal: true}
	for _, name := range slices.Sorted(maps.Keys(made.Linux.Sysctl)) {
		request.Sysctls = append(request.Sysctls, [2]string{name, made.Linux.Sysctl[name]})
	}
	tasks := newTasks(ctx)
	tasks.run(func(context.Context) (err error) {
		group, err = m.makeCgroup(c, made.Linux.Resources)
		return err
	})
	tasks.run(func(ctx context.Context) error {
		if err := m.prepareRootfs(ctx, c); err != nil {
			return err
		}
		return by.start(ctx, c, made, &request)
	})
	err = tasks.wait()
	if group != nil {
		defer group.Close()
	}
	if err != nil {
		return 0, by.started(ctx, c, &request, err)
	}
	m.mu.Lock()
	c.start.at = now()
	m.mu.Unlock()
	request.Cgroups, request.Plan.Process.Stdin = group.Dirs, c.config.GetStdin()
	err = m.effect("start container")
	if err == nil {
		pid, err = client.Start(ctx, request)
	}
	return pid, by.started(ctx, c, &request, err)
}

// prepareRootfs finds the mounts of the root filesystem anew when an earlier daemon made the container.
func (m *Manager) prepareRootfs(ctx context.Context, c *container) (err error) {
	if c.root.trees.Root != nil {
		return nil
	}
	rec := m.containerRecord(c)
	if c.root.trees, err = m.cfg.RootFS.Prepare(ctx, rec.SnapshotKey, rec.ImageID, volumes(c.config)); err != nil {
		return fmt.Errorf("prepare root filesystem: %w", err)
	}
	return nil
}

// specOf is the container's spec, read from disk when an earlier daemon made the container. It is for reading only.
func (m *Manager) specOf(c *container) (*specs.Spec, error) {
	c.exec.Lock()
	defer c.exec.Unlock()
	if c.exec.spec != nil {
		return c.exec.spec, nil
	}
	var s specs.Spec
	if err := m.store.Spec(c.pod.id, c.id, &s); err != nil {
		return nil, err
	}
	if updated := c.limits.asked.Load(); updated != nil {
		if err := spec.SetResources(&s, updated, m.cfg.Host); err != nil {
			return nil, err
		}
	}
	if !c.exec.shed {
		c.exec.spec = &s
	}
	return &s, nil
}

// makeCgroup makes the container's cgroup, and records first which ancestors that takes.
func (m *Manager) makeCgroup(c *container, resources *specs.LinuxResources) (*cgroup.Group, error) {
	p := c.pod
	rec := m.record(p)
	missing := slices.DeleteFunc(m.ancestors(rec.Cgroup), func(a string) bool { return slices.Contains(rec.Ancestors, a) })
	if len(missing) > 0 {
		if err := m.updatePod(p, func(rec *store.Pod) {
			rec.Ancestors = append(slices.Clone(rec.Ancestors), missing...)
			slices.SortFunc(rec.Ancestors, func(a, b string) int { return len(a) - len(b) })
		}); err != nil {
			return nil, err
		}
	}
	if err := m.effect("create cgroup"); err != nil {
		return nil, err
	}
	group, err := m.cfg.Cgroups.Create(m.containerRecord(c).Cgroup, resources)
	for _, refused := range []error{unix.EINVAL, unix.ERANGE, unix.EACCES} { // by the kernel, a value of the request's
		if errors.Is(err, refused) {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return group, err
}

// undoStart leaves no process behind. Removing the cgroup also keeps a monitor that is late from starting one: it could not join.
func (m *Manager) undoStart(ctx context.Context, c *container, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout+m.stoppedHooksTime(c))
	defer cancel()
	failed := exit{code: exitStartError, reason: ReasonStartError, message: cause.Error()}
	c.start.failed.Store(&failed)
	killed := m.killContainer(ctx, c)
	err := errors.Join(cause, killed, m.removeCgroup(ctx, c), m.handlerOf(c.pod).end(ctx, c))
	err = errors.Join(err, m.updateContainer(c, func(rec *store.Container) {
		if rec.State == store.Created || rec.State == store.Running && killed == nil {
			m.settle(c, rec, failed)
		}
	}))
	m.tellExit(ctx, c)
	return startFault(err)
}

// startFault adds ErrInvalid to the errors of compiling and executing that are about what was asked for, not about the host.
func startFault(err error) error {
	var fault *engine.Error
	var unsupported *runtime.UnsupportedError
	if errors.As(err, &fault) && (fault.Step == engine.StepExec || fault.Step == engine.StepCwd) || errors.As(err, &unsupported) {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return classify(err)
}

func (m *Manager) removeCgroup(ctx context.Context, c *container) error {
	if err := m.effect("remove cgroup"); err != nil {
		return err
	}
	return m.cfg.Cgroups.Remove(ctx, m.containerRecord(c).Cgroup)
}

// target is a process whose pid namespace a container joins by its path, held so that the path cannot come to mean another process's.
type target struct{ pidfd int }

// holdTarget finds the container's target anew, since it may have been created when another process was there, and puts its path into the
// spec. Without a target it holds nothing.
func (m *Manager) holdTarget(c *container) (target, error) {
	none := target{pidfd: -1}
	options := c.config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if options.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return none, nil
	}
	path, err := m.targetNamespace(c)
	if err != nil {
		return none, err
	}
	other, err := m.findContainer(options.GetTargetId())
	if err != nil {
		return none, err
	}
	rec := m.containerRecord(other)
	pidfd, err := unix.PidfdOpen(rec.PID, 0)
	if err != nil {
		return none, fmt.Errorf("target container %s: %w: %w", other.id, ErrState, err)
	}
	held := target{pidfd: pidfd}
	pids, err := m.cfg.Cgroups.PIDs(rec.Cgroup)
	if err != nil || !slices.Contains(pids, rec.PID) {
		held.release()
		return none, fmt.Errorf("target container %s has exited: %w", other.id, errors.Join(ErrState, err))
	}
	if err := m.joinNamespace(c, specs.PIDNamespace, path); err != nil {
		held.release()
		return none, err
	}
	return held, nil
}

// joinNamespace puts the path of a namespace into the spec. Who has the spec as it was keeps that.
func (m *Manager) joinNamespace(c *container, kind specs.LinuxNamespaceType, path string) error {
	before, err := m.specOf(c)
	if err != nil {
		return err
	}
	made, linux := *before, *before.Linux
	linux.Namespaces = slices.Clone(linux.Namespaces)
	for i := range linux.Namespaces {
		if n := &linux.Namespaces[i]; n.Type == kind {
			n.Path = path
		}
	}
	made.Linux = &linux
	c.exec.Lock()
	defer c.exec.Unlock()
	c.exec.spec = &made
	return nil
}

// stillThere is an error when the target ended while its path was used: then the path may have meant another process.
func (t target) stillThere() error {
	if t.pidfd < 0 {
		return nil
	}
	poll := []unix.PollFd{{Fd: int32(t.pidfd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, 0); n != 0 || err != nil {
		return fmt.Errorf("the target container exited: %w", errors.Join(ErrState, err))
	}
	return nil
}

func (t target) release() {
	if t.pidfd >= 0 {
		unix.Close(t.pidfd)
	}
}
