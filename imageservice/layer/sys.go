package layer

import (
	"errors"
	"path"
	"strconv"

	"golang.org/x/sys/unix"
)

// retry repeats call while the kernel asks for it: openat2 answers EAGAIN when a rename anywhere raced with it.
func retry(call func() error) error {
	for {
		err := call()
		if err != unix.EINTR && err != unix.EAGAIN {
			return err
		}
	}
}

// beneath opens name below the directory at, with no symbolic link on the way.
func beneath(at int, name string, flags int) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if name == "" {
		name = "."
	}
	err = retry(func() error {
		fd, err = unix.Openat2(at, name, &how)
		return err
	})
	return fd, err
}

// openDir opens the directory name below at for reading and for changing its attributes.
func openDir(at int, name string) (int, error) {
	return beneath(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// openDirPath is openDir for a descriptor that is only a place to start from.
func openDirPath(at int, name string) (int, error) {
	return beneath(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// statBeneath describes name below at, which is not followed. A name whose way leads through something that is no
// directory does not exist.
func statBeneath(at int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := beneath(at, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		if err == unix.ENOTDIR || err == unix.ELOOP {
			err = unix.ENOENT
		}
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

// lstatAt describes one component of the directory dirfd.
func lstatAt(dirfd int, name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := retry(func() error { return unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW) })
	return st, err
}

// readlinkAt reads the symbolic link name of the directory dirfd; name "" reads dirfd itself.
func readlinkAt(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax+1)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// readlinkBeneath reads the symbolic link name below at.
func readlinkBeneath(at int, name string) (string, error) {
	fd, err := beneath(at, name, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	return readlinkAt(fd, "")
}

// writeAll writes p whole.
func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// procPath is a path for the calls that have no descriptor form: name in the directory dirfd, or dirfd itself.
// The magic link leads straight to the open file: no component of it can be exchanged.
func procPath(dirfd int, name string) string {
	return path.Join("/proc/self/fd", strconv.Itoa(dirfd), name)
}

func isType(st *unix.Stat_t, kind uint32) bool { return st.Mode&unix.S_IFMT == kind }

// isWhiteout tells overlayfs's whiteout. No entry can make one: Apply refuses device 0:0.
func isWhiteout(st *unix.Stat_t) bool { return isType(st, unix.S_IFCHR) && st.Rdev == 0 }

func isNotExist(err error) bool { return errors.Is(err, unix.ENOENT) }
