package engine

import (
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

// devFolder makes /dev of a container in a user namespace, a tmpfs with its devices, as a detached mount. Nobody makes
// device nodes in a user namespace, nor opens those on a file system that was mounted there.
func devFolder(m *Mount, devices []Device, u *UserNamespace) (fd int, err error) {
	uid, gid := u.Root()
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	err = setOptions(fs, append([]string{"uid=" + strconv.Itoa(int(uid)), "gid=" + strconv.Itoa(int(gid))}, m.Options...))
	if err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
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

// setOptions configures a file system that is yet to be made.
func setOptions(fs int, options []string) (err error) {
	for _, o := range options {
		if key, value, found := strings.Cut(o, "="); found {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return err
		}
	}
	return nil
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
