package engine

import (
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// idmap makes the owners of what is in the detached mount fd those of the user namespace: what belongs to ID 5 on disk
// belongs to the namespace's 5, and what that one makes belongs to 5 on disk (mount_setattr(2), ID-mapped mounts).
func idmap(fd, userns int) error {
	err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)})
	if err == unix.EINVAL { // there is nothing else that could be wrong: the file system has no mapped mounts
		return unix.EOPNOTSUPP
	}
	return err
}

// mapOwners applies the mappings that m asks for to the detached mount fd, and to nothing that is mounted below it. u is
// the pod's user namespace, or nil.
func mapOwners(fd int, m *Mount, u *UserNamespace) error {
	if len(m.UIDs)+len(m.GIDs) == 0 {
		return nil
	}
	if u != nil && slices.Equal(m.UIDs, u.UIDs) && slices.Equal(m.GIDs, u.GIDs) {
		return idmap(fd, u.Descriptor)
	}
	made, err := NewNamespaces(m.UIDs, m.GIDs)
	if err != nil {
		return err
	}
	defer unix.Close(made[0])
	return idmap(fd, made[0])
}

// mapRootfs makes the root of a container in a user namespace. Each layer is mounted with its owners mapped, and the overlay
// of those is made by a thread that is root of the namespace to the file system, so that overlayfs, which works with the
// credentials of whoever made it, can make files in the mapped upper layer. On disk all files keep the owners of the image.
func mapRootfs(m *Mount, u *UserNamespace) (int, error) {
	var d descriptors
	defer d.close()
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	d.add(fs)
	if err := unix.FsconfigSetString(fs, "source", m.Type); err != nil {
		return -1, err
	}
	folders := map[string]int{} // what holds the upper layer and overlayfs's own folder, which must be in one mount
	for _, o := range m.Options {
		key, value, found := strings.Cut(o, "=")
		switch {
		case !found:
			err = unix.FsconfigSetFlag(fs, key)
		case key == "lowerdir+":
			var fd int
			if fd, err = u.clone(value, &d); err == nil {
				err = unix.FsconfigSetFd(fs, key, fd)
			}
		case key == "upperdir" || key == "workdir":
			parent, name := path.Split(value)
			folder, ok := folders[parent]
			if !ok {
				if folder, err = u.clone(parent, &d); err != nil {
					return -1, err
				}
				folders[parent] = folder
			}
			var fd int
			if fd, err = unix.Openat(folder, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err == nil {
				err = unix.FsconfigSetFd(fs, key, d.add(fd))
			}
		default:
			err = unix.FsconfigSetString(fs, key, value)
		}
		if err != nil {
			return -1, err
		}
	}
	if err := u.create(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.Set))
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

// devFolder makes /dev of a container in a user namespace, a tmpfs with its devices, as a detached mount. Nobody makes
// device nodes in a user namespace, nor opens those on a file system that was mounted there.
func devFolder(m *Mount, devices []Device, u *UserNamespace) (fd int, err error) {
	uid, gid := u.Root()
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for _, o := range append([]string{"uid=" + strconv.Itoa(int(uid)), "gid=" + strconv.Itoa(int(gid))}, m.Options...) {
		key, value, found := strings.Cut(o, "=")
		if found {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, err
		}
	}
	if err = unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	if fd, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.Set)); err != nil {
		return -1, err
	}
	for i := range devices {
		if err := makeDevice(fd, &devices[i], u); err != nil {
			unix.Close(fd)
			return -1, &Error{"make device", quote(devices[i].Path), errno(err)}
		}
	}
	return fd, nil
}

// makeDevice makes a node, and the folders above it, in the tmpfs of a container's /dev.
func makeDevice(dev int, v *Device, u *UserNamespace) error {
	name, below := strings.CutPrefix(v.Path, "/dev/")
	if !below {
		return unix.EINVAL
	}
	rootUID, rootGID := u.Root()
	for i := range name {
		if name[i] != '/' {
			continue
		}
		if err := unix.Mkdirat(dev, name[:i], 0o755); err == nil {
			err = unix.Fchownat(dev, name[:i], int(rootUID), int(rootGID), unix.AT_SYMLINK_NOFOLLOW)
			if err != nil {
				return err
			}
		} else if err != unix.EEXIST {
			return err
		}
	}
	if err := unix.Mknodat(dev, name, v.Mode, int(unix.Mkdev(v.Major, v.Minor))); err == unix.EEXIST {
		return nil
	} else if err != nil {
		return err
	}
	if err := unix.Fchownat(dev, name, int(v.UID), int(v.GID), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(dev, name, v.Mode&0o7777, 0) // the umask may have taken something away
}

// Impersonate calls f on a thread whose effective user and group are root of the namespace, without capabilities.
func (u *UserNamespace) Impersonate(f func() error) error {
	uid, gid := u.Root()
	runtime.LockOSThread()
	err := setEffective(uid, gid)
	if err == nil {
		err = f()
	}
	if setEffective(0, 0) == nil {
		runtime.UnlockOSThread() // else the thread ends with the goroutine, as it is no longer like the others
	}
	return err
}

// setEffective changes the calling thread; package syscall would change all.
func setEffective(uid, gid uint32) error {
	keep := ^uintptr(0) // -1
	calls := [][2]uintptr{{unix.SYS_SETRESGID, uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid)}}
	if uid == 0 {
		slices.Reverse(calls) // the capability to change the group comes with the user
	}
	for _, call := range calls {
		if _, _, errno := unix.RawSyscall(call[0], keep, call[1], keep); errno != 0 {
			return errno
		}
	}
	return nil
}
