package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInvalid means that a path cannot name a cgroup on this host; the error text names the rule.
var ErrInvalid = errors.New("invalid cgroup path")

// ErrNotSupported means that the kernel, or the hierarchies that are mounted, lack what was asked for.
var ErrNotSupported = errors.New("not supported by the mounted cgroup hierarchies")

// ErrFull means that a cgroup above has as many below it as it may have; the error text names the limit.
var ErrFull = errors.New("limit of cgroups is reached")

// monitorShares is the cpu weight of all monitors together, where a container without a request has 1024.
const monitorShares = 128

// Driver makes cgroups in every hierarchy that is mounted.
type Driver struct {
	tree        string // "/berth" or "/berth-INST"; with systemd the slice of that name
	own         string // where the monitors and what they execute run: tree, or a scope in it
	systemd     *units // nil: cgroups are made by their files alone
	hierarchies []*hierarchy
	unified     *hierarchy // nil on a host with version 1 alone
	pure        bool       // unified is the only hierarchy
	swapFiles   bool       // version 1: memory.memsw.* exist
	hugepages   []string   // sizes: 2MB

	// ancestors is held for writing while one may go, for reading while a leaf is made below it.
	ancestors sync.RWMutex
}

// hierarchy is one mounted cgroup tree. dir stays open for the life of the Driver; all paths are relative to it.
type hierarchy struct {
	mount       string
	controllers []string
	v2          bool
	dir         *os.File
	journal     *journal // nil but for Update
}

func (h *hierarchy) has(controller string) bool {
	for _, c := range h.controllers {
		if c == controller {
			return true
		}
	}
	return false
}

// Open finds the mounted hierarchies. instance is "" or the short name of a daemon that shares the host with others.
// It makes nothing. The caller closes the Driver.
func Open(instance string) (*Driver, error) {
	mountinfo, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	d := &Driver{tree: "/berth", hierarchies: parseMountinfo(string(mountinfo)), hugepages: hugepageSizes()}
	if instance != "" {
		d.tree += "-" + instance
	}
	d.own = d.tree
	if len(d.hierarchies) == 0 {
		return nil, fmt.Errorf("find cgroup hierarchies: none is mounted: %w", ErrNotSupported)
	}
	for _, h := range d.hierarchies {
		if err := d.attach(h); err != nil {
			d.Close()
			return nil, fmt.Errorf("open cgroup hierarchy %s: %w", h.mount, err)
		}
	}
	d.pure = d.unified != nil && len(d.hierarchies) == 1
	return d, nil
}

