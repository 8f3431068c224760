package nri

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
)

// UnsupportedError is a part of an adjustment, or of an update, that cannot be applied.
type UnsupportedError struct{ Field, Reason string }

// Error names the part and says why.
func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("a plugin asks for %s, which cannot be done: %s", e.Field, e.Reason)
}

// apply changes c as the plugins have agreed. Devices of the node come first: plugins may change what those bring.
func (p *Plugins) apply(ctx context.Context, c *adjust.Container, a *api.ContainerAdjustment) error {
	s := c.Spec
	if err := p.devices(ctx, c, a.GetCDIDevices()); err != nil {
		return err
	}
	adjustMap(&s.Annotations, a.GetAnnotations())
	s.Process.Env = adjustEnv(s.Process.Env, a.GetEnv())
	if len(a.GetArgs()) > 0 {
		s.Process.Args = slices.Clone(a.GetArgs())
	}
	adjustHooks(s, a.GetHooks())
	if err := adjustMounts(s, a.GetMounts()); err != nil {
		return err
	}
	for _, l := range a.GetRlimits() {
		s.Process.Rlimits = slices.DeleteFunc(s.Process.Rlimits, func(have specs.POSIXRlimit) bool { return have.Type == l.GetType() })
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	linux := a.GetLinux()
	adjustDevices(s, linux.GetDevices())
	adjustNamespaces(s, linux.GetNamespaces())
	adjustMap(&s.Linux.Sysctl, linux.GetSysctl())
	adjustNetDevices(s, linux.GetNetDevices())
	if err := adjustProcess(s, linux); err != nil {
		return err
	}
	if path := linux.GetCgroupsPath(); path != "" && path != s.Linux.CgroupsPath {
		return &UnsupportedError{"linux.cgroups_path " + path, "a container's cgroup is the daemon's to choose"}
	}
	if err := p.classes(ctx, c, linux); err != nil {
		return err
	}
	return limits(c, linux)
}

// classes gives the container classes of block I/O and of service. Which classes of service there are is looked at after plugins.
func (p *Plugins) classes(ctx context.Context, c *adjust.Container, linux *api.LinuxContainerAdjustment) error {
	l := c.Spec.Linux
	if v := linux.GetResources().GetBlockioClass(); v != nil {
		switch {
		case v.GetValue() == "":
			resourcesOf(c.Spec).BlockIO = nil
		case p.cfg.BlockIO == nil:
			return &UnsupportedError{"linux.resources.blockio_class " + v.GetValue(), "there are no such classes"}
		default:
			if err := p.cfg.BlockIO(ctx, c, v.GetValue()); err != nil {
				return about("a plugin's class of block I/O", err)
			}
		}
	}
	made := specs.LinuxIntelRdt{}
	if l.IntelRdt != nil && !linux.GetRdt().GetRemove() {
		made = *l.IntelRdt
	}
	if v := linux.GetResources().GetRdtClass(); v != nil {
		made = specs.LinuxIntelRdt{ClosID: v.GetValue()}
	}
	if v := linux.GetRdt().GetClosId(); v != nil {
		made.ClosID = v.GetValue()
	}
	if v := linux.GetRdt().GetSchemata(); v != nil {
		made.Schemata = slices.Clone(v.GetValue())
	}
	if v := linux.GetRdt().GetEnableMonitoring(); v != nil {
		made.EnableMonitoring = v.GetValue()
	}
	l.IntelRdt = &made
	if made.ClosID == "" && len(made.Schemata) == 0 && !made.EnableMonitoring {
		l.IntelRdt = nil
	}
	return nil
}

// dropRemoved takes away variables and devices that plugins have removed: the library tells of that only by what it has made of its request.
func dropRemoved(s *specs.Spec, made *api.Container) {
	kept := map[string]bool{}
	for _, variable := range made.GetEnv() {
		key, _, _ := strings.Cut(variable, "=")
		kept[key] = true
	}
	s.Process.Env = slices.DeleteFunc(s.Process.Env, func(variable string) bool {
		key, _, _ := strings.Cut(variable, "=")
		return !kept[key]
	})
	s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(d specs.LinuxDevice) bool {
		return !slices.ContainsFunc(made.GetLinux().GetDevices(), func(k *api.LinuxDevice) bool { return k.GetPath() == d.Path })
	})
}

