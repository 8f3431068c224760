package cgroup

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Suffixes of units' names, which are those of their cgroups.
const (
	sliceSuffix = ".slice"
	scopeSuffix = ".scope"
)

// PodPath is the cgroup in which the cgroups of a sandbox's containers are made, below the parent that its request names; "" is the own tree. It is
// the parent itself with the cgroupfs driver, and a scope in the slice with systemd's. Errors: ErrInvalid, which names the driver's rule.
func (d *Driver) PodPath(parent, sandboxID string) (string, error) {
	bad := func(rule string) (string, error) {
		return "", fmt.Errorf("cgroup_parent %q %s: the cgroup driver is %s: %w", parent, rule, d.Name(), ErrInvalid)
	}
	base := path.Base(parent)
	slice := strings.HasSuffix(base, sliceSuffix) || strings.Contains(base, ":")
	scope := strings.HasSuffix(base, scopeSuffix) // it ends with its pod: it must not be another's
	if d.systemd == nil {
		if parent == "" {
			return d.tree + "/" + sandboxID, nil
		}
		if slice || scope {
			return bad("must not be a systemd slice or scope")
		}
		return parent, d.Check(parent)
	}
	name := d.systemd.prefix + sandboxID + scopeSuffix
	if parent == "" {
		return d.tree + "/" + name, nil
	}
	if !slice {
		return bad("must be a systemd slice, such as kubepods-burstable-podX.slice")
	}
	if !validSlice(base) {
		return bad("must be the name of a systemd slice: a-z A-Z 0-9 : _ . \\ and single - between them")
	}
	full := expandSlice(base)
	if parent != base && parent != full {
		return bad(fmt.Sprintf("must be the slice's name or its path %q", full))
	}
	return full + "/" + name, d.Check(full)
}

// validSlice holds a slice's name against systemd's rules (systemd.unit(5), systemd.slice(5)).
func validSlice(name string) bool {
	stem, found := strings.CutSuffix(name, sliceSuffix)
	return found && stem != "" && len(name) <= unix.NAME_MAX && !strings.HasPrefix(stem, "-") && !strings.HasSuffix(stem, "-") && !strings.Contains(stem, "--") &&
		strings.Trim(stem, `abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:_.\-`) == ""
}

// scopeOf is the scope that p is, or is below; "" is none.
func scopeOf(p string) string {
	for _, at := range prefixes(p) {
		if strings.HasSuffix(at, scopeSuffix) {
			return at
		}
	}
	return ""
}
