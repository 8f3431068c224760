package spec

import (
	"cmp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountOptions are the bind mount options that a request may add. Read-only, propagation and what is bound have fields.
var mountOptions = []string{
	"nosuid", "suid", "nodev", "dev", "noexec", "exec", "noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime",
	"strictatime", "nostrictatime", "nosymfollow", "symfollow", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec",
	"rnoatime", "ratime", "rnodiratime", "rdiratime", "rrelatime", "rnorelatime", "rstrictatime", "rnostrictatime",
	"rnosymfollow", "rsymfollow",
}

// procFiles may be mounted over: they tell of resources, and lxcfs replaces them. Anything else below /proc would let a
// mount answer for the kernel, as with /proc/self/attr (CVE-2019-19921). The list is runc's.
var procFiles = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
	"/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled",
}

// mounts lists the file systems of the kernel, then the request's mounts and the pod's files, in the order in which they are
// mounted: folders before what is in them. A mount of the request takes the place of a pod's file at its destination, and
// of all kernel file systems at and below it.
func (b *builder) mounts() error {
	requested := b.in.Container.GetMounts()
	taken := func(covers func(destination string) bool) bool {
		return slices.ContainsFunc(requested, func(m *runtimeapi.Mount) bool { return covers(cleanPath(m.GetContainerPath())) })
	}
	for _, m := range b.kernelMounts() {
		if !taken(func(d string) bool { return below(m.Destination, d) }) {
			b.spec.Mounts = append(b.spec.Mounts, m)
		}
	}
	var bound []specs.Mount
	for _, m := range requested {
		if err := b.checkPropagation(m); err != nil {
			return err
		}
		bound = append(bound, b.bind(m))
	}
	for _, m := range b.podMounts() {
		if !taken(func(d string) bool { return d == m.Destination }) {
			bound = append(bound, m)
		}
	}
	slices.SortStableFunc(bound, func(x, y specs.Mount) int {
		return cmp.Compare(strings.Count(x.Destination, "/"), strings.Count(y.Destination, "/"))
	})
	b.spec.Mounts = append(b.spec.Mounts, bound...)
	return nil
}

// ttyGroup is the group that terminals belong to in every distribution.
const ttyGroup = 5

func (b *builder) kernelMounts() []specs.Mount {
	access := "ro"
	if b.privileged {
		access = "rw"
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}
	if !b.users.own() || mapped(b.users.GIDs, ttyGroup) {
		pts = append(pts, "gid="+itoa(ttyGroup))
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

// podMounts are what the containers of a pod share.
func (b *builder) podMounts() []specs.Mount {
	p := &b.in.Pod
	var out []specs.Mount
	switch {
	case p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE:
		out = append(out, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind", "rprivate", "rw"}})
	case p.ShmPath != "":
		out = append(out, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: p.ShmPath,
			Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec", "rw"}})
	}
	access := "rw"
	if b.security.GetReadonlyRootfs() {
		access = "ro"
	}
	for _, f := range []struct{ destination, source string }{
		{"/etc/hosts", p.HostsPath}, {"/etc/hostname", p.HostnamePath}, {"/etc/resolv.conf", p.ResolvPath},
	} {
		if f.source != "" {
			out = append(out, specs.Mount{Destination: f.destination, Type: "bind", Source: f.source, Options: []string{"rbind", "rprivate", access}})
		}
	}
	for i := range out { // they are root's, and the container's root is to have them
		out[i].UIDMappings, out[i].GIDMappings = b.users.UIDs, b.users.GIDs
	}
	return out
}

// bind translates a mount of the request, which checkMount has passed.
func (b *builder) bind(m *runtimeapi.Mount) specs.Mount {
	options := []string{"rbind"}
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		options = append(options, "rshared")
		b.spec.Linux.RootfsPropagation = "rshared"
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		options = append(options, "rslave")
		if b.spec.Linux.RootfsPropagation == "" {
			b.spec.Linux.RootfsPropagation = "rslave"
		}
	default:
		options = append(options, "rprivate")
	}
	switch {
	case m.GetRecursiveReadOnly():
		options = append(options, "rro")
	case m.GetReadonly():
		options = append(options, "ro")
	default:
		options = append(options, "rw")
	}
	return specs.Mount{
		Destination: cleanPath(m.GetContainerPath()),
		Type:        "bind",
		Source:      m.GetHostPath(), // as it is: cleaning would change what a link in it means
		Options:     append(options, m.GetMountOptions()...),
		UIDMappings: mappings(m.GetUidMappings()),
		GIDMappings: mappings(m.GetGidMappings()),
	}
}

// checkPropagation refuses what would let a user namespace's root mount on the host, and mappings without a user namespace.
func (b *builder) checkPropagation(m *runtimeapi.Mount) error {
	switch {
	case b.users.own() && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return invalid("config.mounts.propagation", m.GetPropagation().String(), "must not be set in a pod with a user namespace")
	case !b.users.own() && len(m.GetUidMappings()) > 0:
		return invalid("config.mounts.uidMappings", m.GetContainerPath(), "must not be set in a pod without a user namespace")
	}
	return nil
}

// checkMount checks one mount of a request.
func checkMount(field string, m *runtimeapi.Mount) error {
	if err := checkPath(field+"container_path", m.GetContainerPath()); err != nil {
		return err
	}
	if m.GetImage().GetImage() != "" {
		return invalid(field+"image", m.GetImage().GetImage(), "is not supported: image volumes are not built")
	}
	if err := checkPath(field+"host_path", m.GetHostPath()); err != nil {
		return err
	}
	destination := cleanPath(m.GetContainerPath())
	switch {
	case destination == "/":
		return invalid(field+"container_path", m.GetContainerPath(), "must not be the root")
	case destination == "/proc" && m.GetHostPath() != "/proc":
		return invalid(field+"container_path", m.GetContainerPath(), "must not replace /proc but by the host's")
	case below(destination, "/proc") && destination != "/proc" && !slices.Contains(procFiles, destination):
		return invalid(field+"container_path", m.GetContainerPath(), "must not be below /proc")
	}
	if err := checkMountMappings(field, m); err != nil {
		return err
	}
	switch p := m.GetPropagation(); {
	case runtimeapi.MountPropagation_name[int32(p)] == "":
		return invalid(field+"propagation", itoa(int(p)), "is not a propagation of the CRI")
	case m.GetRecursiveReadOnly() && !m.GetReadonly():
		return invalid(field+"recursive_read_only", "true", "must not be set without readonly")
	case m.GetRecursiveReadOnly() && p != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid(field+"recursive_read_only", "true", "must not be set with %s", p)
	}
	for _, o := range m.GetMountOptions() {
		if !slices.Contains(mountOptions, o) {
			return invalid(field+"mount_options", o, "is not an option that a request may set")
		}
	}
	return nil
}
