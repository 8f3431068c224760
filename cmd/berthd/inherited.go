package main

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// letGo keeps what the daemon was started with by accident out of all that it starts: plugins, and monitors, which live for months and would hold on
// to a descriptor, a lock for one. Preconditions: the calling thread is the process's first.
func letGo() error {
	if err := unix.CloseRange(3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("let go of inherited descriptors: %w", err)
	}
	var blocked, none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, &blocked); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	if blocked == none {
		return nil
	}
	// Go gives its threads and its children the signals that were blocked when it was started, so it is started again.
	if err := syscall.Exec("/proc/self/exe", os.Args, os.Environ()); err != nil {
		return fmt.Errorf("start again without blocked signals: %w", err)
	}
	return nil
}
