package snapshottest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/snapshot"
)

// Open mounts what a snapshotter says, detached, for the test's duration, and returns a path that leads into the tree.
func Open(t testing.TB, mounts []snapshot.Mount) string {
	t.Helper()
	f, err := open(mounts)
	if err != nil {
		t.Fatalf("open %+v: %v", mounts, err)
	}
	t.Cleanup(func() { f.Close() })
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

func open(mounts []snapshot.Mount) (*os.File, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("%d mounts, want 1", len(mounts))
	}
	m := mounts[0]
	if m.Type == "bind" {
		return os.Open(m.Source)
	}
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", m.Type, err)
	}
	defer unix.Close(fs)
	for _, option := range m.Options {
		key, value, ok := strings.Cut(option, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return nil, fmt.Errorf("fsconfig %s: %w", option, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("create %s: %w", m.Type, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(fd), m.Type), nil
}
