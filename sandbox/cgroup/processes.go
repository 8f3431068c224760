package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep below a container's cgroup, which it may fill itself, is counted.
const maxDepth = 32

// Processes counts the processes of p and below. Of a cgroup of threads it counts those. What is not there has none.
func (d *Driver) Processes(p string) (uint64, error) {
	h, err := d.controller("pids")
	if err != nil {
		h = d.hierarchies[0]
	}
	buf := make([]byte, 4096)
	n, err := h.processes(relative(p), buf, maxDepth)
	if err != nil {
		return 0, fmt.Errorf("count processes of cgroup %s: %w", p, err)
	}
	return n, nil
}

func (h *hierarchy) processes(rel string, buf []byte, depth int) (uint64, error) {
	dir, err := h.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if gone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	count, err := countLines(int(dir.Fd()), "cgroup.procs", buf)
	if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup
		count, err = countLines(int(dir.Fd()), "cgroup.threads", buf)
	}
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || st.Nlink <= 2 || depth == 0 { // nothing below it
		return count, err
	}
	children, err := h.children(rel)
	if err != nil {
		return 0, err
	}
	for _, child := range children {
		below, err := h.processes(path.Join(rel, child), buf, depth-1)
		if err != nil {
			return 0, err
		}
		count += below
	}
	return count, nil
}

func countLines(dir int, file string, buf []byte) (uint64, error) {
	fd, err := unix.Openat(dir, file, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if gone(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	for count := uint64(0); ; { // a list comes in pieces
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case gone(err):
			return 0, nil
		case err != nil || n == 0:
			return count, err
		}
		count += uint64(bytes.Count(buf[:n], []byte{'\n'}))
	}
}
