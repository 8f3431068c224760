package engine

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fsconfigMax is the longest string that fsconfig(2) takes, with its end.
const fsconfigMax = 256

// openRootfs makes the container's root as a detached mount: it never appears in the host's mount table. In a user
// namespace its owners are mapped.
func openRootfs(m *Mount, u *UserNamespace) (int, error) {
	if m.Type == "bind" {
		if u != nil {
			bind := *m
			bind.UIDs, bind.GIDs = u.UIDs, u.GIDs
			m = &bind
		}
		fd, directory, err := openSource(m, u)
		if err == nil && !directory {
			unix.Close(fd)
			err = &Error{"open root", quote(m.Source), unix.ENOTDIR}
		}
		return fd, err
	}
	fd, err := openLayers(m, u)
	if err != nil && u != nil {
		return -1, &Error{"mount root " + m.Type + " with mapped owners", "", errno(err)}
	}
	if err != nil {
		return -1, &Error{"mount root " + m.Type, "", errno(err)}
	}
	return fd, nil
}

// openLayers makes an overlay, or another file system, as a detached mount; in a user namespace with mapped owners.
func openLayers(m *Mount, u *UserNamespace) (int, error) {
	switch {
	case u != nil:
		return mapRootfs(m, u)
	case m.Type == "overlay" && !appendsLayers():
		return mountLayers(m)
	}
	return newRootfs(m)
}

func newRootfs(m *Mount) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", m.Type); err != nil {
		return -1, err
	}
	for _, o := range m.Options {
		key, value, found := strings.Cut(o, "=")
		if !found {
			err = unix.FsconfigSetFlag(fs, key)
		} else {
			var short string
			var opened int
			if short, opened, err = shorten(value); err == nil {
				if opened >= 0 {
					defer unix.Close(opened) // the context resolves it when it is created
				}
				err = unix.FsconfigSetString(fs, key, short)
			}
		}
		if err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.Set))
}

// shorten turns a path that is too long for fsconfig into one of a descriptor.
func shorten(path string) (string, int, error) {
	if len(path) < fsconfigMax || path[0] != '/' || strings.Contains(path, ":") {
		return path, -1, nil
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", -1, err
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), fd, nil
}
