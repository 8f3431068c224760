package engine

import (
	"strings"

	"golang.org/x/sys/unix"
)

// linkMax is how many symbolic links a path may lead through, as in the kernel (path_resolution(7)).
const linkMax = 40

// resolve returns what path means in the root file system, free of symbolic links, also where nothing is yet: an image may
// have /var/run point at a /run that it lacks. The engine makes mountpoints in what comes out, so that they are where a
// process in the container looks for them. Links of a mount are not followed: below the targets of mounts the path stays
// as it is. The child opens the result with RESOLVE_IN_ROOT all the same: nothing depends on this for safety.
func resolve(root int, path string, mounts []Mount) (string, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: inRoot}
	if fd, err := unix.Openat2(root, path, how); err == nil {
		unix.Close(fd)
		return path, nil
	}
	how.Flags |= unix.O_NOFOLLOW
	done, rest, links := "", strings.Split(path, "/"), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = parentOf(done)
			continue
		}
		next := done + "/" + name
		if isTarget(mounts, next) {
			return strings.TrimRight(next+"/"+strings.Join(rest, "/"), "/"), nil
		}
		target, err := readLink(root, next, how)
		if err != nil {
			return "", err
		}
		if target == "" {
			done = next
			continue
		}
		if links++; links > linkMax {
			return "", &Error{"resolve", quote(path), unix.ELOOP}
		}
		if target[0] == '/' {
			done = ""
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	if done == "" {
		done = "/"
	}
	return done, nil
}

// parentOf cuts the last element; the root's parent is the root.
func parentOf(path string) string {
	return path[:max(0, strings.LastIndexByte(path, '/'))]
}

func isTarget(mounts []Mount, path string) bool {
	for i := range mounts {
		if mounts[i].Target == path {
			return true
		}
	}
	return false
}

// readLink returns what a symbolic link says, and nothing for what is none or is not there.
func readLink(root int, path string, how *unix.OpenHow) (string, error) {
	fd, err := unix.Openat2(root, path, how)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return "", nil
	}
	if err != nil {
		return "", &Error{"resolve", quote(path), errno(err)}
	}
	defer unix.Close(fd)
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil || n <= 0 { // EINVAL, ENOENT: no link
		return "", nil
	}
	return string(b[:n]), nil
}