// devices gives the container more CDI devices.
func (p *Plugins) devices(ctx context.Context, c *adjust.Container, asked []*api.CDIDevice) error {
	if len(asked) == 0 {
		return nil
	}
	if p.cfg.Devices == nil {
		return &UnsupportedError{"CDI_devices " + asked[0].GetName(), "CDI is not in use"}
	}
	more := *c
	more.Pod, more.Config = &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{Metadata: c.Config.GetMetadata()}
	for _, d := range asked {
		more.Config.CDIDevices = append(more.Config.CDIDevices, &runtimeapi.CDIDevice{Name: d.GetName()})
	}
	return about("a plugin's devices", p.cfg.Devices(ctx, &more))
}

// adjustMap sets and removes keys.
func adjustMap(have *map[string]string, asked map[string]string) {
	for key, value := range asked {
		if removed, marked := api.IsMarkedForRemoval(key); marked {
			if _, again := asked[removed]; !again {
				delete(*have, removed)
			}
			continue
		}
		if *have == nil {
			*have = map[string]string{}
		}
		(*have)[key] = value
	}
}

// adjustEnv changes variables where they stand, and adds others at the end.
func adjustEnv(have []string, asked []*api.KeyValue) []string {
	for _, e := range asked {
		key, removed := api.IsMarkedForRemoval(e.GetKey())
		named := func(variable string) bool { return strings.HasPrefix(variable, key+"=") }
		if removed {
			have = slices.DeleteFunc(have, named)
			continue
		}
		if i := slices.IndexFunc(have, named); i >= 0 {
			have[i] = e.ToOCI()
		} else {
			have = append(have, e.ToOCI())
		}
	}
	return have
}

func adjustHooks(s *specs.Spec, asked *api.Hooks) {
	if asked.Hooks() == nil {
		return
	}
	if s.Hooks == nil {
		s.Hooks = &specs.Hooks{}
	}
	for _, h := range []struct {
		have  *[]specs.Hook
		asked []*api.Hook
	}{
		{&s.Hooks.Prestart, asked.GetPrestart()}, //nolint:staticcheck // runtimes run them still
		{&s.Hooks.CreateRuntime, asked.GetCreateRuntime()}, {&s.Hooks.CreateContainer, asked.GetCreateContainer()},
		{&s.Hooks.StartContainer, asked.GetStartContainer()}, {&s.Hooks.Poststart, asked.GetPoststart()}, {&s.Hooks.Poststop, asked.GetPoststop()},
	} {
		for _, hook := range h.asked {
			*h.have = append(*h.have, hook.ToOCI())
		}
	}
}

// adjustMounts replaces, removes and adds mounts by their destinations, and puts outer ones before inner ones.
func adjustMounts(s *specs.Spec, asked []*api.Mount) error {
	if len(asked) == 0 {
		return nil
	}
	for _, m := range asked {
		destination, removed := m.IsMarkedForRemoval()
		s.Mounts = slices.DeleteFunc(s.Mounts, func(have specs.Mount) bool { return path.Clean(have.Destination) == path.Clean(destination) })
		if removed {
			continue
		}
		if !path.IsAbs(destination) || path.Clean(destination) == "/" {
			return &UnsupportedError{"mounts " + destination, "a destination must be an absolute path below the root"}
		}
		if slices.Contains(m.GetOptions(), api.SELinuxRelabel) {
			return &UnsupportedError{"mounts " + destination + " with option " + api.SELinuxRelabel, "files are not labelled anew"}
		}
		propagation := ""
		made := m.ToOCI(&propagation)
		switch {
		case propagation == "rshared":
			s.Linux.RootfsPropagation = "rshared"
		case propagation == "rslave" && s.Linux.RootfsPropagation != "rshared":
			s.Linux.RootfsPropagation = "rslave"
		}
		s.Mounts = append(s.Mounts, made)
	}
	depth := func(m specs.Mount) int { return strings.Count(path.Clean(m.Destination), "/") }
	slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int { return cmp.Compare(depth(a), depth(b)) })
	return nil
}

