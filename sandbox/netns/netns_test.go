package netns

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func id(c string) string { return strings.Repeat(c, 64) }

// pins gives a folder of this test's own, and checks that no mount is left in it.
func pins(t *testing.T, instance string) *Pins {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root to mount")
	}
	p := New(t.TempDir()+"/netns", instance)
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mounts")
		if strings.Contains(string(mounts), p.folder) {
			t.Errorf("mounts are left in %s", p.folder)
		}
	})
	return p
}

// namespace starts a process in a network namespace of its own.
func namespace(t *testing.T) int {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

func TestPinAndUnpin(t *testing.T) {
	p := pins(t, "0a1b2c")
	a, pid := id("a"), namespace(t)
	if got, err := p.List(); err != nil || len(got) != 0 {
		t.Errorf("List without a folder = %v, %v", got, err)
	}
	for range 2 { // a second time replaces what an earlier attempt left
		if err := p.Pin(a, pid); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Stat(p.Path(a)); err != nil || !os.SameFile(got, want) || !p.Pinned(a) {
		t.Errorf("the pin is not the namespace: %v, %v", got, err)
	}
	if got, err := p.List(); err != nil || !cmp.Equal(got, []string{a}) {
		t.Errorf("List = %v, %v", got, err)
	}
	for range 2 {
		if err := p.Unpin(a); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(p.Path(a)); !os.IsNotExist(err) || p.Pinned(a) {
		t.Errorf("the file is left: %v", err)
	}
}

func TestPinOfADeadProcessLeavesNothing(t *testing.T) {
	p := pins(t, "")
	if err := p.Pin(id("a"), 1<<30); err == nil {
		t.Error("Pin succeeded")
	}
	if got, err := p.List(); err != nil || len(got) != 0 {
		t.Errorf("List = %v, %v", got, err)
	}
}

func TestUnpinTakesStackedMountsAndBareFiles(t *testing.T) {
	p := pins(t, "")
	a, pid := id("a"), namespace(t)
	if err := p.Pin(a, pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", p.Path(a), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path(id("b")), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	for _, sandboxID := range []string{a, id("b")} {
		if err := p.Unpin(sandboxID); err != nil {
			t.Error(err)
		}
	}
	if got, err := p.List(); err != nil || len(got) != 0 {
		t.Errorf("List = %v, %v", got, err)
	}
}

func TestListKeepsInstancesApart(t *testing.T) {
	p := pins(t, "")
	if err := os.MkdirAll(p.folder, 0o755); err != nil {
		t.Fatal(err)
	}
	other := New(p.folder, "0a1b2c")
	for _, path := range []string{p.Path(id("a")), other.Path(id("b")), p.folder + "/cni-1234", p.folder + "/berth-x"} {
		if err := os.WriteFile(path, nil, 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := p.List(); err != nil || !cmp.Equal(got, []string{id("a")}) {
		t.Errorf("List of the default = %v, %v", got, err)
	}
	if got, err := other.List(); err != nil || !cmp.Equal(got, []string{id("b")}) {
		t.Errorf("List of the instance = %v, %v", got, err)
	}
}
