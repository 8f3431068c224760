package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// handler is how the containers of a sandbox are made. It is chosen when the sandbox is made and is in its record.
type handler interface {
	// start completes the request for c. What it makes on the host has c's name, so that c's record names it.
	start(ctx context.Context, c *container, made *specs.Spec, r *monitor.StartRequest) error
	// started takes the monitor's answer to that request.
	started(ctx context.Context, c *container, r *monitor.StartRequest, answer error) error
	// exec completes the request for process in c, which runs, by what is on the host for it until endExec.
	exec(c *container, process *specs.Process, r *monitor.ExecRequest) (*execution, error)
	// execFault makes an exec's error say what it is about; x may be nil.
	execFault(c *container, x *execution, err error) error
	// end takes away what start made, once no process of c is left. It is idempotent, and costs nothing when it has been done.
	end(ctx context.Context, c *container) error
}

// runtimeOf is what a handler's name means now; nil is the engine.
func (m *Manager) runtimeOf(handler string) *store.Runtime {
	p := (*m.handlers.Load())[handler]
	if p == nil {
		return nil
	}
	return &store.Runtime{Path: p.Path, Root: p.Root, Options: slices.Clone(p.Options)}
}

// usable is ErrHandlerMissing when the program that makes the containers of a new sandbox is missing or broken.
func (m *Manager) usable(ctx context.Context, rec *store.Pod) error {
	if rec.Runtime == nil || m.cfg.Prober == nil {
		return nil
	}
	program := external.Program{Path: rec.Runtime.Path, Options: rec.Runtime.Options}
	if err := m.cfg.Prober.Usable(ctx, &program); err != nil {
		return fmt.Errorf("%w: handler %q: %w", ErrHandlerMissing, rec.Handler, err)
	}
	return nil
}

// checkRecursive refuses what a sandbox's handler, as it was when the sandbox was made, cannot do. It would do without, and leave writable what is to be
// read-only (KEP-3857). Errors: ErrNotRecursive.
func (m *Manager) checkRecursive(ctx context.Context, p *pod, config *runtimeapi.ContainerConfig) error {
	i := slices.IndexFunc(config.GetMounts(), (*runtimeapi.Mount).GetRecursiveReadOnly)
	if i < 0 {
		return nil
	}
	rec, can, silent := m.record(p), runtime.NativeFeatures(), error(nil)
	if rec.Runtime != nil && m.cfg.Prober != nil {
		can, silent = m.cfg.Prober.Features(ctx, &external.Program{Path: rec.Runtime.Path, Options: rec.Runtime.Options})
	}
	if !can.RecursiveReadOnlyMounts {
		return errors.Join(fmt.Errorf("%w: config.mounts[%d] of handler %q", ErrNotRecursive, i, rec.Handler), silent)
	}
	return nil
}

func (m *Manager) handlerOf(p *pod) handler {
	rec := m.record(p)
	if rec.Config == nil {
		return unknownHandler{nativeHandler{m}}
	}
	if rec.Runtime == nil {
		return nativeHandler{m}
	}
	return &externalHandler{m, external.Program{Path: rec.Runtime.Path, Root: rec.Runtime.Root, Options: rec.Runtime.Options}}
}

// nativeHandler is the engine inside the monitor. It puts nothing on the host but the bundle of a container with hooks.
type nativeHandler struct{ m *Manager }

func (h nativeHandler) start(_ context.Context, c *container, made *specs.Spec, r *monitor.StartRequest) (err error) {
	if r.Plan, err = runtime.Compile(made, c.root.trees); err != nil {
		return fmt.Errorf("compile spec: %w", err)
	}
	if h.m.cfg.Host.NoDeviceRules && !slices.Contains(made.Process.Capabilities.Bounding, "CAP_MKNOD") {
		r.Plan.Rootfs.Set |= unix.MOUNT_ATTR_NODEV // images have device nodes too
	}
	r.Plan.Directories = append(r.Plan.Directories, h.m.containerRecord(c).MakeDirs...)
	return h.m.prepareHooks(c, made, r)
}

func (nativeHandler) started(_ context.Context, _ *container, _ *monitor.StartRequest, answer error) error {
	return answer
}

