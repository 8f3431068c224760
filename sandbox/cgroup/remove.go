package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stubborn is after how long Remove kills what is still inside, one by one: a privileged container can move a process out of its
// unified leaf, where cgroup.kill does not find it, and leave it in the others.
const stubborn = 100 * time.Millisecond

// Remove removes p and what is below it from every hierarchy, and waits for processes that are ending. What is left alive inside is killed.
// It is idempotent. Errors: ctx's, when a process does not end.
func (d *Driver) Remove(ctx context.Context, p string) error {
	if err := checkSyntax(p); err != nil || p == "/" {
		return fmt.Errorf("remove cgroup %q: %w", p, errors.Join(err, ErrInvalid))
	}
	rel := relative(p)
	var errs []error
	for _, h := range d.hierarchies {
		if err := d.removeFrom(ctx, h, rel); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s from %s: %w", p, h.mount, err))
		}
	}
	return errors.Join(append(errs, d.tellEnd(ctx, p))...)
}

func (d *Driver) removeFrom(ctx context.Context, h *hierarchy, rel string) error {
	start := time.Now()
	for pause := 100 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		err := h.removeTree(rel)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if time.Since(start) > stubborn {
			if err := errors.Join(h.signalAll(rel), d.thaw(rel)); err != nil {
				return err
			}
		}
		if serr := sleep(ctx, pause); serr != nil {
			return errors.Join(err, serr)
		}
	}
}

// removeTree removes rel, and what is below it first if there is anything.
func (h *hierarchy) removeTree(rel string) error {
	err := h.removeOne(rel)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	children, cerr := h.children(rel)
	if cerr != nil || len(children) == 0 {
		return errors.Join(cerr, err)
	}
	for _, child := range children {
		if err := h.removeTree(path.Join(rel, child)); err != nil {
			return err
		}
	}
	return h.removeOne(rel)
}

// RemoveEmpty removes the cgroup p from each hierarchy where it has neither processes nor children, and leaves it elsewhere. It gives
// back an ancestor that Create had to make, whose last user may be somebody else by now. A scope is ended with its holder.
func (d *Driver) RemoveEmpty(p string) error {
	switch {
	case strings.HasSuffix(p, scopeSuffix):
		return d.removeScope(p)
	case strings.HasSuffix(p, sliceSuffix):
		return d.removeSlice(p)
	}
	return d.removeEmpty(p)
}

func (d *Driver) removeEmpty(p string) error {
	d.ancestors.Lock()
	defer d.ancestors.Unlock()
	var errs []error
	for _, h := range d.hierarchies {
		if err := h.removeOne(relative(p)); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("remove cgroup %s from %s: %w", p, h.mount, err))
		}
	}
	return errors.Join(errs...)
}

// List names the cgroups directly below p, in any hierarchy.
func (d *Driver) List(p string) ([]string, error) {
	seen := map[string]bool{}
	var names []string
	for _, h := range d.hierarchies {
		children, err := h.children(relative(p))
		if err != nil {
			return nil, fmt.Errorf("list cgroups below %s: %w", p, err)
		}
		for _, name := range children {
			if !seen[name] {
				seen[name] = true
				names = append(names, name)
			}
		}
	}
	return names, nil
}

// RemoveChild removes what Child or Branch made, unless something runs in it: then gone is false, and Remove of the leaf takes it later.
func (d *Driver) RemoveChild(p string) (gone bool, err error) {
	gone = true
	var errs []error
	for _, h := range d.hierarchies {
		err := h.removeOne(relative(p))
		if errors.Is(err, unix.EBUSY) {
			gone = false
		} else if err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup %s from %s: %w", p, h.mount, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return false, err
	}
	return gone, nil
}
