package layer

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Pending is what a layer applied by itself leaves to the lower tree. Paths are relative, the root is "".
type Pending struct {
	// Links counts the hard links whose targets the layer has not. With any, its folder is not to be stacked: see Complete.
	Links int `json:"links,omitempty"`
	// Implicit are the directories that entries were put into without an entry of their own having been there. Some may be
	// gone again. Of those that are not, parents stand before what lies in them.
	Implicit []Implicit `json:"implicit,omitempty"`
	// Whiteouts are the directories with a whiteout in them.
	Whiteouts []Path `json:"whiteouts,omitempty"`
	// Opaque says that the folder has an opaque directory.
	Opaque bool `json:"opaque,omitempty"`
}

// Implicit is one directory without an entry.
type Implicit struct {
	Path Path `json:"path"`
	// Inherit says that its attributes are the lower directory's, if there is one.
	Inherit bool `json:"inherit,omitempty"`
}

// finish sets the attributes of all directories, the deepest first: whatever is put into a directory moves its time.
func (a *applier) finish() error {
	dirs := a.preorder()
	for _, d := range dirs {
		visible := d.parent == nil || d.parent.contentVisible()
		inherit := visible && !d.reset && d.attrs == nil
		if a.lower == nil && (d.through || inherit) {
			a.res.Pending.Implicit = append(a.res.Pending.Implicit, Implicit{Path: Path(d.path()), Inherit: inherit})
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := a.finishDir(dirs[i]); err != nil {
			return nameError("finish directory", dirs[i].path(), err)
		}
	}
	a.res.OpaqueRoot = a.tree.root.opaque
	return a.checkFree()
}

// preorder lists all directories, parents first.
func (a *applier) preorder() []*node {
	all := []*node{a.tree.root}
	for i := 0; i < len(all); i++ {
		for _, c := range all[i].children {
			all = append(all, c)
		}
	}
	return all
}

func (a *applier) finishDir(d *node) error {
	fd, err := openDir(a.tree.rootFD, d.path())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	visible := d.parent == nil || d.parent.contentVisible()
	if err := a.finishWhiteouts(d, fd); err != nil {
		return err
	}
	if d.opaque && visible && d.parent != nil {
		a.res.Pending.Opaque = true
		if err := unix.Fsetxattr(fd, opaqueName, []byte("y"), 0); err != nil {
			return fmt.Errorf("set %s: %w", opaqueName, err)
		}
	}
	at := d.attrs
	if at == nil && visible && !d.reset && d.lowerIsDir {
		if at, err = a.lower.dirAttrs(d.path()); err != nil {
			return err
		}
	}
	if at == nil {
		at = &defaultDir
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	a.res.DiskUsage += st.Blocks * 512
	return at.set(fd, &st)
}

// finishWhiteouts takes away whiteouts that hide nothing: overlayfs lists a whiteout in a directory that only one folder
// has. Applied by itself the layer keeps those that the lower tree decides about.
func (a *applier) finishWhiteouts(d *node, fd int) error {
	if len(d.whiteouts) == 0 {
		return nil
	}
	visible, kept := d.contentVisible(), 0
	for name := range d.whiteouts {
		hides := visible
		if hides && a.lower != nil {
			_, err := statBeneath(a.lower.fd, d.child(name))
			if err != nil && !isNotExist(err) {
				return err
			}
			hides = err == nil
		}
		if hides {
			kept++
			continue
		}
		if err := unix.Unlinkat(fd, name, 0); err != nil {
			return err
		}
		a.res.Inodes--
	}
	if kept > 0 && a.lower == nil {
		a.res.Pending.Whiteouts = append(a.res.Pending.Whiteouts, Path(d.path()))
	}
	return nil
}

// dirAttrs reads the attributes of the lower tree's directory dir.
func (l *lower) dirAttrs(dir string) (*attrs, error) {
	fd, err := openDir(l.fd, dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	at, _, err := attrsAt(fd)
	return &at, err
}
