package cgroup

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Check tells whether p can name a cgroup, or an ancestor of one: absolute and clean, no "..", no control characters, no
// component that is a control file in any hierarchy. It changes nothing. Errors: ErrInvalid.
func (d *Driver) Check(p string) error {
	if err := checkSyntax(p); err != nil {
		return err
	}
	for _, ancestor := range prefixes(p) {
		for _, h := range d.hierarchies {
			var st unix.Stat_t
			err := unix.Fstatat(h.fd(), relative(ancestor), &st, unix.AT_SYMLINK_NOFOLLOW)
			if err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				return fmt.Errorf("cgroup path %q: %s is a file in %s: %w", p, ancestor, h.mount, ErrInvalid)
			}
		}
	}
	return nil
}

func checkSyntax(p string) error {
	bad := func(rule string) error { return fmt.Errorf("cgroup path %q: %s: %w", p, rule, ErrInvalid) }
	switch {
	case !strings.HasPrefix(p, "/"):
		return bad("is not absolute")
	case len(p) >= unix.PathMax:
		return fmt.Errorf("cgroup path of %d bytes: longer than %d: %w", len(p), unix.PathMax-1, ErrInvalid)
	case slices.Contains(strings.Split(p, "/"), ".."):
		return bad(`has a ".." component`)
	case path.Clean(p) != p:
		return bad("is not clean")
	case strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return bad("has a control character")
	}
	for _, part := range strings.Split(p, "/") {
		if len(part) > unix.NAME_MAX {
			return bad("has a component longer than 255 bytes")
		}
		if controlFile(part) {
			return bad(fmt.Sprintf("component %q is the name of a control file", part))
		}
	}
	return nil
}

// controlFile tells the names that the kernel keeps for files, whether or not this kernel has them (cgroup-v2.rst, "Avoid Name
// Collisions").
func controlFile(name string) bool {
	switch name {
	case "tasks", "notify_on_release", "release_agent":
		return true
	}
	prefix, _, dot := strings.Cut(name, ".")
	if !dot {
		return false
	}
	switch prefix {
	case "cgroup", "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "hugetlb", "io", "rdma", "misc",
		"perf_event", "net_cls", "net_prio", "irq", "dmem":
		return true
	}
	return false
}

// prefixes lists p and what is above it, outermost first, without the root.
func prefixes(p string) []string {
	var all []string
	for ; p != "/" && p != "."; p = path.Dir(p) {
		all = append(all, p)
	}
	slices.Reverse(all)
	return all
}

// Missing lists what Create would have to make of p and its ancestors, outermost first. What at least one hierarchy has already is
// somebody else's, and is not listed.
func (d *Driver) Missing(p string) []string {
	return slices.DeleteFunc(prefixes(p), d.Exists)
}

// Exists tells whether any hierarchy has the cgroup p.
func (d *Driver) Exists(p string) bool {
	return slices.ContainsFunc(d.hierarchies, func(h *hierarchy) bool { return h.exists(relative(p)) })
}
