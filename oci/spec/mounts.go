package spec

import (
	"cmp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountOptions are the options that a request may add: those that take something away. Read-only, propagation and what is bound have fields.
var mountOptions = []string{"noexec", "nodev", "nosuid"}

// typeImage is the type of a mount that shows what an image holds. Its source is the image's ID, and after a slash the path of what is mounted
// of it, if that is not all.
const typeImage = "image"

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
		if isVolume(m) {
			bound = append(bound, volume(m))
			continue
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
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if b.users.own() && b.in.Pod.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		// A sysfs is of a network namespace, and only who has power over that may mount it. What the host mounts in its own stays out.
		sys.Type, sys.Source, sys.Options = "bind", "/sys", append([]string{"bind", "rprivate"}, sys.Options...)
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
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

// volume translates a mount of an image, which checkMount has passed. Nothing in it is a device: the image is a stranger's. Its owners are mapped as
// those of the root are.
func volume(m *runtimeapi.Mount) specs.Mount {
	source := m.GetImage().GetImageRef()
	if sub := cleanPath(m.GetImageSubPath()); sub != "/" {
		source += sub
	}
	options := append([]string{"rprivate", "ro", "nodev"}, m.GetMountOptions()...)
	return specs.Mount{Destination: cleanPath(m.GetContainerPath()), Type: typeImage, Source: source, Options: options}
}

// checkPropagation refuses what would let a user namespace's root mount on the host, and mappings without a user namespace.
func (b *builder) checkPropagation(m *runtimeapi.Mount) error {
	switch {
	case b.users.own() && m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		return invalid("config.mounts.propagation", m.GetPropagation().String(), "must not be set in a pod with a user namespace")
	case !b.users.own() && len(m.GetUidMappings()) > 0:
		return invalid("config.mounts.uidMappings", m.GetContainerPath(), "must not be set in a pod without a user namespace")
	case isVolume(m) && len(m.GetUidMappings()) > 0 &&
		!(slices.Equal(mappings(m.GetUidMappings()), b.users.UIDs) && slices.Equal(mappings(m.GetGidMappings()), b.users.GIDs)):
		return invalid("config.mounts.uidMappings", m.GetContainerPath(), "must be the pod's for a mount of an image")
	}
	return nil
}

// ValidateMount checks one mount of a request, whose name field is. The errors are *InvalidError.
func ValidateMount(field string, m *runtimeapi.Mount) error { return checkMount(field, m) }

// checkMount checks one mount of a request.
func checkMount(field string, m *runtimeapi.Mount) error {
	if err := checkPath(field+"container_path", m.GetContainerPath()); err != nil {
		return err
	}
	source := checkHostPath
	if isVolume(m) {
		source = checkVolume
	}
	if err := source(field, m); err != nil {
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
			return invalid(field+"mount_options", o, "must be one of %s", strings.Join(mountOptions, ", "))
		}
	}
	return nil
}

func checkHostPath(field string, m *runtimeapi.Mount) error {
	if m.GetImageSubPath() != "" {
		return invalid(field+"image_sub_path", m.GetImageSubPath(), "must not be set without image")
	}
	return checkPath(field+"host_path", m.GetHostPath())
}

// isVolume tells whether a mount is of an image.
func isVolume(m *runtimeapi.Mount) bool { return m.GetImage().GetImage() != "" }

// checkVolume checks what only a mount of an image has. Who made the request has looked the image up.
func checkVolume(field string, m *runtimeapi.Mount) error {
	sub := m.GetImageSubPath()
	switch {
	case m.GetHostPath() != "":
		return invalid(field+"host_path", m.GetHostPath(), "must be empty for a mount of an image")
	case !m.GetReadonly():
		return invalid(field+"readonly", "false", "must be true for a mount of an image")
	case m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL: // from the host nothing comes: nobody mounts there
		return invalid(field+"propagation", m.GetPropagation().String(), "must not be bidirectional for a mount of an image")
	case strings.HasPrefix(sub, "/") || climbs(sub):
		return invalid(field+"image_sub_path", sub, "must be relative and without ..")
	case strings.ContainsRune(sub, 0) || len(sub) > maxPath:
		return invalid(field+"image_sub_path", sub, "must have at most %d bytes, and no NUL", maxPath)
	case m.GetImage().GetImageRef() == "" || strings.ContainsRune(m.GetImage().GetImageRef(), '/'):
		return invalid(field+"image.image_ref", m.GetImage().GetImageRef(), "must be the ID of an image that is here")
	}
	return nil
}