func (h nativeHandler) exec(c *container, process *specs.Process, r *monitor.ExecRequest) (*execution, error) {
	made, err := h.m.specOf(c)
	if err != nil {
		return nil, err
	}
	if r.Process, err = runtime.CompileExec(made, process); err != nil {
		return nil, err
	}
	group, err := h.m.cfg.Cgroups.Child(h.m.containerRecord(c).Cgroup, "exec-"+newID()[:16])
	if err != nil {
		return nil, err
	}
	r.Cgroups, r.CgroupKill = group.Dirs, group.Kill
	return &execution{group: group}, nil
}

func (nativeHandler) execFault(_ *container, _ *execution, err error) error { return err }

func (h nativeHandler) end(ctx context.Context, c *container) error {
	return h.m.endBundle(ctx, c, h.m.stoppedHooks)
}

// unknownHandler made the containers of a sandbox whose record cannot be read. They only end.
type unknownHandler struct{ nativeHandler }

func (h unknownHandler) end(ctx context.Context, c *container) error {
	m := h.m
	group := m.cfg.Cgroups.RuntimePath(c.id)
	states, err := filepath.Glob(filepath.Join(m.cfg.State, "runtimes", "*", c.id))
	errs := []error{err, m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(ctx, group)}
	for _, path := range states {
		errs = append(errs, external.RemoveState(path))
	}
	return errors.Join(append(errs, external.Remove(m.bundle(c)))...)
}

// externalHandler is another OCI runtime. The monitor executes it and is the parent of what it makes.
type externalHandler struct {
	m       *Manager
	program external.Program
}

// bundle is the folder of a container that another runtime makes.
func (m *Manager) bundle(c *container) string { return filepath.Join(m.stateDir(c.pod.id), c.id) }

func (h *externalHandler) start(_ context.Context, c *container, made *specs.Spec, r *monitor.StartRequest) error {
	m := h.m
	link := m.linkOf(c.pod)
	if link == nil {
		return fmt.Errorf("its monitor has ended: %w", ErrState)
	}
	if err := os.MkdirAll(h.program.Root, 0o700); err != nil {
		return fmt.Errorf("make the runtime's folder: %w", err)
	}
	if err := m.effect("write bundle"); err != nil {
		return err
	}
	bundle := external.Bundle{Folder: m.bundle(c), Trees: c.root.trees, Directories: m.containerRecord(c).MakeDirs,
		Config: external.Config(made, podNamespaces(c.pod, link.process.PID))}
	if err := bundle.Write(); err != nil {
		return err
	}
	if err := m.effect("create runtime cgroup"); err != nil {
		return err
	}
	group, err := m.cfg.Cgroups.Runtime(c.id)
	if err != nil {
		return err
	}
	if len(group.Dirs) > 0 {
		r.RuntimeGroup = group.Dirs[0] // closed by started
	}
	r.Plan = outline(made)
	console := ""
	if made.Process.Terminal {
		console = external.ConsoleName
	}
	r.Command = monitor.Command{Args: h.program.Create(bundle.Folder, c.id, console), Folder: bundle.Folder, PIDFile: external.PIDFile(bundle.Folder),
		Console: filepath.Join(bundle.Folder, external.ConsoleName), Then: h.program.Start(bundle.Folder, c.id)}
	return nil
}

// podNamespaces are the sandbox's own, which its monitor is in.
func podNamespaces(p *pod, monitor int) external.Namespaces {
	path := func(name string) string { return fmt.Sprintf("/proc/%d/ns/%s", monitor, name) }
	var ns external.Namespaces
	if !hostNetwork(p.config) {
		ns.Network, ns.UTS = path("net"), path("uts")
	}
	if !hostIPC(p.config) {
		ns.IPC = path("ipc")
	}
	return ns
}

// outline is what the monitor needs to know of a container that it does not make itself.
func outline(s *specs.Spec) *engine.Plan {
	plan := &engine.Plan{CgroupPath: s.Linux.CgroupsPath, Process: *outlineProcess(s.Process)}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			plan.NewPID, plan.PIDNamespace = n.Path == "", n.Path
		}
	}
	return plan
}

