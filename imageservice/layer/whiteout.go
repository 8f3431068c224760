package layer

import (
	"archive/tar"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// image-spec layer.md#whiteouts
const (
	whiteoutPrefix = ".wh."
	aufsPrefix     = ".wh..wh." // AUFS's own: its link store and the like are no content of the layer
	opaqueMarker   = ".wh..wh..opq"
)

// inWhiteout looks for a whiteout's name among the components of name: below AUFS's own lies nothing of the layer,
// below others nothing can lie.
func inWhiteout(name string) (hidden bool, err error) {
	if !strings.Contains(name, whiteoutPrefix) {
		return false, nil
	}
	for comp := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(comp, aufsPrefix) {
			return true, nil
		}
		if strings.HasPrefix(comp, whiteoutPrefix) {
			return false, invalid("%q is a whiteout, nothing can lie in it", comp)
		}
	}
	return false, nil
}

// whiteoutEntry applies an entry whose last component base starts with .wh.; no object of such a name ever comes to be.
func (a *applier) whiteoutEntry(hdr *tar.Header, dirName, base string) error {
	if strings.HasPrefix(base, aufsPrefix) && base != opaqueMarker {
		return a.skip(hdr, nil)
	}
	name := base[len(whiteoutPrefix):]
	if name == "" || name == "." || name == ".." {
		return invalid("whiteout of %q", name)
	}
	parent, err := a.walk(dirName, walkTouch)
	if err != nil {
		return err
	}
	if base == opaqueMarker {
		parent.opaque = true
		return a.skip(hdr, a.dropCopied(parent))
	}
	return a.skip(hdr, a.whiteout(parent, name))
}

// whiteout hides what the lower tree has as name. What the layer itself has there stays: a file hides the lower one
// anyway, a directory becomes opaque.
func (a *applier) whiteout(parent *node, name string) error {
	if d := parent.children[name]; d != nil && !d.shadow {
		d.opaque, d.reset = true, true
		return a.dropCopied(d)
	}
	fd, err := a.tree.dirfd(parent)
	if err != nil {
		return err
	}
	if _, copied := parent.copied[name]; copied || parent.children[name] != nil {
		if err := a.clear(parent, name); err != nil {
			return err
		}
		if fd, err = a.tree.dirfd(parent); err != nil {
			return err
		}
	}
	if !parent.contentVisible() {
		return nil
	}
	switch err := unix.Mknodat(fd, name, unix.S_IFCHR, 0); err {
	case nil:
		if parent.whiteouts == nil {
			parent.whiteouts = make(map[string]struct{})
		}
		parent.whiteouts[strings.Clone(name)] = struct{}{}
		a.hold(nameMemory + len(name))
		return a.count()
	case unix.EEXIST:
		return nil
	default:
		return err
	}
}

// dropCopied takes out of d what was copied up from the lower tree, now that this is hidden there.
func (a *applier) dropCopied(d *node) error {
	if a.lower == nil {
		return nil
	}
	fd, err := a.tree.dirfd(d)
	if err != nil {
		return err
	}
	for name := range d.copied {
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return err
		}
	}
	d.copied = nil
	for name, c := range d.children {
		if !c.shadow {
			if err := a.dropCopied(c); err != nil {
				return err
			}
			continue
		}
		if fd, err = a.tree.dirfd(d); err != nil {
			return err
		}
		if err := os.RemoveAll(procPath(fd, name)); err != nil {
			return err
		}
		a.drop(d, name)
	}
	return nil
}
