// Command guest is the first process of the User-Mode Linux that hack/uml boots. It makes a host that berth could meet (cgroup v2 alone,
// AppArmor, a shared mount tree), runs the tests that stand beside it, writes their exit status down, and powers off.
//
// # Files
//
// In the folder that it stands in: tests0, tests1 ..., each with a program "run" and its arguments in "args", one a line; berthd and the other
// programs; it writes status. Everything else of the machine is read-only. With a file root there it makes the folder that this names the root file
// system, and has systemd, which is in it, be the first process; the tests are a service's then.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// modules is where Debian's package keeps the kernel's modules, in a folder of the kernel's version.
const modules = "/usr/lib/uml/modules"

// loaded are the modules that are there from the start, as on a node. The kernel asks for others as they are needed.
var loaded = []string{"overlay", "veth", "bridge", "nf_tables"}

// mounts of a host whose root is the machine's, read-only.
var mounts = []struct {
	source, target, kind, data string
	flags                      uintptr
}{
	{"proc", "/proc", "proc", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"sysfs", "/sys", "sysfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"securityfs", "/sys/kernel/security", "securityfs", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	{"tmpfs", "/run", "tmpfs", "mode=755", unix.MS_NOSUID | unix.MS_NODEV},
	{"devpts", "/dev/pts", "devpts", "newinstance,ptmxmode=0666,mode=620,gid=5", unix.MS_NOSUID | unix.MS_NOEXEC},
	{"shm", "/dev/shm", "tmpfs", "", unix.MS_NOSUID | unix.MS_NODEV},
	{"mqueue", "/dev/mqueue", "mqueue", "", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
}

// shared is where the folder of this program, which is the machine's, can be written to.
const shared = "/run/uml"

// path is where the programs of the machine are.
const path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func main() {
	work := func() error { return run(filepath.Dir(os.Args[0])) }
	if len(os.Args) > 1 && os.Args[1] == "tests" {
		work = serviceOfSystemd
	}
	if err := work(); err != nil {
		fmt.Printf("guest: %v\n", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Printf("guest: power off: %v\n", err)
	}
}

func run(dir string) error {
	// A reboot executes the kernel anew: the tests would begin again, without end.
	if _, err := os.Stat(filepath.Join(dir, "booted")); err == nil {
		return errors.New("the kernel was rebooted")
	}
	if root, err := os.ReadFile(filepath.Join(dir, "root")); err == nil {
		return startSystemd(dir, string(root))
	}
	if err := os.Setenv("PATH", path); err != nil {
		return err
	}
	if err := makeHost(dir); err != nil {
		return err
	}
	return finish()
}

// finish runs the tests and writes their exit status down.
func finish() error {
	code, err := runSuites()
	if err != nil {
		return err
	}
	return os.WriteFile(shared+"/status", []byte(strconv.Itoa(code)), 0o644)
}

// makeHost mounts what a host has, loads modules and brings the loopback link up.
func makeHost(dir string) error {
	for _, m := range mounts {
		if filepath.Dir(m.target) == "/dev" {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := os.MkdirAll(shared, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("none", shared, "hostfs", unix.MS_NOSUID, dir); err != nil {
		return fmt.Errorf("mount %s: %w", shared, err)
	}
	// Only now: dir is in one of these.
	for _, target := range []string{"/tmp", "/var/tmp", "/var/cache"} {
		if err := unix.Mount("tmpfs", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	if err := os.WriteFile(shared+"/booted", nil, 0o644); err != nil {
		return err
	}
	return errors.Join(loadModules(modules), linkUp("lo"), share())
}

// share makes the mount tree shared, as systemd does.
func share() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share the mount tree: %w", err)
	}
	return nil
}

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring up link %s: %w", name, err)
	}
	return nil
}
