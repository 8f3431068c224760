package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxWalked bounds how many cgroups below a container's, which it may make itself, are looked at.
const maxWalked = 4096

// Processes counts the processes of p and below. Of a cgroup of threads it counts those. What is not there has none.
func (d *Driver) Processes(p string) (count uint64, err error) {
	buf := make([]byte, 4096)
	err = d.walkProcesses(p, func(dir *os.File) error {
		n, err := countLines(int(dir.Fd()), "cgroup.procs", buf)
		if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup
			n, err = countLines(int(dir.Fd()), "cgroup.threads", buf)
		}
		count += n
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("count processes of cgroup %s: %w", p, err)
	}
	return count, nil
}

// AllPIDs lists the processes of p and below, most at most. What is not there has none.
func (d *Driver) AllPIDs(p string, most int) (pids []int, err error) {
	h := d.processHierarchy()
	err = d.walkProcesses(p, func(dir *os.File) error {
		rel, err := filepath.Rel(h.mount, dir.Name())
		if err != nil {
			return err
		}
		some, err := h.pids(rel)
		if errors.Is(err, unix.EOPNOTSUPP) {
			return nil // its threads are of processes that are listed above
		}
		pids = append(pids, some[:min(len(some), most-len(pids))]...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", p, err)
	}
	return pids, nil
}

// processHierarchy is the one in which all of a container's processes are.
func (d *Driver) processHierarchy() *hierarchy {
	if h, err := d.controller("pids"); err == nil {
		return h
	}
	return d.hierarchies[0]
}

// walkProcesses visits p and what is below it.
func (d *Driver) walkProcesses(p string, visit func(*os.File) error) error {
	left := maxWalked
	return d.processHierarchy().walk(relative(p), &left, visit)
}

func (h *hierarchy) walk(rel string, left *int, visit func(*os.File) error) error {
	if *left--; *left < 0 {
		return nil
	}
	dir, err := h.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := visit(dir); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || st.Nlink <= 2 { // nothing is below it
		return err
	}
	children, err := h.children(rel)
	if err != nil {
		return err
	}
	for _, child := range children {
		if err := h.walk(path.Join(rel, child), left, visit); err != nil {
			return err
		}
	}
	return nil
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
