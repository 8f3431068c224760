package spec

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// namespaces lists those that the container does not share with the monitor: a path is joined, none means a new one.
func (b *builder) namespaces() error {
	list := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if b.users.own() {
		list = append(list, specs.LinuxNamespace{Type: specs.UserNamespace})
		b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = b.users.UIDs, b.users.GIDs
	}
	own := specs.LinuxNamespace{Type: specs.PIDNamespace}
	podMode := b.in.Pod.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid()
	options := b.security.GetNamespaceOptions()
	switch mode := options.GetPid(); mode {
	case runtimeapi.NamespaceMode_CONTAINER:
		list = append(list, own)
	case runtimeapi.NamespaceMode_TARGET:
		if b.in.TargetPIDNS == "" {
			return invalid(fieldSecurity+"namespace_options.target_id", options.GetTargetId(), "must be a running container of the pod")
		}
		list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: b.in.TargetPIDNS})
	default: // POD and NODE: whatever the pod has
		switch {
		case podMode == runtimeapi.NamespaceMode_NODE:
		case b.in.Pod.PIDPath != "":
			list = append(list, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: b.in.Pod.PIDPath})
		default:
			b.note(fieldSecurity+"namespace_options.pid", mode.String(), "the pod shares no pid namespace: the container gets its own")
			list = append(list, own)
		}
		if mode == runtimeapi.NamespaceMode_NODE && podMode != mode {
			b.note(fieldSecurity+"namespace_options.pid", mode.String(), "the pod is not in the host's pid namespace, so the container is not either")
		}
	}
	// On v1 the cgroup mounts do not show a namespace's root as theirs, and privileged containers manage the host's.
	if b.in.Host.CgroupV2 && !b.privileged {
		list = append(list, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	b.spec.Linux.Namespaces = list
	return nil
}

// cgroup sets the container's place, which the daemon has chosen.
func (b *builder) cgroup() error {
	if err := checkCgroupPath("cgroup path", b.in.CgroupPath); err != nil {
		return err
	}
	b.spec.Linux.CgroupsPath = b.in.CgroupPath
	return nil
}

// checkNamespaces checks the modes of a pod or a container.
func checkNamespaces(field string, o *runtimeapi.NamespaceOption) error {
	for _, n := range []struct {
		field string
		mode  runtimeapi.NamespaceMode
	}{{"network", o.GetNetwork()}, {"pid", o.GetPid()}, {"ipc", o.GetIpc()}} {
		if runtimeapi.NamespaceMode_name[int32(n.mode)] == "" {
			return invalid(field+n.field, itoa(int(n.mode)), "is not a namespace mode of the CRI")
		}
		if n.field != "pid" && (n.mode == runtimeapi.NamespaceMode_CONTAINER || n.mode == runtimeapi.NamespaceMode_TARGET) {
			return invalid(field+n.field, n.mode.String(), "must be POD or NODE")
		}
	}
	if o.GetPid() == runtimeapi.NamespaceMode_TARGET && o.GetTargetId() == "" {
		return invalid(field+"target_id", "", "must be set with pid mode TARGET")
	}
	return checkUsers(field, o)
}
