package main

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Threat B30: the memory of a daemon has credentials of pulls in it, and neither a core file nor another process of root may show it.
func TestDaemonIsNotDumpable(t *testing.T) {
	defer unix.Umask(unix.Umask(0))
	defer unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	if err := setUpProcess(); err != nil {
		t.Fatal(err)
	}
	if got, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); got != 0 || err != nil {
		t.Errorf("dumpable = %d, %v", got, err)
	}
}
