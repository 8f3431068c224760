package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/adjust/classes"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
)

const (
	// hookTimeout bounds a hook that names no timeout, when nothing else does: those of an end.
	hookTimeout = 10 * time.Second
	// maxHookOutput is how much of what a hook says is kept for an error, in bytes.
	maxHookOutput = 2 << 10
)

// hookPath is the PATH of hooks that have no environment of their own.
const hookPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// prepareHooks completes the request to the engine for a container with hooks: its bundle is written, since hooks look for the container there, and
// its start waits where there are hooks to run (runtime-spec runtime.md#lifecycle).
func (m *Manager) prepareHooks(c *container, made *specs.Spec, r *monitor.StartRequest) error {
	r.Paused = func(ctx context.Context, at monitor.Paused) error { return m.pausedHooks(ctx, c, made, at) }
	if made.Linux.IntelRdt != nil {
		r.Plan.Pauses |= engine.Created
	}
	h := made.Hooks
	if h == nil {
		return nil
	}
	if err := m.effect("write bundle"); err != nil {
		return err
	}
	link := m.linkOf(c.pod)
	if link == nil {
		return fmt.Errorf("its monitor has ended: %w", ErrState)
	}
	folder := m.bundle(c)
	bundle := external.Bundle{Folder: folder, Config: external.Config(made, podNamespaces(c.pod, link.process.PID))}
	if err := bundle.WriteUnmounted(); err != nil {
		return err
	}
	r.Plan.HostRoot = external.RootPath(folder)
	if len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer) > 0 { //nolint:staticcheck // prestart is deprecated, and in use
		r.Plan.Pauses |= engine.Created
	}
	if len(h.StartContainer) > 0 {
		r.Plan.Pauses |= engine.Starting
	}
	return nil
}

// pausedHooks runs the hooks of a point at which a start waits.
func (m *Manager) pausedHooks(ctx context.Context, c *container, made *specs.Spec, at monitor.Paused) error {
	if class := made.Linux.IntelRdt; class != nil && at.Point == engine.Created {
		if err := classes.Service(cmp.Or(m.hooks.resctrl, classes.Resctrl)).Join(class.ClosID, at.PID); err != nil {
			return err
		}
	}
	h := made.Hooks
	if h == nil {
		return nil
	}
	state := specs.State{Status: specs.StateCreating, Pid: at.PID}
	switch at.Point {
	case engine.Created:
		// The deprecated ones run here too: after the namespaces are made, and before the process.
		if err := m.runHooks(ctx, c, "prestart", h.Prestart, m.hostHook(c, made, state)); err != nil { //nolint:staticcheck // see prepareHooks
			return err
		}
		if err := m.runHooks(ctx, c, "createRuntime", h.CreateRuntime, m.hostHook(c, made, state)); err != nil {
			return err
		}
		return m.runHooks(ctx, c, "createContainer", h.CreateContainer, m.containerHook(c, made, state))
	case engine.Starting:
		state.Status = specs.StateCreated
		return m.runHooks(ctx, c, "startContainer", h.StartContainer, m.containerHook(c, made, state))
	}
	return nil
}

// startedHooks runs the hooks that follow a start. One that fails undoes it.
func (m *Manager) startedHooks(ctx context.Context, c *container, pid int) error {
	if m.record(c.pod).Runtime != nil { // which has run them itself
		return nil
	}
	made, err := m.specOf(c)
	if err != nil || made.Hooks == nil {
		return err
	}
	return m.runHooks(ctx, c, "poststart", made.Hooks.Poststart, m.hostHook(c, made, specs.State{Status: specs.StateRunning, Pid: pid}))
}

