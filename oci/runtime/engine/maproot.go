package engine

import (
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// mapRootfs makes the root of a container in a user namespace, an overlay. Each layer is mounted with its owners mapped, and the
// overlay of those is made by root of the namespace as far as files are concerned, so that overlayfs, which works with the credentials of
// whoever made it, can make files in the mapped upper layer. On disk all files keep the owners of the image.
func mapRootfs(m *Mount, u *UserNamespace) (int, error) {
	var d descriptors
	defer d.close()
	layers, err := u.mapLayers(m.Options, &d)
	if err != nil {
		return -1, err
	}
	if !namesLayers.Load() {
		if fd, err := u.overlay(m, layers, &d); err == nil {
			return fd, nil
		}
	}
	fd, err := u.overlayByNames(m, layers)
	if err == nil {
		namesLayers.Store(true)
	}
	return fd, err
}

// namesLayers tells that this kernel's overlayfs takes no descriptors of detached mounts (Linux 6.15), but their names.
var namesLayers atomic.Bool

// layer is an option of an overlay that names a folder, which is one below a mount with mapped owners.
type layer struct {
	key   string // "lowerdir+", "upperdir" or "workdir"
	mount int    // detached
	name  string // in mount; "" is its root
}

// mapLayers mounts the folders of an overlay. The upper layer and overlayfs's own folder must be in one mount: that of what holds them.
func (u *UserNamespace) mapLayers(options []string, d *descriptors) (layers []layer, err error) {
	holder, held := -1, ""
	for _, o := range options {
		key, folder, _ := strings.Cut(o, "=")
		l := layer{key: key}
		switch key {
		case "lowerdir+":
			l.mount, err = u.clone(folder, d)
		case "upperdir", "workdir":
			parent, name := path.Split(folder)
			if holder < 0 {
				holder, err = u.clone(parent, d)
				held = parent
			} else if parent != held {
				err = unix.EXDEV
			}
			l.mount, l.name = holder, name
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

// clone opens a folder as a detached mount with mapped owners.
func (u *UserNamespace) clone(folder string, d *descriptors) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, folder, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	d.add(fd)
	return fd, idmap(fd, u.Descriptor)
}

// overlay makes an overlay of layers by their descriptors.
func (u *UserNamespace) overlay(m *Mount, layers []layer, d *descriptors) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	d.add(fs)
	if err := unix.FsconfigSetString(fs, "source", m.Type); err != nil {
		return -1, err
	}
	for _, l := range layers {
		fd := l.mount
		if l.name != "" {
			if fd, err = unix.Openat(l.mount, l.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
				return -1, err
			}
			d.add(fd)
		}
		if err := unix.FsconfigSetFd(fs, l.key, fd); err != nil {
			return -1, err
		}
	}
	if err := setOptions(fs, otherOptions(m.Options)); err != nil {
		return -1, err
	}
	if err := u.create(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.Set))
}

// otherOptions are those of an overlay that name no folder.
func otherOptions(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool {
		key, _, _ := strings.Cut(o, "=")
		return key == "lowerdir+" || key == "upperdir" || key == "workdir"
	})
}

// overlayByNames is overlay for older kernels, where a layer must be mounted and have a name: a child mounts them in a scratch folder.
func (u *UserNamespace) overlayByNames(m *Mount, layers []layer) (int, error) {
	var own [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &own[0]); err != nil {
		return -1, err
	}
	var places []int // mounts; their indexes are their names
	var lower, options []string
	var links []Link
	for _, l := range layers {
		at := slices.Index(places, l.mount)
		if at < 0 {
			at, places = len(places), append(places, l.mount)
		}
		name := strconv.FormatInt(int64(at), 36)
		if l.key == "lowerdir+" {
			lower = append(lower, name)
			continue
		}
		link := strings.ToUpper(l.key)
		links = append(links, Link{link, name + "/" + l.name})
		options = append(options, l.key+"="+link)
	}
	options = append([]string{"lowerdir=" + strings.Join(lower, ":")}, options...)
	for _, o := range otherOptions(m.Options) {
		options = append(options, mountOption(o))
	}
	return mountScratch(m, strings.Join(options, ","), func(p *program) {
		for i, fd := range places {
			name := p.text(strconv.FormatInt(int64(i), 36))
			p.sys(unix.SYS_MKDIRAT, atFDCWD, name, num(0o700))
			p.sys(unix.SYS_MOVE_MOUNT, num(fd), p.text(""), atFDCWD, name, num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		}
		for _, l := range links {
			p.sys(unix.SYS_SYMLINKAT, p.text(l.Target), atFDCWD, p.text(l.Path))
		}
		uid, gid := u.Root()
		p.sys(unix.SYS_SETFSGID, num(gid))
		p.sys(unix.SYS_SETFSUID, num(uid))
		both := func(low, high uint32) uint64 { return uint64(low) | uint64(high)<<32 }
		p.capset(both(own[0].Effective, own[1].Effective), both(own[0].Permitted, own[1].Permitted), both(own[0].Inheritable, own[1].Inheritable))
	})
}

// create makes the file system that fs configures, as root of the namespace as far as files are concerned, with all
// capabilities of the caller.
func (u *UserNamespace) create(fs int) error {
	uid, gid := u.Root()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	runtime.LockOSThread()
	if err := unix.Capget(&header, &own[0]); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	unix.SetfsgidRetGid(int(gid))
	unix.SetfsuidRetUid(int(uid)) // takes the capabilities about files out of the effective set; they are put back
	err := unix.Capset(&header, &own[0])
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	unix.SetfsuidRetUid(0)
	unix.SetfsgidRetGid(0)
	if now, e := unix.SetfsuidRetUid(-1); e == nil && now == 0 {
		runtime.UnlockOSThread() // else the thread ends with the goroutine, as it is no longer like the others
	}
	return err
}
