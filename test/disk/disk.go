// Package disk makes file systems of a test's own, in a file.
package disk

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Ext4 is a file of size bytes with an empty ext4, which goes with the test. It skips the test where the kernel cannot mount it.
func Ext4(t testing.TB, size int64) (image string) {
	t.Helper()
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(known), "\text4\n") {
		t.Skip("the kernel does not know ext4")
	}
	control, err := os.Open("/dev/loop-control")
	if err != nil {
		t.Skipf("the kernel has no loop devices: %v", err)
	}
	defer control.Close()
	if _, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE); err != nil {
		t.Skipf("the kernel gives no loop device: %v", err)
	}
	image = filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return image
}
