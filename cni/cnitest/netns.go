package cnitest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const isolated = "BERTH_TEST_ISOLATED"

// Main is for TestMain. As root it runs the tests in network and mount namespaces of their own, so that bridges, nftables, sysctls
// and mounts of the host are out of reach; when the test binary is executed as a CNI plugin it behaves as Plugin.
func Main(m *testing.M) {
	if os.Getenv("CNI_COMMAND") != "" {
		os.Exit(Plugin())
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(isolated) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "make mounts private:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	// A binary with the race detector that serves as plugin would sleep for a second at its end.
	cmd.Env = append(os.Environ(), isolated+"=1", "GORACE=atexit_sleep_ms=0")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}
	runtime.LockOSThread() // for Pdeathsig
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// NeedRoot skips a test that makes namespaces and links.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv(isolated) == "" {
		t.Fatal("needs root, and cnitest.Main as TestMain: namespaces and links are made")
	}
}

// NetNS is a network namespace that a file pins.
type NetNS struct{ Path string }

// NewNetNS makes a network namespace. It is gone when the test ends.
func NewNetNS(t testing.TB) NetNS {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := Pin(path); err != nil {
		t.Fatal(err)
	}
	n := NetNS{path}
	t.Cleanup(n.Remove)
	return n
}

// Pin makes a network namespace and pins it at path.
func Pin(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return visit(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
}

// visit runs f, which changes its thread's network namespace, and returns to the process's own. The thread is not thrown away: it
// may be the main one, which /proc/self stands for.
func visit(f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	err = f()
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		panic(back)
	}
	runtime.UnlockOSThread()
	return err
}

// Remove unpins the namespace; the kernel ends it when nobody is in it.
func (n NetNS) Remove() { _ = unix.Unmount(n.Path, unix.MNT_DETACH) }

// Do runs f on a thread that is in the namespace; sockets that f opens stay there. f must not start goroutines that need it.
func (n NetNS) Do(t testing.TB, f func() error) {
	t.Helper()
	err := visit(func() error {
		fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// SandboxID returns a fresh ID as berth makes them.
func SandboxID() string {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
