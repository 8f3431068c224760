package images

import (
	"strings"
	"testing"
)

func TestBuilderMakesParentsOnce(t *testing.T) {
	files, err := NewBuilder().File("a/b/c", "x", 0o644).File("/a/b/d", "y", 0o600).Symlink("a/l", "b").Dir("a", 0o700).Files()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	if got, want := strings.Join(names, " "), "a/ a/b/ a/b/c a/b/d a/l"; got != want {
		t.Errorf("names = %q, want %q", got, want)
	}
}

func TestProgramBringsItsLibraries(t *testing.T) {
	files, err := NewBuilder().Program("bin/env", "/usr/bin/env").Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Name, "libc.so") {
			return
		}
	}
	t.Errorf("no libc in %d files", len(files))
}

func TestShellNamesTheMissingProgram(t *testing.T) {
	if _, err := Shell("/nowhere/busybox").Files(); err == nil || !strings.Contains(err.Error(), "/nowhere/busybox") {
		t.Errorf("Shell of a missing program: %v", err)
	}
}