// stoppedHooks runs the hooks that follow a container's end. A daemon that is killed meanwhile has the next one run them again.
func (m *Manager) stoppedHooks(ctx context.Context, c *container) error {
	if err := m.effect("run poststop hooks"); err != nil {
		return err
	}
	made, err := external.ReadConfig(m.bundle(c))
	if err != nil { // cut short while it was written: no hook has run
		return nil //nolint:nilerr // see above
	}
	if made.Hooks != nil {
		m.tryStoppedHooks(ctx, c, made.Hooks.Poststop, m.hostHook(c, made, specs.State{Status: specs.StateStopped}))
	}
	return ctx.Err()
}

// stoppedHooksTime is how long the hooks that follow a container's end may take together.
func (m *Manager) stoppedHooksTime(c *container) (total time.Duration) {
	made, err := external.ReadConfig(m.bundle(c))
	if err != nil || made.Hooks == nil { // no bundle, no hooks
		return 0
	}
	for _, h := range made.Hooks.Poststop {
		if h.Timeout == nil {
			total += hookTimeout
		} else {
			total += time.Duration(*h.Timeout) * time.Second
		}
	}
	return total
}

// tryStoppedHooks runs hooks whose failure changes nothing.
func (m *Manager) tryStoppedHooks(ctx context.Context, c *container, hooks []specs.Hook, run hookRunner) {
	for i := range hooks {
		call, cancel := ctx, context.CancelFunc(func() {})
		if hooks[i].Timeout == nil {
			call, cancel = context.WithTimeout(ctx, hookTimeout)
		}
		if err := m.runHooks(call, c, "poststop", hooks[i:i+1], run); err != nil {
			m.logger(ctx).Info("Hook failed", "containerID", c.id, "err", err)
		}
		cancel()
	}
}

// hookRunner executes one hook, with a cgroup for it.
type hookRunner func(ctx context.Context, h *specs.Hook, group *cgroup.Group, say *words) error

// runHooks runs hooks in order, up to the first that fails. Whatever one leaves running ends.
func (m *Manager) runHooks(ctx context.Context, c *container, stage string, hooks []specs.Hook, run hookRunner) (err error) {
	if len(hooks) == 0 {
		return nil
	}
	if err := m.effect("create runtime cgroup"); err != nil {
		return err
	}
	group, err := m.cfg.Cgroups.Runtime(c.id)
	if err != nil {
		return err
	}
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, group.Close(), m.cfg.Cgroups.Kill(group.Path), m.cfg.Cgroups.Remove(end, group.Path))
	}()
	for i := range hooks {
		h := &hooks[i]
		call, cancel := ctx, context.CancelFunc(func() {})
		if h.Timeout != nil {
			timeout := time.Duration(*h.Timeout) * time.Second
			call, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it did not end within %v", timeout))
		}
		var say words
		err := run(call, h, group, &say)
		if err != nil && call.Err() != nil {
			err = errors.Join(context.Cause(call), m.cfg.Cgroups.Kill(group.Path))
		}
		cancel()
		if err != nil {
			if said := say.said(); said != "" {
				return fmt.Errorf("%s hook %s: %w: %s", stage, h.Path, err, said)
			}
			return fmt.Errorf("%s hook %s: %w", stage, h.Path, err)
		}
	}
	return nil
}

// stateText is what a hook reads (runtime-spec runtime.md#state).
func (m *Manager) stateText(c *container, made *specs.Spec, state specs.State) ([]byte, error) {
	state.Version, state.ID, state.Bundle, state.Annotations = specs.Version, c.id, m.bundle(c), made.Annotations
	text, err := json.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return text, nil
}

// hookArgs are the arguments and the environment of a hook.
func hookArgs(h *specs.Hook) (args, env []string) {
	args, env = h.Args, h.Env
	if len(args) == 0 {
		args = []string{h.Path}
	}
	if len(env) == 0 {
		env = []string{hookPath}
	}
	return args, env
}

