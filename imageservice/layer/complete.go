package layer

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Completion says what a layer needs to stand on a lower tree.
type Completion int

const (
	// Whole: its folder as it is.
	Whole Completion = iota
	// Fixed: a fix-up folder directly above its own. Complete has written that.
	Fixed
	// FixedRoot: as Fixed, and the fix-up has nothing but the root's attributes. It may be left out where another folder,
	// whose root is right, stands above.
	FixedRoot
	// Rebase: its tar is to be applied again with Options.Lower, into a folder that takes the place of its own.
	Rebase
)

// Completed is the outcome of Complete.
type Completed struct {
	Need      Completion
	DiskUsage int64 // bytes of the fix-up
	Inodes    int64 // of the fix-up
}

// Complete compares what the layer in folder left open with the lower tree, open as below (nil: there are no layers
// below), and writes the fix-up, if one is needed, into the empty directory fixup.
func Complete(ctx context.Context, folder string, pending *Pending, below *os.File, fixup string) (Completed, error) {
	c := completer{fixes: make(map[string]attrs)}
	if pending.Links > 0 {
		if below == nil {
			return Completed{}, invalid("%d hard links to what is missing", pending.Links)
		}
		return Completed{Need: Rebase}, nil
	}
	var err error
	if c.folder, err = unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0); err != nil {
		return Completed{}, fmt.Errorf("open layer folder %s: %w", folder, err)
	}
	defer unix.Close(c.folder)
	if below != nil {
		c.lower = &lower{fd: int(below.Fd())}
	}
	rebase, err := c.compare(ctx, pending)
	if err != nil {
		return Completed{}, fmt.Errorf("compare layer %s with those below: %w", folder, err)
	}
	switch {
	case rebase:
		return Completed{Need: Rebase}, nil
	case len(c.fixes) == 0:
		return Completed{Need: Whole}, nil
	}
	done := Completed{Need: Fixed}
	if _, ok := c.fixes[""]; ok && len(c.fixes) == 1 {
		done.Need = FixedRoot
	}
	if err := c.write(fixup, &done); err != nil {
		return Completed{}, fmt.Errorf("write fix-up %s: %w", fixup, err)
	}
	return done, nil
}

type completer struct {
	folder int
	lower  *lower
	fixes  map[string]attrs // what the fix-up is to have, by path, without the directories on the way
}

// compare gathers the fixes, or finds that fixing is not enough.
func (c *completer) compare(ctx context.Context, pending *Pending) (rebase bool, err error) {
	if c.lower != nil {
		if rebase, err = c.compareImplicit(ctx, pending.Implicit); rebase || err != nil {
			return rebase, err
		}
	}
	for _, path := range pending.Whiteouts {
		dir := string(path)
		// overlayfs hides whiteouts only in directories that it merges from two folders.
		if _, ok := c.fixes[dir]; ok {
			continue
		}
		if c.lower != nil {
			st, err := statBeneath(c.lower.fd, dir)
			if err == nil && isType(&st, unix.S_IFDIR) {
				continue
			}
			if err != nil && !isNotExist(err) {
				return false, err
			}
		}
		if c.fixes[dir], err = c.own(dir); err != nil {
			return false, err
		}
	}
	if _, ok := c.fixes[""]; !ok && c.lower == nil && pending.Opaque {
		// A single folder is shown without overlayfs, which would hide its mark of opaque directories.
		c.fixes[""], err = c.own("")
	}
	return false, err
}

// compareImplicit looks up the layer's implicit directories below. One that is a symbolic link there should have been
// followed when the layer was applied.
func (c *completer) compareImplicit(ctx context.Context, implicit []Implicit) (rebase bool, err error) {
	absent := make(map[string]bool) // implicit directories that are missing below: nothing can be in them
	for _, dir := range implicit {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		path := string(dir.Path)
		if parent, _, ok := cutLast(path); ok && absent[parent] {
			absent[path] = true
			continue
		}
		st, err := statBeneath(c.lower.fd, path)
		switch {
		case isNotExist(err):
			absent[path] = true
			continue
		case err != nil:
			return false, err
		case isType(&st, unix.S_IFLNK):
			return true, nil
		case !isType(&st, unix.S_IFDIR) || !dir.Inherit:
			continue
		}
		at, err := c.lower.dirAttrs(path)
		if err != nil {
			return false, err
		}
		if !at.equal(&defaultDir) {
			c.fixes[path] = *at
		}
	}
	return false, nil
}

func cutLast(name string) (dir, base string, ok bool) {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i], name[i+1:], true
	}
	return "", name, name != ""
}

// own reads the attributes that the layer's folder has for dir.
func (c *completer) own(dir string) (attrs, error) {
	fd, err := openDir(c.folder, dir)
	if err != nil {
		return attrs{}, err
	}
	defer unix.Close(fd)
	at, _, err := attrsAt(fd)
	return at, err
}

// write makes the fix-up: its directories and those on the way to them, which look as in the layer's folder.
func (c *completer) write(fixup string, done *Completed) error {
	root, err := unix.Open(fixup, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	tree := &node{}
	for dir := range c.fixes {
		d := tree
		for comp := range strings.SplitSeq(dir, "/") {
			if comp == "" {
				continue
			}
			if d.children[comp] == nil {
				d.add(comp)
			}
			d = d.children[comp]
		}
	}
	return c.writeDir(root, "", tree, done)
}

func (c *completer) writeDir(fd int, dir string, d *node, done *Completed) error {
	for name, child := range d.children {
		if err := unix.Mkdirat(fd, name, 0o700); err != nil {
			return err
		}
		sub, err := openDir(fd, name)
		if err != nil {
			return err
		}
		err = c.writeDir(sub, path.Join(dir, name), child, done)
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	at, ok := c.fixes[dir]
	if !ok {
		var err error
		if at, err = c.own(dir); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	done.Inodes++
	done.DiskUsage += st.Blocks * 512
	return at.set(fd, &st)
}
