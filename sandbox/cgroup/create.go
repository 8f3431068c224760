package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Group is one cgroup, held open for a process to join.
type Group struct {
	Path string
	// Dirs has one directory per hierarchy. The unified one, when there is one, is first.
	Dirs []*os.File
	// Kill is cgroup.kill of the unified directory, open for writing; nil where the kernel has none.
	Kill *os.File
}

// Close gives back the descriptors; the cgroup stays.
func (g *Group) Close() error {
	var errs []error
	for _, f := range g.Dirs {
		errs = append(errs, f.Close())
	}
	if g.Kill != nil {
		errs = append(errs, g.Kill.Close())
	}
	g.Dirs, g.Kill = nil, nil
	return errors.Join(errs...)
}

// Create makes the leaf p and its missing ancestors in every hierarchy, and sets the limits of res (nil: none). It is idempotent. On an
// error the leaf is gone again; the ancestors are the caller's to give back (Missing, RemoveEmpty).
// Errors: ErrInvalid, ErrNotSupported (a limit that no mounted controller can enforce).
func (d *Driver) Create(p string, res *specs.LinuxResources) (*Group, error) {
	if err := d.Check(p); err != nil {
		return nil, err
	}
	group, err := d.create(p, res)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create cgroup %s: %w", p, err), d.RemoveEmpty(p))
	}
	return group, nil
}

func (d *Driver) create(p string, res *specs.LinuxResources) (*Group, error) {
	rel := relative(p)
	err := d.Hold(p)
	if err == nil {
		err = d.makeLeaves(rel, res)
	}
	if d.inScope(rel) && gone(err) { // its scope has ended meanwhile
		if err = d.Hold(p); err == nil {
			err = d.makeLeaves(rel, res)
		}
	}
	if err != nil {
		return nil, err
	}
	if res != nil {
		if err := d.limit(rel, res); err != nil {
			return nil, err
		}
	}
	group := &Group{Path: p}
	for _, h := range d.hierarchies {
		f, err := h.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil, errors.Join(err, group.Close())
		}
		group.Dirs = append(group.Dirs, f)
	}
	if group.Kill, err = d.openKill(rel); err != nil {
		return nil, errors.Join(err, group.Close())
	}
	return group, nil
}

// inScope tells whether systemd makes the ancestors of rel.
func (d *Driver) inScope(rel string) bool { return d.systemd != nil && scopeOf("/"+rel) != "" }

// Child makes a cgroup below the leaf p, in the unified hierarchy only and without controllers of its own, for the processes of one
// exec. In the other hierarchies the Group holds the leaf itself. On a host without the unified one the child is in all, as Branch makes it, and there is no
// Kill. The child goes with Remove of either path.
func (d *Driver) Child(p, name string) (*Group, error) {
	group := &Group{Path: p + "/" + name}
	failed := func(err error) (*Group, error) {
		return nil, errors.Join(fmt.Errorf("create cgroup %s: %w", group.Path, err), group.Close(), d.RemoveEmpty(group.Path))
	}
	for _, h := range d.hierarchies {
		at := relative(p)
		if h.v2 || d.unified == nil {
			at = relative(group.Path)
			if err := h.makeOne(at, nil); err != nil {
				return failed(err)
			}
		}
		f, err := h.open(at, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return failed(err)
		}
		group.Dirs = append(group.Dirs, f)
	}
	var err error
	if group.Kill, err = d.openKill(relative(group.Path)); err != nil {
		return failed(err)
	}
	return group, nil
}

// openKill opens cgroup.kill; nil, nil where the kernel (before 5.14) or the host (no unified hierarchy) has none.
func (d *Driver) openKill(rel string) (*os.File, error) {
	if d.unified == nil {
		return nil, nil
	}
	f, err := d.unified.open(path.Join(rel, "cgroup.kill"), unix.O_WRONLY)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return f, err
}

func (d *Driver) makeLeaves(rel string, res *specs.LinuxResources) error {
	d.ancestors.RLock()
	defer d.ancestors.RUnlock()
	for _, h := range d.hierarchies {
		if err := d.makeLeaf(h, rel, d.wanted(h, res)); err != nil {
			return err
		}
	}
	return nil
}

