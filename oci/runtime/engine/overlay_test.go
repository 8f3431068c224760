package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// withoutAppending makes the engine believe in a kernel that has no lowerdir+.
func withoutAppending(t *testing.T) {
	t.Helper()
	before := appendsLayers
	appendsLayers = func() bool { return false }
	t.Cleanup(func() { appendsLayers = before })
}

// manyLayers puts n folders below the plan's layer, with names that mount(2) would have to be told escaped.
func manyLayers(t *testing.T, plan *Plan, n int) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40), "a:b,c\\d")
	for i := range n {
		layer := filepath.Join(dir, strconv.Itoa(i))
		if err := os.MkdirAll(filepath.Join(layer, "layers"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"every", "layers/" + strconv.Itoa(i)} {
			if err := os.WriteFile(filepath.Join(layer, name), []byte(strconv.Itoa(i)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		plan.Rootfs.Options = append([]string{"lowerdir+=" + layer}, plan.Rootfs.Options...)
	}
}

// What a kernel does that takes layers only in one string: the same tree, and nothing on the host's mount table.
func TestManyLayersInOneString(t *testing.T) {
	withoutAppending(t)
	plan := testPlan(t, "sh", "-c", "cat /every; set -- /layers/*; echo $#; echo changed >/every; cat /every; grep -c ' / overlay rw,nodev,' /proc/mounts")
	manyLayers(t, plan, 130)
	plan.Rootfs.Options = append(plan.Rootfs.Options, "index=off", "volatile")
	plan.Rootfs.Set = unix.MOUNT_ATTR_NODEV
	if out, ws := output(t, plan); out != "129\n130\nchanged\n1\n" || ws.ExitStatus() != 0 {
		t.Errorf("status %v, output %q", ws, out)
	}
	after, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(after), "lowerdir=0:1:") || strings.Contains(string(after), "lowerdir+=0,") { // by the names that only this has
		t.Errorf("the host's mount table has an overlay:\n%s", after)
	}
}

func TestLayersInOneStringThatCannotBe(t *testing.T) {
	withoutAppending(t)
	plan := testPlan(t, "true")
	plan.Rootfs.Options = append([]string{"lowerdir+=/no/such/folder"}, plan.Rootfs.Options...)
	if _, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Start on a layer that is not there = %v, want ENOENT", err)
	}
	manyLayers(t, plan, 2000)
	if _, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); !errors.Is(err, unix.E2BIG) {
		t.Errorf("Start with 2000 layers = %v, want E2BIG", err)
	}
}

func TestTheKernelIsAskedForAppending(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: fsopen")
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		t.Fatal(err)
	}
	version := strings.SplitN(unix.ByteSliceToString(uts.Release[:]), ".", 3)
	major, _ := strconv.Atoi(version[0])
	minor, _ := strconv.Atoi(version[1])
	if want := major > 6 || major == 6 && minor >= 7; appendsLayers() != want {
		t.Errorf("appendsLayers() = %t on Linux %s.%s", !want, version[0], version[1])
	}
}
