package engine

import (
	"strings"

	"golang.org/x/sys/unix"
)

// MountRootfs mounts a root file system at target in the host's mount namespace, for runtimes that expect to find it there. It is private:
// what is mounted in it shows nowhere else.
func MountRootfs(m *Mount, target string) error {
	fd, err := openRootfs(m, nil)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &Error{"mount root at", quote(target), errno(err)}
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return &Error{"make private", quote(target), errno(err)}
	}
	return nil
}

// shareRoot attaches the detached root in folder, a path of the host, and returns a detached clone of it. With no folder it returns root.
func shareRoot(root int, folder string, d *descriptors) (int, error) {
	if folder == "" {
		return root, nil
	}
	err := unix.MoveMount(root, "", unix.AT_FDCWD, folder, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err == nil {
		err = unix.MountSetattr(root, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	}
	clone := -1
	if err == nil {
		clone, err = unix.OpenTree(root, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	}
	if err != nil {
		return -1, &Error{"mount root at", quote(folder), errno(err)}
	}
	return d.add(clone), nil
}

// CheckRootfs refuses a mounted root file system that has a symbolic link where the kernel's file systems go, as the engine does: other runtimes follow
// one on the host while they fill /dev (CVE-2026-41579).
func CheckRootfs(root string) error {
	for _, name := range []string{"/proc", "/sys", "/dev"} {
		var st unix.Stat_t
		if err := unix.Lstat(root+name, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return &Error{"mount at", quote(name), unix.ELOOP}
		}
	}
	return nil
}

// MakeDirectories makes those that are missing in a mounted root file system in which nothing runs, mode 0755, owner root. Symbolic links mean what
// they mean in the container.
func MakeDirectories(root string, dirs []string) error {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &Error{"open root", quote(root), errno(err)}
	}
	defer unix.Close(fd)
	for _, dir := range dirs {
		path, err := resolve(fd, dir, nil)
		if err == nil {
			err = makePath(fd, path)
		}
		if err != nil {
			return &Error{"make directory", quote(dir), errno(err)}
		}
	}
	return nil
}

// makePath makes a path free of symbolic links, one element after the other.
func makePath(root int, path string) error {
	dir := -1
	defer func() { unix.Close(dir) }()
	at := root
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		if name == "" {
			continue
		}
		if err := unix.Mkdirat(at, name, 0o755); err != nil && err != unix.EEXIST {
			return err
		}
		next, err := unix.Openat2(at, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		if err != nil {
			return err
		}
		unix.Close(dir)
		dir, at = next, next
	}
	return nil
}