// hostHook runs hooks in the daemon's namespaces.
func (m *Manager) hostHook(c *container, made *specs.Spec, state specs.State) hookRunner {
	return func(ctx context.Context, h *specs.Hook, group *cgroup.Group, say *words) error {
		text, err := m.stateText(c, made, state)
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, h.Path)
		cmd.Args, cmd.Env = hookArgs(h)
		cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = m.bundle(c), bytes.NewReader(text), say, say
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if len(group.Dirs) > 0 {
			cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Dirs[0].Fd())
		}
		cmd.WaitDelay = time.Second // what it leaves running may hold its streams
		if err := cmd.Run(); !errors.Is(err, exec.ErrWaitDelay) {
			return err
		}
		return nil
	}
}

// containerHook runs hooks in the container's namespaces while its start waits: before its root is the container's as a program of the host, with
// the host's rights, and then as a program of the container, with the rights that its process will have.
func (m *Manager) containerHook(c *container, made *specs.Spec, state specs.State) hookRunner {
	return func(ctx context.Context, h *specs.Hook, group *cgroup.Group, say *words) (err error) {
		client, err := m.monitorOf(c.pod)
		if err != nil {
			return err
		}
		inside := state
		if inside.Pid, err = innerPID(state.Pid); err != nil {
			return err
		}
		text, err := m.stateText(c, made, inside)
		if err != nil {
			return err
		}
		call, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		t := &transfer{client: Streams{Stdin: bytes.NewReader(text), Stdout: say, Stderr: say}, failed: cancel}
		defer t.close()
		request := monitor.ExecRequest{ContainerID: c.id, Started: t.started, Waiting: true}
		process := m.hookProcess(c, made, h)
		if err := t.prepare(call, process, &request); err != nil {
			return err
		}
		if state.Status == specs.StateCreating {
			request.Process, err = runtime.CompileExec(&specs.Spec{Linux: &specs.Linux{}}, process)
			request.Cgroups = group.Dirs
		} else {
			process.User, process.Capabilities, process.Cwd = made.Process.User, made.Process.Capabilities, made.Process.Cwd
			process.Rlimits, process.NoNewPrivileges = made.Process.Rlimits, made.Process.NoNewPrivileges
			process.ApparmorProfile, process.SelinuxLabel = made.Process.ApparmorProfile, made.Process.SelinuxLabel
			var x *execution
			if x, err = (nativeHandler{m}).exec(c, process, &request); err == nil {
				defer func() { err = errors.Join(err, m.endExec(ctx, x), m.closeExec(c, x)) }()
			}
		}
		if err != nil {
			return err
		}
		request.Process.Path = h.Path
		status, err := client.Exec(call, request)
		if err == nil {
			err = t.deliver(call)
		}
		if err == nil && status.ExitCode != 0 {
			err = fmt.Errorf("exit status %d", status.ExitCode)
		}
		return err
	}
}

// hookProcess is a hook as a program with the host's rights.
func (m *Manager) hookProcess(c *container, made *specs.Spec, h *specs.Hook) *specs.Process {
	all := m.cfg.Host.Capabilities
	p := &specs.Process{Cwd: m.bundle(c), Capabilities: &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all},
		OOMScoreAdj: made.Process.OOMScoreAdj}
	p.Args, p.Env = hookArgs(h)
	return p
}

// innerPID is a process's ID in its own pid namespace.
func innerPID(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("find the container's process: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if ids, found := strings.CutPrefix(line, "NSpid:"); found {
			fields := strings.Fields(ids)
			inner := 0
			if _, err := fmt.Sscan(fields[len(fields)-1], &inner); err != nil {
				return 0, fmt.Errorf("find the container's process: %w", err)
			}
			return inner, nil
		}
	}
	return pid, nil
}

// words keeps the beginning of what a hook says, and takes the rest so that it never waits.
type words struct {
	mu   sync.Mutex
	text []byte
}

// Write never fails.
func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text = append(w.text, b[:min(len(b), maxHookOutput-len(w.text))]...)
	return len(b), nil
}

func (w *words) said() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.ToValidUTF8(strings.TrimSpace(string(w.text)), "?")
}
