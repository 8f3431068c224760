package engine

import (
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const inRoot = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// Operations of fsconfig(2).
const (
	fsconfigSetFlag   = 0
	fsconfigSetString = 1
	fsconfigCreate    = 6
)

// openSource opens a bind mount's source as a detached mount with its attributes set, and its owners mapped; u is the
// pod's user namespace, or nil. The caller closes it.
func openSource(m *Mount, u *UserNamespace) (fd int, directory bool, err error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if m.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err = unix.OpenTree(unix.AT_FDCWD, m.Source, flags)
	if err != nil {
		return -1, false, &Error{"open mount source", quote(m.Source), errno(err)}
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = setAttributes(fd, m)
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, &Error{"set attributes of mount source", quote(m.Source), errno(err)}
	}
	if err = mapOwners(fd, m, u); err != nil {
		unix.Close(fd)
		return -1, false, &Error{"map owners of mount source", quote(m.Source), errno(err)}
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// setAttributes sets flags and propagation on a detached mount (mount_setattr(2)).
func setAttributes(fd int, m *Mount) error {
	for _, a := range m.attributes() {
		if err := unix.MountSetattr(fd, "", a.flags, &a.attr); err != nil {
			return err
		}
	}
	return nil
}

// setting is what one mount_setattr(2) does.
type setting struct {
	flags uint
	attr  unix.MountAttr
}

// attributes are the settings that make a bind mount out of a clone of its source.
func (m *Mount) attributes() []setting {
	clear := m.Clear
	if m.Set&unix.MOUNT_ATTR__ATIME != 0 {
		clear |= unix.MOUNT_ATTR__ATIME
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if m.Recursive {
		flags |= unix.AT_RECURSIVE
	}
	propagation := m.Propagation
	if propagation == 0 {
		propagation = unix.MS_SLAVE // else the clone is its source's peer, and what is mounted below shows on the host
	}
	all := []setting{{flags, unix.MountAttr{Propagation: propagation}}}
	if !m.RecursiveAttributes {
		flags = unix.AT_EMPTY_PATH
	}
	if m.Set|clear != 0 {
		all = append(all, setting{flags, unix.MountAttr{Attr_set: m.Set, Attr_clr: clear}})
	}
	return all
}

// detach keeps what the child mounts from showing on the host. A volume that is shared with the host must be a peer of the
// host's until it is bound, so then only those mounts of the host upon which the child mounts become slaves, and the others in pivot.
func (p *program) detach(plan *Plan) {
	p.at("make", "the host's mounts slaves")
	if !plan.shares() {
		p.sys(unix.SYS_MOUNT, num(0), p.text("/"), num(0), num(unix.MS_REC|unix.MS_SLAVE), num(0))
		return
	}
	for _, path := range []string{"/", "/proc"} {
		p.sys(unix.SYS_MOUNT, num(0), p.text(path), num(0), num(unix.MS_SLAVE), num(0))
	}
}

// shares tells whether what the container mounts in a volume shows on the host.
func (p *Plan) shares() bool {
	return slices.ContainsFunc(p.Mounts, func(m Mount) bool { return m.Type == "bind" && m.Propagation == unix.MS_SHARED })
}

// follows tells whether a mount must show what is mounted below its source from the container's start on. A detached clone of
// the source hears of nothing until it is attached, so such a one is bound by the child.
func (m *Mount) follows(u *UserNamespace) bool {
	var st unix.Stat_t
	return m.Recursive && m.Propagation&(unix.MS_SLAVE|unix.MS_SHARED) != 0 && u == nil && len(m.UIDs)+len(m.GIDs) == 0 &&
		unix.Stat(m.Source, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// openStage attaches an empty file system of the child's own at the top, where no path leads, if there is anything to bind. The root is attached upon it,
// so that a volume which is all of the host shows neither.
func (p *program) openStage(plan *Plan) {
	if !slices.ContainsFunc(plan.Mounts, func(m Mount) bool { return m.Type == "bind" && m.follows(plan.Users) }) {
		return
	}
	p.stage = p.register()
	p.newFilesystem(&Mount{Type: "tmpfs", Source: "tmpfs", Target: "/", Options: []string{"mode=700"}}, p.stage)
	p.at("attach", "a folder for volumes")
	p.setattr(p.stage.arg(), unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_UNBINDABLE})
	p.sys(unix.SYS_MOVE_MOUNT, p.stage.arg(), p.text(""), atFDCWD, p.text("/"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	p.sys(unix.SYS_MKDIRAT, p.stage.arg(), p.text(staged), num(0o700))
}

// closeStage takes the stage away where the root is not upon it, so that who joins the child's mount namespace finds the host's root.
func (p *program) closeStage(plan *Plan) {
	if p.stage == 0 || plan.HostRoot == "" {
		return
	}
	p.at("detach", "a folder for volumes")
	p.sys(unix.SYS_FCHDIR, p.stage.arg())
	p.sys(unix.SYS_UMOUNT2, p.text("."), num(unix.MNT_DETACH))
	p.close(p.stage)
	p.stage = 0
}

// staged is the folder of the stage that volumes are bound on, one after the other.
const staged = "volume"

// bind mounts a folder of the host on the target in root. The child's copy of the host's mounts hears of every mount, and
// mount(2) lets none pass between cloning and attaching. What is bound gets its attributes in the stage: in the container's root somebody else may
// make the target's path lead to another mount meanwhile.
func (p *program) bind(root arg, m *Mount) {
	p.at("bind "+quote(m.Source)+" at", quote(m.Target))
	p.scope(func() {
		volume, target, name := p.register(), p.register(), p.text(staged)
		p.sys(unix.SYS_FCHDIR, p.stage.arg())
		p.sys(unix.SYS_MOUNT, p.text(m.Source), name, num(0), num(unix.MS_BIND|unix.MS_REC), num(0))
		p.sys(unix.SYS_OPENAT, p.stage.arg(), name, num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).to(volume)
		for _, a := range m.attributes() {
			p.setattr(volume.arg(), a.flags, &a.attr)
		}
		p.ensure(root, m.Target, makeDirectory, inRoot, target)
		p.moveMount(volume.arg(), target)
		p.close(target)
		p.close(volume)
	})
}

// attach mounts the detached mount fd on the target in root.
func (p *program) attach(fd arg, root arg, m *Mount, kind int) {
	resolve := uint64(inRoot)
	if m.NoSymlinks {
		resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS
	}
	p.at("mount at", quote(m.Target))
	p.scope(func() {
		target := p.register()
		p.ensure(root, m.Target, kind, resolve, target)
		p.moveMount(fd, target)
		p.close(target)
	})
}

func (p *program) moveMount(fd arg, target reg) {
	empty := p.text("")
	p.sys(unix.SYS_MOVE_MOUNT, fd, empty, target.arg(), empty, num(unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// newFilesystem leaves a detached mount of a fresh file system in r. It is made by the child, so that it belongs to
// the child's namespaces: proc to its pid namespace, cgroup2 to its cgroup namespace.
func (p *program) newFilesystem(m *Mount, r reg) {
	p.at("make file system "+m.Type+" for", quote(m.Target))
	p.scope(func() {
		fs := p.register()
		p.sys(unix.SYS_FSOPEN, p.text(m.Type), num(unix.FSOPEN_CLOEXEC)).to(fs)
		if m.Source != "" {
			p.sys(unix.SYS_FSCONFIG, fs.arg(), num(fsconfigSetString), p.text("source"), p.text(m.Source), num(0)).any()
		}
		for _, o := range m.Options {
			key, value, found := strings.Cut(o, "=")
			if found {
				p.sys(unix.SYS_FSCONFIG, fs.arg(), num(fsconfigSetString), p.text(key), p.text(value), num(0))
			} else {
				p.sys(unix.SYS_FSCONFIG, fs.arg(), num(fsconfigSetFlag), p.text(key), num(0), num(0))
			}
		}
		p.sys(unix.SYS_FSCONFIG, fs.arg(), num(fsconfigCreate), num(0), num(0), num(0))
		p.sys(unix.SYS_FSMOUNT, fs.arg(), num(unix.FSMOUNT_CLOEXEC), num(m.Set)).to(r)
		p.close(fs)
	})
	if m.Propagation != 0 {
		p.setattr(r.arg(), unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: m.Propagation})
	}
}

func (p *program) setattr(fd arg, flags uint, attr *unix.MountAttr) {
	p.sys(unix.SYS_MOUNT_SETATTR, fd, p.text(""), num(flags), memory(p, attr), num(unsafe.Sizeof(*attr)))
}

// mask hides path: a folder under an empty read-only tmpfs, anything else under the null device. The null device comes
// from the host's /dev, which no image can replace (CVE-2025-31133). All folders share one tmpfs, kept in shared.
func (p *program) mask(root arg, path string, shared reg) {
	p.at("mask", quote(path))
	p.scope(func() {
		target, source := p.register(), p.register()
		var file, done label
		p.open(root, path, unix.O_PATH|unix.O_DIRECTORY).to(target).onError(&file, unix.ENOTDIR).onError(&done, unix.ENOENT)
		p.sys(unix.SYS_OPEN_TREE, shared.arg(), p.text(""), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).to(source)
		p.moveMount(source.arg(), target)
		p.close(target)
		p.sys(unix.SYS_CLOSE, source.arg()).onSuccess(&done)
		p.here(&file)
		p.open(root, path, unix.O_PATH).to(target)
		p.sys(unix.SYS_OPEN_TREE, atFDCWD, p.text("/dev/null"), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).to(source)
		p.setattr(source.arg(), unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}) // else a container's root could change its mode
		p.moveMount(source.arg(), target)
		p.close(target)
		p.close(source)
		p.here(&done)
	})
}

// readonly binds path on itself, read-only with all that is mounted below.
func (p *program) readonly(root arg, path string) {
	p.at("make read-only", quote(path))
	p.scope(func() {
		target, source := p.register(), p.register()
		var done label
		p.open(root, path, unix.O_PATH).to(target).onError(&done, unix.ENOENT)
		p.sys(unix.SYS_OPEN_TREE, target.arg(), p.text(""), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)).to(source)
		p.setattr(source.arg(), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE,
			&unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC})
		p.moveMount(source.arg(), target)
		p.close(target)
		p.close(source)
		p.here(&done)
	})
}
