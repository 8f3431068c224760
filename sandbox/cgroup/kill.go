package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Kill ends every process of p and below by SIGKILL, and lets frozen ones run so that they can end. It does not wait: Wait does.
// What is not there is nil.
func (d *Driver) Kill(p string) error {
	rel := relative(p)
	if rel == "." {
		return fmt.Errorf("kill cgroup %q: %w", p, ErrInvalid)
	}
	err := d.killUnified(rel)
	if errors.Is(err, ErrNotSupported) {
		err = d.killEach(rel)
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", p, err)
	}
	return d.thaw(rel)
}

// killUnified writes cgroup.kill, which no fork outruns.
func (d *Driver) killUnified(rel string) error {
	if d.unified == nil {
		return ErrNotSupported
	}
	err := d.unified.write(rel, "cgroup.kill", "1")
	if errors.Is(err, unix.ENODEV) { // it was removed between open and write
		return nil
	}
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	if d.unified.exists(rel) {
		return ErrNotSupported
	}
	return nil
}

// killEach stands in for cgroup.kill where the kernel has none: it freezes the cgroup so that nothing forks, signals each process, and thaws.
func (d *Driver) killEach(rel string) error {
	if freezer, err := d.controller("freezer"); err == nil && freezer.exists(rel) {
		if err := freezer.write(rel, "freezer.state", "FROZEN"); err != nil && !gone(err) {
			return err
		}
	}
	var errs []error
	for _, h := range d.hierarchies {
		errs = append(errs, h.signalAll(rel))
	}
	return errors.Join(errs...)
}

// thaw undoes every freeze of rel and below, whoever did it: a process frozen by the version 1 freezer does not end when it is killed.
func (d *Driver) thaw(rel string) error {
	h, err := d.controller("freezer")
	if err != nil || h.v2 {
		return nil
	}
	return h.thaw(rel)
}

func (h *hierarchy) thaw(rel string) error {
	state, err := h.read(rel, "freezer.state")
	if err == nil && strings.TrimSpace(state) != "THAWED" {
		err = h.write(rel, "freezer.state", "THAWED")
	}
	if gone(err) {
		return nil
	}
	children, cerr := h.children(rel)
	errs := []error{err, cerr}
	for _, child := range children { // a container may have frozen one of its own
		errs = append(errs, h.thaw(path.Join(rel, child)))
	}
	return errors.Join(errs...)
}

func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// signalAll kills each process of rel and below in one hierarchy. A pid that is taken from cgroup.procs is read again once its
// pidfd is held, so that a number that another process got meanwhile is never signalled.
func (h *hierarchy) signalAll(rel string) error {
	children, err := h.children(rel)
	if err != nil {
		return err
	}
	var errs []error
	for _, child := range children {
		errs = append(errs, h.signalAll(path.Join(rel, child)))
	}
	pids, err := h.pids(rel)
	if !errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup: its threads are of processes that are listed above
		errs = append(errs, err)
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		if again, _ := h.pids(rel); slices.Contains(again, pid) {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, err)
			}
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}

func (h *hierarchy) pids(rel string) ([]int, error) {
	text, err := h.read(rel, "cgroup.procs")
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, word := range strings.Fields(text) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return nil, fmt.Errorf("read processes of %s: %w", rel, err)
		}
		if pid > 0 { // 0: a process of another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// PIDs lists the processes of p itself, not of what is below, as the first hierarchy sees them. What is not there has none.
func (d *Driver) PIDs(p string) ([]int, error) {
	return d.hierarchies[0].pids(relative(p))
}

// Wait returns when no process is left in p and below, or with ctx's error.
func (d *Driver) Wait(ctx context.Context, p string) error {
	if err := d.wait(ctx, relative(p)); err != nil {
		return fmt.Errorf("wait for the processes of cgroup %s: %w", p, err)
	}
	return nil
}

func (d *Driver) wait(ctx context.Context, rel string) error {
	if d.unified == nil {
		return d.waitEach(ctx, rel)
	}
	events, err := d.unified.open(path.Join(rel, "cgroup.events"), unix.O_RDONLY)
	if gone(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer events.Close()
	buf := make([]byte, 256)
	for slice := 1; ; slice = min(2*slice, 50) {
		n, err := unix.Pread(int(events.Fd()), buf, 0)
		if gone(err) {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if populated, err := field(string(buf[:max(n, 0)]), "populated"); err == nil && populated == 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// The kernel wakes the poll at a change, but keeps 10 ms between two wakes of one file (CGROUP_FILE_NOTIFY_MIN_INTV), and has been seen
		// to wake much later: so the first slices are short. The last bound how late an ended ctx is seen.
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, slice); err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// waitEach polls cgroup.procs where there is no cgroup.events.
func (d *Driver) waitEach(ctx context.Context, rel string) error {
	buf := make([]byte, 4096)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		left := uint64(0)
		for _, h := range d.hierarchies {
			most := maxWalked
			if err := h.walk(rel, &most, func(dir *os.File) error {
				n, err := countLines(int(dir.Fd()), "cgroup.procs", buf)
				left += n
				return err
			}); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
