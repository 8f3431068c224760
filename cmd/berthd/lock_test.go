package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/wait"
)

func TestTwoDaemonsCannotHaveOneFolder(t *testing.T) {
	dir := t.TempDir()
	first, err := lockFolder(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	_, err = lockFolder(t.Context(), dir)
	if !errors.Is(err, errLocked) || !strings.Contains(err.Error(), "PID") {
		t.Errorf("second lock = %v, want errLocked with the holder", err)
	}
	if d := time.Since(start); d > 20*time.Second {
		t.Errorf("the refusal took %v", d)
	}
	first.Close()
	again, err := lockFolder(t.Context(), dir)
	if err != nil {
		t.Fatalf("lock after the holder's end = %v", err)
	}
	again.Close()
}

// A daemon that was killed holds its lock for a moment longer.
func TestALockIsWaitedForShortly(t *testing.T) {
	dir := t.TempDir()
	var second io.Closer
	var err error
	if wait.Until(30*time.Second, 0, func() bool { // on a busy machine the holder may hold it for too long
		first, firstErr := lockFolder(t.Context(), dir)
		if firstErr != nil {
			t.Fatal(firstErr)
		}
		closed := make(chan struct{})
		time.AfterFunc(100*time.Millisecond, func() { first.Close(); close(closed) })
		second, err = lockFolder(t.Context(), dir)
		<-closed
		return err == nil
	}); err != nil {
		t.Fatalf("lock = %v", err)
	}
	second.Close()
}

// A signal to end while another berthd holds a lock, or while somebody is looked for behind the socket, is no failure to start.
func TestSignalWhileItLooksForOthers(t *testing.T) {
	for name, others := range map[string]func(f flags) (io.Closer, error){
		"root's lock":  func(f flags) (io.Closer, error) { return lockFolder(t.Context(), f.root) },
		"state's lock": func(f flags) (io.Closer, error) { return lockFolder(t.Context(), f.state) },
		"socket":       func(f flags) (io.Closer, error) { return net.Listen("unix", f.socket) },
	} {
		t.Run(name, func(t *testing.T) {
			defer unix.Umask(unix.Umask(0))
			defer unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
			of := newFolders(t)
			f := flags{root: of.root, state: of.state, config: of.config, socket: filepath.Join(of.state, socketName), verbosity: -1}
			if err := errors.Join(os.Mkdir(f.root, 0o700), os.Mkdir(f.state, 0o700)); err != nil {
				t.Fatal(err)
			}
			other, err := others(f)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			ctx, end := context.WithCancel(t.Context())
			end()
			if err := run(ctx, f); err != nil {
				t.Errorf("run = %v, want that it just ends", err)
			}
		})
	}
}

// Threat B2.
func TestFoldersAreClosedToOthers(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	top := t.TempDir()
	open := filepath.Join(top, "open")
	if err := os.Mkdir(open, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{open, filepath.Join(top, "new", "below")} {
		if err := makeFolder(dir); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %v, %v", dir, st.Mode(), err)
		}
		lock, err := lockFolder(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if st, err := lock.Stat(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("lock has mode %v, %v", st.Mode(), err)
		}
	}
}
