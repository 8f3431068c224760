package cgroup

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const runtimePrefix = "runtime-"

// RuntimePath is where the processes of an OCI runtime that is a program of its own do the work of this name.
func (d *Driver) RuntimePath(name string) string { return d.own + "/" + runtimePrefix + name }

// Runtime makes RuntimePath(name), in the unified hierarchy alone and without limits: what the program needs is not the container's to pay, and
// Kill ends the program with all that it has not yet moved into the container's cgroup. On a host without that hierarchy the Group has no
// directory. It goes with Remove.
func (d *Driver) Runtime(name string) (*Group, error) {
	group := &Group{Path: d.RuntimePath(name)}
	if d.unified == nil {
		return group, nil
	}
	if err := d.Hold(group.Path); err != nil {
		return nil, err
	}
	d.ancestors.RLock()
	defer d.ancestors.RUnlock()
	rel := relative(group.Path)
	if err := d.makeLeaf(d.unified, rel, nil); err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", group.Path, err)
	}
	f, err := d.unified.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create cgroup %s: %w", group.Path, err), d.unified.removeOne(rel))
	}
	group.Dirs = append(group.Dirs, f)
	return group, nil
}

// Runtimes lists the names that Runtime was called with and whose cgroups are there.
func (d *Driver) Runtimes() ([]string, error) {
	all, err := d.List(d.own)
	var names []string
	for _, name := range all {
		if name, found := strings.CutPrefix(name, runtimePrefix); found {
			names = append(names, name)
		}
	}
	return names, err
}

// Branch makes a cgroup below the leaf p in every hierarchy, without limits of its own, for the processes of one exec: an OCI runtime that is a
// program of its own can be told one name for all of them. It goes with RemoveChild, or with the leaf. The Group has no directories, but Kill.
func (d *Driver) Branch(p, name string) (*Group, error) {
	group := &Group{Path: path.Join(p, name)}
	rel := relative(group.Path)
	var err error
	for _, h := range d.hierarchies {
		err = errors.Join(err, h.makeOne(rel, nil))
	}
	if err == nil {
		group.Kill, err = d.openKill(rel)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("create cgroup %s: %w", group.Path, err), d.RemoveEmpty(group.Path))
	}
	return group, nil
}