// adjustDevices replaces, removes and adds device nodes, and lets the container use them.
func adjustDevices(s *specs.Spec, asked []*api.LinuxDevice) {
	for _, d := range asked {
		name, removed := d.IsMarkedForRemoval()
		s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(have specs.LinuxDevice) bool { return have.Path == name })
		if removed {
			continue
		}
		s.Linux.Devices = append(s.Linux.Devices, d.ToOCI())
		major, minor := d.GetMajor(), d.GetMinor()
		if r := resourcesOf(s); len(r.Devices) > 0 { // else the host has no rules, and all may be used
			r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.GetType(), Major: &major, Minor: &minor, Access: d.AccessString()})
		}
	}
}

func resourcesOf(s *specs.Spec) *specs.LinuxResources {
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	return s.Linux.Resources
}

func adjustNamespaces(s *specs.Spec, asked []*api.LinuxNamespace) {
	for _, n := range asked {
		kind, removed := n.IsMarkedForRemoval()
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(have specs.LinuxNamespace) bool { return string(have.Type) == kind })
		if !removed {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: n.GetPath()})
		}
	}
}

func adjustNetDevices(s *specs.Spec, asked map[string]*api.LinuxNetDevice) {
	for name, d := range asked {
		if removed, marked := api.IsMarkedForRemoval(name); marked {
			if _, again := asked[removed]; !again {
				delete(s.Linux.NetDevices, removed)
			}
			continue
		}
		if s.Linux.NetDevices == nil {
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{}
		}
		s.Linux.NetDevices[name] = d.ToOCI()
	}
}

// adjustProcess applies what the process gets before it executes its program.
func adjustProcess(s *specs.Spec, linux *api.LinuxContainerAdjustment) error {
	if v := linux.GetIoPriority(); v != nil {
		s.Process.IOPriority = v.ToOCI()
	}
	if v := linux.GetScheduler(); v != nil {
		s.Process.Scheduler = v.ToOCI()
	}
	if v := linux.GetMemoryPolicy(); v != nil {
		s.Linux.MemoryPolicy = v.ToOCI()
	}
	p := linux.GetSeccompPolicy()
	if p == nil {
		return nil
	}
	made := &specs.LinuxSeccomp{DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), ListenerPath: p.GetListenerPath(),
		ListenerMetadata: p.GetListenerMetadata(), Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls())}
	if v := p.GetDefaultErrno(); v != nil {
		number := uint(v.GetValue())
		made.DefaultErrnoRet = &number
	}
	for _, arch := range p.GetArchitectures() {
		made.Architectures = append(made.Architectures, specs.Arch(arch))
	}
	for _, flag := range p.GetFlags() {
		made.Flags = append(made.Flags, specs.LinuxSeccompFlag(flag))
	}
	s.Linux.Seccomp = made
	return nil
}

// limits applies limits: those that a request can set as if it had set them, the others to the specification.
func limits(c *adjust.Container, linux *api.LinuxContainerAdjustment) error {
	r := linux.GetResources()
	if err := unsupportedLimits(r); err != nil {
		return err
	}
	before := c.Config.GetLinux().GetResources()
	if before == nil {
		before = &runtimeapi.LinuxContainerResources{}
	}
	after := proto.CloneOf(before)
	override(after, r)
	if v := linux.GetOomScoreAdj(); v != nil {
		after.OomScoreAdj = v.GetValue()
	}
	if !proto.Equal(before, after) {
		c.Resources = after
	}
	have := resourcesOf(c.Spec)
	if m := r.GetMemory(); m.GetReservation() != nil || m.GetSwappiness() != nil {
		made := specs.LinuxMemory{}
		if have.Memory != nil {
			made = *have.Memory
		}
		made.Reservation, made.Swappiness = cmp.Or(m.GetReservation().Get(), made.Reservation), cmp.Or(m.GetSwappiness().Get(), made.Swappiness)
		have.Memory = &made
	}
	if v := r.GetPids(); v != nil {
		limit := v.GetLimit()
		have.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if len(r.GetDevices()) > 0 && len(have.Devices) == 0 {
		return &UnsupportedError{"linux.resources.devices", "this host has no rules for devices"}
	}
	for _, d := range r.GetDevices() {
		have.Devices = append(have.Devices, specs.LinuxDeviceCgroup{Allow: d.GetAllow(), Type: d.GetType(), Major: d.GetMajor().Get(),
			Minor: d.GetMinor().Get(), Access: d.GetAccess()})
	}
	return nil
}