// makeLeaf makes rel in h. An ancestor that another program takes away meanwhile is made again.
func (d *Driver) makeLeaf(h *hierarchy, rel string, controllers []string) error {
	var err error
	for range 4 {
		if err = h.makeOne(rel, controllers); gone(err) && !(h.v2 && d.inScope(rel)) {
			err = h.makeAncestors(rel, controllers)
			if err == nil {
				err = h.makeOne(rel, controllers)
			}
		}
		if !gone(err) {
			break
		}
	}
	if errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("%s in %s: an ancestor is a file: %w", rel, h.mount, ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("make %s in %s: %w", rel, h.mount, err)
	}
	return nil
}

func (h *hierarchy) makeAncestors(rel string, controllers []string) error {
	for _, ancestor := range prefixes(path.Dir(rel)) {
		made, err := h.mkdir(ancestor)
		if err != nil {
			return err
		}
		if !h.has("cpuset") || h.v2 {
			continue
		}
		if err := h.inheritCpuset(ancestor); err != nil {
			return err
		}
		if made { // so that what is made below inherits by itself, which saves four files a container
			if err := h.write(ancestor, "cgroup.clone_children", "1"); err != nil {
				return err
			}
		}
	}
	return h.enable(path.Dir(rel), controllers)
}

// makeOne makes rel, whose parent is there.
func (h *hierarchy) makeOne(rel string, controllers []string) error {
	made, err := h.mkdir(rel)
	if err != nil {
		return err
	}
	if h.v2 {
		return h.enable(path.Dir(rel), controllers)
	}
	if made && h.has("cpuset") {
		return h.inheritCpuset(rel)
	}
	return nil
}

// inheritCpuset gives a version 1 cpuset that has no cpus or mems those of its parent: nothing can run in it otherwise. Not
// inherited by the kernel unless the parent says cgroup.clone_children. A parent that has none either, because another Create has only
// just made it, gets its own first.
func (h *hierarchy) inheritCpuset(rel string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := h.read(rel, file)
		if err != nil {
			return err
		}
		if strings.TrimSpace(own) != "" {
			continue
		}
		parent := path.Dir(rel)
		if parent != "." {
			if err := h.inheritCpuset(parent); err != nil {
				return err
			}
		}
		above, err := h.read(parent, file)
		if err != nil {
			return err
		}
		if err := h.write(rel, file, above); err != nil {
			return err
		}
	}
	return nil
}

// enable hands the controllers down to the children of dir, in a version 2 hierarchy. Only what is missing is written, from the root
// downwards, so that an ancestor whose owner has done it is left alone.
func (h *hierarchy) enable(dir string, controllers []string) error {
	if !h.v2 || len(controllers) == 0 {
		return nil
	}
	for _, ancestor := range append([]string{"."}, prefixes(dir)...) {
		text, err := h.read(ancestor, "cgroup.subtree_control")
		if err != nil {
			return err
		}
		enabled := strings.Fields(text)
		var missing []string
		for _, c := range controllers {
			if !slices.Contains(enabled, c) {
				missing = append(missing, "+"+c)
			}
		}
		if len(missing) == 0 {
			continue
		}
		if err := h.write(ancestor, "cgroup.subtree_control", strings.Join(missing, " ")); err != nil {
			return err
		}
	}
	return nil
}

// wanted lists the controllers that a leaf in the unified hierarchy h needs. A pure version 2 host hands down all that containers use, so that a
// later Update finds the files; a hybrid one only what is asked for.
func (d *Driver) wanted(h *hierarchy, res *specs.LinuxResources) []string {
	if !h.v2 {
		return nil
	}
	var names []string
	for _, c := range h.controllers {
		switch c {
		case "cpu", "cpuset", "io", "memory", "pids":
			names = append(names, c)
		case "hugetlb":
			if d.pure || res != nil && len(res.HugepageLimits) > 0 {
				names = append(names, c)
			}
		}
	}
	return names
}
