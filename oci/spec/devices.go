package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ownDevices are below /dev in every container; the engine makes them (runtime-spec config-linux.md#default-devices).
var ownDevices = []string{
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/ptmx", "/dev/console",
}

// allowedDevices are open to every container: making any node, and using the own ones and terminals. The list is runc's.
func allowedDevices() []specs.LinuxDeviceCgroup {
	out := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} { // null zero full random urandom tty ptmx
		out = append(out, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	pts := int64(136) // UNIX98_PTY_SLAVE_MAJOR
	return append(out, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &pts, Access: "rwm"})
}

// devices sets the nodes that are made, and which numbers may be used. A privileged container has the host's nodes and may
// use all.
func (b *builder) devices() error {
	r := b.spec.Linux.Resources
	all := b.privileged && !b.in.Host.NoHostDevices
	if all {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range b.in.Host.Devices {
			if !slices.Contains(ownDevices, d.Path) {
				b.addDevice(d)
			}
		}
	} else {
		r.Devices = allowedDevices()
	}
	requested := b.in.Container.GetDevices()
	for i, d := range slices.Concat(requested, b.in.Host.ForAll) {
		field := "config.devices[" + itoa(i) + "]."
		if i >= len(requested) {
			field = "(devices.additional) "
		}
		found := b.in.Devices[d.GetHostPath()]
		if len(found) == 0 {
			return invalid(field+"host_path", d.GetHostPath(), "must be a device, or a folder of devices, on the host")
		}
		target := d.GetContainerPath()
		if target == "" {
			target = d.GetHostPath()
		}
		access := d.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		for _, node := range found {
			node.Path = cleanPath(target + strings.TrimPrefix(node.Path, d.GetHostPath()))
			if slices.Contains(ownDevices, node.Path) {
				return invalid(field+"container_path", node.Path, "must not be a device that every container has")
			}
			if b.in.Host.OwnedByUser && i < len(requested) {
				b.own(&node)
			}
			b.addDevice(node)
			if b.in.Host.NoDeviceRules && access != "rwm" {
				return invalid(field+"permissions", access, "must be rwm: this host has no rules for devices")
			}
			if !all && node.Type != "p" {
				major, minor := node.Major, node.Minor
				r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: node.Type, Major: &major, Minor: &minor, Access: access})
			}
		}
	}
	if b.in.Host.NoDeviceRules {
		r.Devices = nil
	}
	return nil
}

// addDevice adds a node. A later one takes the place of one with the same path.
func (b *builder) addDevice(d specs.LinuxDevice) {
	d.FileMode, d.UID, d.GID = clone(d.FileMode), clone(d.UID), clone(d.GID)
	list := &b.spec.Linux.Devices
	if i := slices.IndexFunc(*list, func(x specs.LinuxDevice) bool { return x.Path == d.Path }); i >= 0 {
		(*list)[i] = d
		return
	}
	*list = append(*list, d)
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// own gives a node to the user and the group that the request names.
func (b *builder) own(node *specs.LinuxDevice) {
	if b.security.GetRunAsUser() != nil {
		if id, ok := onHost(b.users.UIDs, b.spec.Process.User.UID); ok {
			node.UID = &id
		}
	}
	if b.security.GetRunAsGroup() != nil {
		if id, ok := onHost(b.users.GIDs, b.spec.Process.User.GID); ok {
			node.GID = &id
		}
	}
}

// onHost is the host's ID of one of the container's: device nodes belong to users of the host.
func onHost(list []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range list {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return id, len(list) == 0
}

// CheckDevice checks one of the operator's devices, in the words of its key.
func CheckDevice(d *runtimeapi.Device) error { return checkDevice("", d) }

// checkDevice checks one device of a request.
func checkDevice(field string, d *runtimeapi.Device) error {
	if err := checkPath(field+"host_path", d.GetHostPath()); err != nil {
		return err
	}
	if p := d.GetContainerPath(); p != "" {
		if err := checkPath(field+"container_path", p); err != nil {
			return err
		}
		if c := cleanPath(p); c == "/" || below(c, "/proc") || below(c, "/sys") {
			return invalid(field+"container_path", p, "must not be the root, or in /proc or /sys")
		}
	}
	if p := d.GetPermissions(); strings.Trim(p, "rwm") != "" || len(p) > 3 {
		return invalid(field+"permissions", p, "must be one or more of r, w and m")
	}
	return nil
}