func (d *Driver) attach(h *hierarchy) error {
	fd, err := unix.Open(h.mount, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	h.dir = os.NewFile(uintptr(fd), h.mount)
	if h.v2 {
		d.unified = h
		available, err := h.read(".", "cgroup.controllers")
		if err != nil {
			return err
		}
		h.controllers = strings.Fields(available)
	}
	if !h.v2 && h.has("memory") {
		d.swapFiles = h.exists("memory.memsw.limit_in_bytes")
	}
	return nil
}

// Close gives back the descriptors, and the own tree if nothing is left in it.
func (d *Driver) Close() error {
	var errs []error
	for _, h := range d.hierarchies {
		if h.dir == nil {
			continue
		}
		for _, p := range d.ownPaths() {
			if err := h.leave(relative(p)); err != nil && !errors.Is(err, unix.EBUSY) {
				errs = append(errs, fmt.Errorf("remove cgroup %s in %s: %w", p, h.mount, err))
			}
		}
	}
	if d.systemd != nil {
		errs = append(errs, d.RemoveEmpty(d.own))
		for _, p := range slices.Backward(prefixes(d.tree)) {
			errs = append(errs, d.RemoveEmpty(p))
		}
		errs = append(errs, d.systemd.close())
	}
	for _, h := range d.hierarchies {
		if h.dir != nil {
			errs = append(errs, h.dir.Close())
			h.dir = nil
		}
	}
	return errors.Join(errs...)
}

// ownPaths are the cgroups of this daemon's making that Close takes away by their files, the deepest first.
func (d *Driver) ownPaths() []string {
	if d.systemd != nil {
		return []string{d.MonitorPath()}
	}
	return []string{d.MonitorPath(), d.tree}
}

// leave removes rel unless somebody else uses it. A thread of this process that was in it, and has ended by what it told, may take the
// kernel a moment more.
func (h *hierarchy) leave(rel string) error {
	err := h.removeOne(rel)
	for end := time.Now().Add(time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(end); err = h.removeOne(rel) {
		children, cerr := h.children(rel)
		pids, perr := h.pids(rel)
		others := slices.ContainsFunc(pids, func(pid int) bool { return pid != os.Getpid() })
		if cerr != nil || perr != nil || len(children) > 0 || others {
			break
		}
		time.Sleep(time.Millisecond)
	}
	return err
}

// Tree is the path of the daemon's own tree: /berth, or /berth-INST; with systemd the slice of that name.
func (d *Driver) Tree() string { return d.tree }

// V2 tells whether cgroup version 2 is all that the host has mounted.
func (d *Driver) V2() bool { return d.pure }

// MonitorPath is where the monitors run.
func (d *Driver) MonitorPath() string { return d.own + "/monitors" }

// Monitors makes the monitors' cgroup, if it is not there, and returns one directory per hierarchy, the unified one first.
// The caller closes the Group.
func (d *Driver) Monitors() (*Group, error) {
	shares := uint64(monitorShares)
	group, err := d.Create(d.MonitorPath(), cpuShares(shares))
	if err == nil && d.systemd != nil && !d.systemd.watches(d.own) {
		d.Watch(d.own)
	}
	return group, err
}

// parseMountinfo lists the cgroup mounts of a mountinfo table, the unified one first, each hierarchy once.
func parseMountinfo(table string) []*hierarchy {
	var v1 []*hierarchy
	var v2 *hierarchy
	seen := map[string]bool{}
	for line := range strings.Lines(table) {
		before, after, found := strings.Cut(line, " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !found || len(left) < 5 || len(right) < 3 {
			continue
		}
		h := &hierarchy{mount: unescape(left[4])}
		switch right[0] {
		case "cgroup2":
			if v2 == nil {
				h.v2 = true
				v2 = h
			}
		case "cgroup":
			h.controllers = v1Controllers(right[2])
			key := strings.Join(h.controllers, ",")
			if key != "" && !seen[key] {
				seen[key] = true
				v1 = append(v1, h)
			}
		}
	}
	if v2 != nil {
		return append([]*hierarchy{v2}, v1...)
	}
	return v1
}

// v1Controllers picks the controllers, and the hierarchy's name, out of the options of a version 1 mount.
func v1Controllers(options string) []string {
	var names []string
	for _, option := range strings.Split(options, ",") {
		switch option {
		case "rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "seclabel", "":
		default:
			if !strings.HasPrefix(option, "release_agent=") {
				names = append(names, option)
			}
		}
	}
	return names
}

// unescape undoes the octal escapes of mountinfo (proc(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// Controllers lists those that limits can be set for, in any hierarchy.
func (d *Driver) Controllers() []string {
	var names []string
	for _, h := range d.hierarchies {
		for _, c := range h.controllers {
			if !strings.HasPrefix(c, "name=") {
				names = append(names, c)
			}
		}
	}
	return names
}

// SwapLimit tells whether the kernel accounts swap, so that it can be limited. Version 2 has the file in every cgroup but the root, so an
// existing child tells; without one it is taken to be there, and Create passes over it when it is not.
func (d *Driver) SwapLimit() bool {
	if !d.pure {
		return d.swapFiles
	}
	children, err := d.unified.children(".")
	if err != nil {
		return true
	}
	for _, name := range children {
		if d.unified.exists(name + "/memory.max") {
			return d.unified.exists(name + "/memory.swap.max")
		}
	}
	return true
}
