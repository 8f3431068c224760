package selinux

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	root := t.TempDir()
	if l, err := Read(root); err != nil || l != (Labels{}) {
		t.Errorf("without a policy: %v, %v", l, err)
	}
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("etc/selinux/config", "# a comment\nSELINUX=enforcing\nSELINUXTYPE=targeted\n")
	if l, err := Read(root); err != nil || l != (Labels{}) {
		t.Errorf("without labels for containers: %v, %v", l, err)
	}
	write("etc/selinux/targeted/contexts/lxc_contexts", "process = \"system_u:system_r:container_t:s0\"\ncontent = \"x\"\nfile = \"system_u:object_r:container_file_t:s0\"\n")
	if l, err := Read(root); err != nil || l != (Labels{"system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"}) {
		t.Errorf("labels %v, %v", l, err)
	}
}

// A folder that is deeper than any path is refused: each level takes a descriptor of the daemon's. One with more entries than are read at a time is not.
func TestRelabelOfWhatAContainerMade(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: attributes of security modules")
	}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	wide, deep := t.TempDir(), t.TempDir()
	for i := range maxNames + 5 {
		if err := os.WriteFile(fmt.Sprintf("%s/%d", wide, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := Relabel(t.Context(), wide, label); err != nil {
		t.Error(err)
	}
	for i := range maxNames + 5 {
		b := make([]byte, 200)
		if n, err := unix.Lgetxattr(fmt.Sprintf("%s/%d", wide, i), attribute, b); err != nil || string(b[:n]) != label {
			t.Fatalf("file %d has the label %q, %v", i, b[:max(n, 0)], err)
		}
	}
	at, err := unix.Open(deep, unix.O_PATH|unix.O_CLOEXEC, 0)
	for range maxDepth + 5 {
		if err == nil {
			err = unix.Mkdirat(at, "d", 0o755)
		}
		next, failed := unix.Openat(at, "d", unix.O_PATH|unix.O_CLOEXEC, 0)
		unix.Close(at)
		if at, err = next, errors.Join(err, failed); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(at)
	if err := Relabel(t.Context(), deep, label); err == nil || !strings.Contains(err.Error(), "more than 2048 folders") {
		t.Errorf("a folder that is too deep: %v", err)
	}
}

func TestRelabel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: attributes of security modules")
	}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	dir, outside := t.TempDir(), t.TempDir()
	for _, path := range []string{dir + "/sub/deep", outside + "/x"} {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(dir+"/sub/file", nil, 0o644), os.Symlink(outside, dir+"/link"), os.Symlink(dir, outside+"/way")); err != nil {
		t.Fatal(err)
	}
	labelOf := func(path string) string {
		b := make([]byte, 200)
		n, err := unix.Lgetxattr(path, attribute, b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	if err := Relabel(t.Context(), outside+"/way", label); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: label, dir + "/sub": label, dir + "/sub/deep": label, dir + "/sub/file": label, dir + "/link": label,
		outside: "", outside + "/x": "", outside + "/way": ""} {
		if got := labelOf(path); got != want {
			t.Errorf("%s has the label %q, want %q", path, got, want)
		}
	}
	for _, path := range []string{"/", "/etc", "/usr/../usr", "/var/lib/"} {
		if err := Relabel(t.Context(), path, label); !errors.Is(err, ErrNotAllowed) {
			t.Errorf("relabel %s: %v", path, err)
		}
	}
	if err := Relabel(t.Context(), dir+"/none", label); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("relabel what is not there: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Relabel(ended, dir, label); !errors.Is(err, context.Canceled) {
		t.Errorf("relabel for nobody: %v", err)
	}
	if err := Relabel(t.Context(), "/proc/self/status", label); err != nil {
		t.Errorf("a file system without labels: %v", err)
	}
}
