package nri

import (
	"maps"
	"strconv"

	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
)

// sandboxOf is a sandbox as plugins get it.
func sandboxOf(s *adjust.Sandbox) *api.PodSandbox {
	meta, linux := s.Config.GetMetadata(), s.Config.GetLinux()
	out := &api.PodSandbox{
		Id: s.ID, Name: meta.GetName(), Uid: meta.GetUid(), Namespace: meta.GetNamespace(),
		Labels: maps.Clone(s.Config.GetLabels()), Annotations: maps.Clone(s.Config.GetAnnotations()),
		RuntimeHandler: s.Handler, Pid: uint32(s.PID),
		Linux: &api.LinuxPodSandbox{
			PodOverhead: fromCRI(linux.GetOverhead()), PodResources: fromCRI(linux.GetResources()),
			CgroupParent: linux.GetCgroupParent(), CgroupsPath: s.Cgroup, Resources: fromCRI(linux.GetResources()),
		},
	}
	for _, ip := range s.IPs {
		out.Ips = append(out.Ips, ip.String())
	}
	if s.NetNS != "" {
		out.Linux.Namespaces = append(out.Linux.Namespaces, &api.LinuxNamespace{Type: string(specs.NetworkNamespace), Path: s.NetNS})
	}
	if s.PID == 0 {
		return out
	}
	for _, n := range []struct {
		kind specs.LinuxNamespaceType
		file string
		own  bool
	}{
		{specs.IPCNamespace, "ipc", linux.GetSecurityContext().GetNamespaceOptions().GetIpc() != runtimeapi.NamespaceMode_NODE},
		{specs.UTSNamespace, "uts", s.NetNS != ""},
	} {
		if n.own {
			out.Linux.Namespaces = append(out.Linux.Namespaces, &api.LinuxNamespace{Type: string(n.kind), Path: "/proc/" + strconv.Itoa(s.PID) + "/ns/" + n.file})
		}
	}
	return out
}

var states = map[string]api.ContainerState{
	adjust.Created: api.ContainerState_CONTAINER_CREATED, adjust.Running: api.ContainerState_CONTAINER_RUNNING,
	adjust.Exited: api.ContainerState_CONTAINER_STOPPED,
}

// containerOf is a container as plugins get it. It shares nothing with c.
func containerOf(c *adjust.Container) *api.Container {
	out := &api.Container{
		Id: c.ID, PodSandboxId: c.SandboxID, Name: c.Config.GetMetadata().GetName(), State: states[c.Status.State],
		Labels: maps.Clone(c.Config.GetLabels()), Pid: uint32(c.Status.PID), CreatedAt: c.Status.CreatedAt, StartedAt: c.Status.StartedAt,
		FinishedAt: c.Status.FinishedAt, ExitCode: c.Status.ExitCode, StatusReason: c.Status.Reason, StatusMessage: c.Status.Message,
		Linux: &api.LinuxContainer{SeccompProfile: profileOf(c.Config.GetLinux().GetSecurityContext().GetSeccomp())},
	}
	if i := c.Image; i != (adjust.Image{}) {
		out.Image = &api.Image{Name: i.Name, Digest: i.Digest, ConfigDigest: i.ConfigDigest}
	}
	for _, d := range c.Config.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, &api.CDIDevice{Name: d.GetName()})
	}
	if s := c.Spec; s != nil {
		specified(out, s)
	}
	return out
}

// specified takes over what the specification says.
func specified(out *api.Container, s *specs.Spec) {
	out.Annotations, out.Mounts, out.Hooks = maps.Clone(s.Annotations), api.FromOCIMounts(s.Mounts), api.FromOCIHooks(s.Hooks)
	linux := out.Linux
	if p := s.Process; p != nil {
		out.Args, out.Env = api.DupStringSlice(p.Args), api.DupStringSlice(p.Env)
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: append([]uint32(nil), p.User.AdditionalGids...)}
		linux.OomScoreAdj = api.Int(p.OOMScoreAdj)
		linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		linux.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
	}
	l := s.Linux
	if l == nil {
		return
	}
	linux.Namespaces, linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	linux.Resources = api.FromOCILinuxResources(l.Resources, nil)
	linux.CgroupsPath, linux.Sysctl = l.CgroupsPath, maps.Clone(l.Sysctl)
	if l.Seccomp != nil {
		linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	linux.NetDevices = api.FromOCILinuxNetDevices(l.NetDevices)
	if rdt := l.IntelRdt; rdt != nil {
		linux.Rdt = &api.LinuxRdt{ClosId: api.String(rdt.ClosID), Schemata: api.RepeatedString(rdt.Schemata), EnableMonitoring: api.Bool(rdt.EnableMonitoring)}
	}
}

func profileOf(p *runtimeapi.SecurityProfile) *api.SecurityProfile {
	kinds := map[runtimeapi.SecurityProfile_ProfileType]api.SecurityProfile_ProfileType{
		runtimeapi.SecurityProfile_RuntimeDefault: api.SecurityProfile_RUNTIME_DEFAULT,
		runtimeapi.SecurityProfile_Unconfined:     api.SecurityProfile_UNCONFINED,
		runtimeapi.SecurityProfile_Localhost:      api.SecurityProfile_LOCALHOST,
	}
	if p == nil {
		return &api.SecurityProfile{ProfileType: api.SecurityProfile_UNCONFINED}
	}
	return &api.SecurityProfile{ProfileType: kinds[p.GetProfileType()], LocalhostRef: p.GetLocalhostRef()}
}
