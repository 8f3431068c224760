package runtime

import (
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
)

// propagation maps option names to mount(2) flags (runtime-spec config-linux.md#rootfs-mount-propagation).
var propagation = map[string]uint64{
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC, "slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC, "unbindable": unix.MS_UNBINDABLE,
	"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// attribute is what an option does to a mount's attributes (mount_setattr(2)).
type attribute struct{ set, clear uint64 }

// attributes maps option names, without the r of the recursive ones (runtime-spec config.md#linux-mount-options).
var attributes = map[string]attribute{
	"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
	"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
	"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
	"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
	// The access time modes are one field: relatime is 0.
	"relatime": {clear: unix.MOUNT_ATTR__ATIME}, "norelatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"noatime": {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME}, "atime": {clear: unix.MOUNT_ATTR__ATIME},
	"strictatime":   {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	"nostrictatime": {clear: unix.MOUNT_ATTR__ATIME},
}

// kernelTypes are the file systems whose target must be an ordinary folder of the root, not a link (CVE-2019-19921).
var kernelTypes = []string{"proc", "sysfs"}

// compileMount translates one mount. Options that are neither attributes nor propagation are the file system's own.
func compileMount(m specs.Mount) (engine.Mount, error) {
	out := engine.Mount{Type: m.Type, Source: m.Source, Target: path.Clean("/" + m.Destination)}
	out.UIDs, out.GIDs = IDMaps(m.UIDMappings), IDMaps(m.GIDMappings)
	recursive := false
	for _, o := range m.Options {
		switch {
		case o == "bind" || o == "rbind":
			out.Type = "bind"
			out.Recursive = o == "rbind"
		case propagation[o] != 0:
			out.Propagation = propagation[o] &^ unix.MS_REC
		case o == "defaults":
		case attributes[o] != attribute{}:
			set(&out, attributes[o])
		case strings.HasPrefix(o, "r") && attributes[o[1:]] != attribute{}:
			recursive = true
			set(&out, attributes[o[1:]])
		case m.Type == "bind" || m.Type == "cgroup":
			return out, &UnsupportedError{"mounts.options", o}
		default:
			out.Options = append(out.Options, o)
		}
	}
	if (len(out.UIDs) > 0) != (len(out.GIDs) > 0) || len(out.UIDs) > 0 && out.Type != "bind" {
		return out, &UnsupportedError{"mounts.uidMappings", m.Destination}
	}
	out.RecursiveAttributes = recursive
	out.NoSymlinks = slices.Contains(kernelTypes, m.Type) || out.Target == "/dev" && m.Type == "tmpfs" || out.Target == "/sys" && m.Source == "/sys"
	return out, nil
}

// TypeImage is the type of a mount that shows what an image holds, read-only. Its source is the image's ID, and after a slash the path of what is
// mounted of it, if that is not all.
const TypeImage = engine.TypeImage

// CompileImage translates a mount of TypeImage.
func (t *Trees) CompileImage(m specs.Mount) (engine.Mount, error) {
	id, below, _ := strings.Cut(m.Source, "/")
	layers := t.Images[id]
	if len(layers) != 1 || layers[0].Type != "overlay" {
		return engine.Mount{}, &UnsupportedError{"mounts.source", m.Source}
	}
	out, err := compileMount(m)
	if err != nil {
		return out, err
	}
	if len(out.Options) > 0 || out.Set&unix.MOUNT_ATTR_RDONLY == 0 {
		return out, &UnsupportedError{"mounts.options", strings.Join(m.Options, ",")}
	}
	out.Source, out.SubPath, out.Options = id, below, slices.Clone(layers[0].Options)
	return out, nil
}

// labelled are the file systems whose files get a container's mount label. Those of the kernel have labels of their own.
var labelled = []string{"overlay", "tmpfs", "devpts", TypeImage}

// Label has the files of a new file system of the container's have its SELinux label, if it has one.
func Label(m *engine.Mount, label string) {
	if label != "" && slices.Contains(labelled, m.Type) {
		m.Options = append(m.Options, "context="+label)
	}
}

// set lets a later option win over an earlier one.
func set(m *engine.Mount, a attribute) {
	m.Set = m.Set&^(a.clear|a.set) | a.set
	m.Clear = m.Clear&^a.set | a.clear
}
