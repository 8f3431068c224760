package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What startSystemd makes in the new root.
const (
	newRoot = "/run/root"
	// hostModules is the machine's folder of modules, as the guest with systemd sees it.
	hostModules = "/run/uml-modules"
	testsUnit   = "berth-tests.service"
)

// unit runs this program again, as a service of systemd's.
const unit = `[Unit]
Description=berth's tests
Wants=dbus.socket
After=dbus.socket

[Service]
Type=oneshot
ExecStart=` + shared + `/guest tests
ExecStopPost=/bin/systemctl poweroff -ff
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
KillMode=process
OOMPolicy=continue
TasksMax=infinity
LimitNOFILE=1048576
`

// startSystemd makes root, a folder of the machine's, the root file system, and executes the init that is there. All but what is in memory is read-only.
func startSystemd(dir, root string) error {
	if err := mount("tmpfs", "/run", "tmpfs", "mode=755", 0); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(newRoot, 0o755), mount("none", newRoot, "hostfs", root, unix.MS_RDONLY)); err != nil {
		return err
	}
	for _, folder := range []string{"run", "tmp", "var/tmp", "var/log", "var/lib/systemd", "var/cache"} {
		if err := mount("tmpfs", filepath.Join(newRoot, folder), "tmpfs", "mode=755", unix.MS_NOSUID|unix.MS_NODEV); err != nil {
			return err
		}
	}
	for target, source := range map[string]string{shared: dir, hostModules: modules} {
		at := newRoot + target
		if err := errors.Join(os.Mkdir(at, 0o755), mount("none", at, "hostfs", source, unix.MS_NOSUID)); err != nil {
			return err
		}
	}
	units := newRoot + "/run/systemd/system"
	if err := errors.Join(os.MkdirAll(units, 0o755), os.WriteFile(filepath.Join(units, testsUnit), []byte(unit), 0o644),
		os.WriteFile(newRoot+shared+"/booted", nil, 0o644)); err != nil {
		return err
	}
	if err := errors.Join(os.Chdir(newRoot), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("enter the new root: %w", err)
	}
	return unix.Exec("/lib/systemd/systemd", []string{"systemd", "--unit=" + testsUnit, "--show-status=no", "--log-level=warning", "--log-target=console"},
		[]string{"PATH=" + path, "TERM=dumb"})
}

func mount(source, target, kind, data string, flags uintptr) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// serviceOfSystemd is what the unit executes: a host that is complete but for modules.
func serviceOfSystemd() error {
	if err := loadModules(hostModules); err != nil {
		return err
	}
	return finish()
}
