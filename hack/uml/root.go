package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// rootPackages are Debian's that the root file system of a guest with systemd has besides the least: systemd itself with its bus, what loads modules, what
// test images are made of, and the runtimes that make containers.
const rootPackages = "systemd,dbus,kmod,busybox-static,runc,crun"

// systemdRoot is the folder of a Debian system with systemd as its init. It is made by debootstrap from the mirror that apt is configured with, which
// takes half a minute and 250 MiB, once: it stays in the user's cache folder, and nothing writes to it.
func systemdRoot(ctx context.Context) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir() // no HOME: a build environment without a user
	}
	cache = filepath.Join(cache, "berth-uml")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("wait for another run's root file system: %w", err)
	}
	mirror, release, err := aptSource(ctx)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(mirror + " " + release + " " + rootPackages))
	root := filepath.Join(cache, release+"-"+hex.EncodeToString(sum[:4]))
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		return root, err
	}
	fmt.Printf("uml: making %s, once, from %s\n", root, mirror)
	made := root + ".new"
	if err := os.RemoveAll(made); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "--include="+rootPackages, release, made, mirror)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make a root file system: %w\n%s", err, out[max(0, len(out)-4096):])
	}
	// The downloaded packages are half of it, and are not needed any more.
	if out, err := exec.CommandContext(ctx, "chroot", made, "apt-get", "clean").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make a root file system: %w\n%s", err, out)
	}
	return root, os.Rename(made, root)
}

// aptSource is the mirror and the release of Debian's main packages.
func aptSource(ctx context.Context) (mirror, release string, err error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI) $(CODENAME)", "Created-By: Packages").Output()
	if err != nil {
		return "", "", fmt.Errorf("find Debian's mirror: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		if len(words) == 4 && words[0] == "Debian" && words[1] == "main" && !strings.Contains(words[3], "-") {
			return words[2], words[3], nil
		}
	}
	return "", "", errors.New("find Debian's mirror: apt knows of none; run apt-get update")
}
