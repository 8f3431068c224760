package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockWait is how long a lock is tried: a berthd that was killed holds it until the kernel has taken it apart.
const lockWait = 400 * time.Millisecond

// errLocked means that another berthd serves a folder.
var errLocked = errors.New("another berthd serves this folder")

// makeFolder makes one of the daemon's own folders, or takes away what others may do with one that is there (threat B2).
func makeFolder(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return fmt.Errorf("close folder to others: %w", err)
	}
	return nil
}

// lockFolder takes a folder's lock for the life of the process, so that no two daemons write the same records. The lock ends with the
// file's last descriptor; closing the file gives it back. Its text is the holder's PID, for people.
func lockFolder(ctx context.Context, dir string) (_ *os.File, err error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock folder: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, lockWait)
	defer cancel()
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-waiting.Done():
			if ctx.Err() != nil {
				return nil, fmt.Errorf("lock %s: %w", dir, context.Cause(ctx))
			}
			return nil, fmt.Errorf("lock %s: %w%s", dir, errLocked, holder(f))
		case <-time.After(20 * time.Millisecond):
		}
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// holder is who wrote its PID into a lock, if anybody did.
func holder(f *os.File) string {
	b := make([]byte, 20)
	n, _ := f.ReadAt(b, 0)
	if pid := strings.TrimSpace(string(b[:n])); pid != "" {
		return " (PID " + pid + ")"
	}
	return ""
}