func outlineProcess(p *specs.Process) *engine.Process {
	out := &engine.Process{User: engine.User{UID: p.User.UID, GID: p.User.GID}, Console: engine.Console{Terminal: p.Terminal}}
	if p.OOMScoreAdj != nil {
		out.OOMScoreAdj, out.OOMScoreSet = *p.OOMScoreAdj, true
	}
	return out
}

func (h *externalHandler) started(ctx context.Context, c *container, r *monitor.StartRequest, answer error) error {
	if r.RuntimeGroup != nil {
		answer = errors.Join(answer, r.RuntimeGroup.Close())
	}
	if answer != nil { // undone as a whole by end
		return explain(answer, h.m.bundle(c))
	}
	return h.m.cfg.Cgroups.Remove(ctx, h.m.cfg.Cgroups.RuntimePath(c.id))
}

// explain adds to an error what the runtime itself has said about it.
func explain(err error, folder string) error {
	if reason := external.Reason(folder); reason != "" {
		return fmt.Errorf("%w: %s", err, reason)
	}
	return err
}

func (h *externalHandler) exec(c *container, process *specs.Process, r *monitor.ExecRequest) (_ *execution, err error) {
	m := h.m
	name := "exec-" + newID()[:16]
	x := &execution{folder: external.ExecFolder(m.bundle(c), name)}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.closeExec(c, x))
		}
	}()
	if x.group, err = m.cfg.Cgroups.Branch(m.containerRecord(c).Cgroup, name); err != nil {
		return nil, err
	}
	if x.program, err = m.cfg.Cgroups.Runtime(name); err != nil {
		return nil, err
	}
	if err := external.WriteExec(x.folder, process); err != nil {
		return nil, err
	}
	r.Process, r.CgroupKill = outlineProcess(process), x.group.Kill
	if len(x.program.Dirs) > 0 {
		r.RuntimeGroup = x.program.Dirs[0]
	}
	console := ""
	if process.Terminal {
		console = external.ConsoleName
	}
	r.Command = monitor.Command{Args: h.program.Exec(x.folder, c.id, name, console), Folder: x.folder, PIDFile: external.PIDFile(x.folder),
		Console: filepath.Join(x.folder, external.ConsoleName)}
	return x, nil
}

// execFault adds what the runtime has said, and that the container has ended if it has: a runtime's words for that are its own.
func (h *externalHandler) execFault(c *container, x *execution, err error) error {
	if x != nil {
		err = explain(err, x.folder)
	}
	link := h.m.linkOf(c.pod)
	_, parent, gone := processStat(h.m.containerRecord(c).PID)
	if link == nil || gone != nil || parent != link.process.PID {
		return fmt.Errorf("it has exited: %w: %w", ErrState, err)
	}
	return err
}

func (h *externalHandler) end(ctx context.Context, c *container) error {
	m := h.m
	return m.endBundle(ctx, c, func(ctx context.Context, c *container) error {
		if err := m.effect("delete from runtime"); err != nil {
			return err
		}
		if err := h.program.Delete(ctx, m.bundle(c), c.id); err != nil {
			m.logger(ctx).Info("Runtime did not delete a container", "containerID", c.id, "err", err)
		}
		return nil
	})
}

// endBundle ends the programs that worked on a container, calls last, and takes the bundle away.
func (m *Manager) endBundle(ctx context.Context, c *container, last func(context.Context, *container) error) error {
	c.root.ending.Lock()
	defer c.root.ending.Unlock()
	folder := m.bundle(c)
	if _, err := os.Lstat(folder); errors.Is(err, os.ErrNotExist) { // it is made first and goes last
		return nil
	}
	if err := m.effect("end runtime"); err != nil {
		return err
	}
	group := m.cfg.Cgroups.RuntimePath(c.id)
	if err := errors.Join(m.cfg.Cgroups.Kill(group), m.cfg.Cgroups.Remove(ctx, group)); err != nil {
		return err
	}
	if err := last(ctx, c); err != nil {
		return err
	}
	if err := m.effect("remove bundle"); err != nil {
		return err
	}
	return external.Remove(folder)
}
