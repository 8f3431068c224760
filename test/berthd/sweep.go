package berthd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/invariants"
	"github.com/berthd/berth/test/wait"
)

// Sweep takes everything of a daemon that does not run off the host, except its two folders: what pods left, the bridge, its
// firewall and the cgroup tree. It is for the end of a test, also of one that failed.
func Sweep(d invariants.Daemon) (err error) {
	wait.Until(invariants.Grace, 50*time.Millisecond, func() bool { // what is killed may take a moment to leave its cgroup
		err = sweepOnce(d)
		return err == nil
	})
	return err
}

func sweepOnce(d invariants.Daemon) error {
	items, err := invariants.Take(d)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range items.Names(invariants.Process) {
		pid, _, _ := strings.Cut(name, " ")
		if n, err := strconv.Atoi(pid); err == nil && n > 1 {
			unix.Kill(n, unix.SIGKILL)
		}
	}
	for _, m := range slices.Backward(items.Names(invariants.Mount)) {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	for _, pin := range items.Names(invariants.Pin) {
		errs = append(errs, ignore(os.Remove(pin)))
	}
	return errors.Join(append(errs, sweepLinks(items), sweepFirewall(d), sweepCgroups(d))...)
}

func ignore(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func sweepLinks(items invariants.Items) error {
	var errs []error
	for _, name := range items.Names(invariants.Link) {
		link, err := netlink.LinkByName(name)
		if err == nil {
			err = netlink.LinkDel(link)
		}
		if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func sweepFirewall(d invariants.Daemon) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	tables, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("list nftables: %w", err)
	}
	for _, t := range tables {
		if t.Name == d.Table() {
			conn.DelTable(t)
		}
	}
	if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete nftables of %s: %w", d.Bridge, err)
	}
	return nil
}

// sweepCgroups removes folders, the deepest first.
func sweepCgroups(d invariants.Daemon) error {
	dirs, err := invariants.CgroupDirs(d)
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range slices.Backward(dirs) {
		if err := ignore(os.Remove(dir)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// SweepFolders removes a daemon's two folders, whatever attributes are on what is in them.
func SweepFolders(opts Options) error {
	for _, dir := range []string{opts.Root, opts.State} {
		if !filepath.IsAbs(dir) || strings.Count(filepath.Clean(dir), "/") < 2 {
			return fmt.Errorf("remove folder %q: too near the root", dir)
		}
	}
	return errors.Join(os.RemoveAll(opts.Root), os.RemoveAll(opts.State))
}
