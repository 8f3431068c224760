package uml_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
)

// On this kernel overlayfs takes layers with mapped owners if they are mounted and have names, and tmpfs has no mapped owners: pods cannot have user
// namespaces, and are told what is missing.
func TestUserNamespacesLackTmpfsAlone(t *testing.T) {
	dir := t.TempDir()
	folder := mountExt4(t)
	before := hostMounts(t)
	err := engine.ProbeUserNamespaces(folder, folder)
	if !errors.Is(err, engine.ErrNotSupported) || !strings.HasPrefix(err.Error(), "tmpfs with mapped owners") {
		t.Errorf("ProbeUserNamespaces = %v, want an error about tmpfs", err)
	}
	if after := hostMounts(t); after != before {
		t.Errorf("the mount table was\n%s\nis\n%s", before, after)
	}
	if err := engine.ProbeUserNamespaces(dir); !errors.Is(err, engine.ErrNotSupported) || !strings.HasPrefix(err.Error(), "overlay with mapped owners") {
		t.Errorf("ProbeUserNamespaces of layers in a tmpfs = %v, want an error about the overlay", err)
	}
}

// mountExt4 makes a file system that maps owners, unlike the guest's own, in a file.
func mountExt4(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	image, dev, folder := filepath.Join(dir, "image"), filepath.Join(dir, "dev"), filepath.Join(dir, "ext4")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20), os.Mkdir(dev, 0o700), os.Mkdir(folder, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, command := range [][]string{{"mkfs.ext4", "-q", image}, {"modprobe", "-d", "/run/modules", "loop"}} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
	}
	if err := unix.Mount("devtmpfs", dev, "devtmpfs", 0, ""); err != nil { // the guest's /dev is the machine's
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dev, unix.MNT_DETACH) })
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer backing.Close()
	loop, err := os.OpenFile(filepath.Join(dev, "loop0"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer loop.Close()
	if err := unix.IoctlLoopConfigure(int(loop.Fd()), &unix.LoopConfig{Fd: uint32(backing.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(loop.Name(), folder, "ext4", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
	return folder
}
