package layer

import (
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPath  = unix.PathMax - 1 // bytes of a name
	maxLinks = 40               // symbolic links followed for one name, as the kernel does
)

// node is a directory of the folder. Only directories are remembered; what else there is, the file system tells.
// A node leaves the tree for good when its directory is replaced, so that nothing found through it outlives it
// (CVE-2025-47290).
type node struct {
	parent     *node
	name       string
	size       int // bytes of its path
	children   map[string]*node
	whiteouts  map[string]struct{} // names whited out in it
	copied     map[string]struct{} // stacked only: names copied up from the lower tree for a hard link
	attrs      *attrs              // of its last entry; nil: implicit
	opaque     bool                // the lower directory's content is hidden
	reset      bool                // the lower directory itself is hidden
	through    bool                // made without an entry while the lower directory was visible
	shadow     bool                // stacked only: stands for the lower directory, no entry has touched it
	lowerIsDir bool                // stacked only: there is a directory of this name below
	gone       bool
}

// path is relative to the folder's root, which is "".
func (n *node) path() string {
	buf, size := make([]byte, n.size), n.size
	for d := n; d.parent != nil; d = d.parent {
		size -= len(d.name)
		copy(buf[size:], d.name)
		if size > 0 {
			size--
			buf[size] = '/'
		}
	}
	return string(buf)
}

// child is the path of name in n.
func (n *node) child(name string) string {
	if n.parent == nil {
		return name
	}
	return n.path() + "/" + name
}

// contentVisible tells whether what the lower tree has in n shines through.
func (n *node) contentVisible() bool {
	for d := n; d != nil; d = d.parent {
		if d.opaque {
			return false
		}
	}
	return true
}

// add makes the member name. It does not keep the longer string that name is part of.
func (n *node) add(name string) *node {
	c := &node{parent: n, name: strings.Clone(name), size: len(name)}
	if n.parent != nil {
		c.size += n.size + 1
	}
	if n.children == nil {
		n.children = make(map[string]*node)
	}
	n.children[c.name] = c
	return c
}

// remember is add, accounted for: with the path, which may become part of the result.
func (a *applier) remember(n *node, name string) *node {
	c := n.add(name)
	a.hold(nodeMemory + len(name) + c.size)
	return c
}

// drop takes the member name, if it is a directory, out of the tree for good.
func (a *applier) drop(n *node, name string) {
	if c := n.children[name]; c != nil {
		a.markGone(c)
		delete(n.children, name)
	}
}

func (a *applier) markGone(n *node) {
	n.gone = true
	if n.through && a.lower == nil {
		// The entries that went this way are gone from here, but perhaps they should have gone elsewhere.
		a.res.Pending.Implicit = append(a.res.Pending.Implicit, Implicit{Path: Path(n.path())})
	}
	for _, c := range n.children {
		a.markGone(c)
	}
}

// walkMode says what walk may do to a directory that is not there.
type walkMode int

const (
	walkTouch walkMode = iota // make it: an entry lies below
	walkPeek                  // leave the layer as it is: a link's target is looked for
)

// tree is the folder's directories with one of them open.
type tree struct {
	root *node

	openNode *node // the directory that fd is; nil: none
	fd       int
	rootFD   int

	lastName string // the name that walk was last asked for, if no symbolic link was met on the way
	last     *node
}

// dirfd opens n, for starting from. The descriptor is the tree's and good until the next call.
func (t *tree) dirfd(n *node) (int, error) {
	if n.parent == nil {
		return t.rootFD, nil
	}
	if t.openNode == n {
		return t.fd, nil
	}
	at, name := t.rootFD, ""
	if t.openNode != nil && n.parent == t.openNode {
		at, name = t.fd, n.name
	} else {
		name = n.path()
	}
	fd, err := openDirPath(at, name)
	if err != nil {
		return -1, err
	}
	t.close()
	t.openNode, t.fd = n, fd
	return fd, nil
}

func (t *tree) close() {
	if t.openNode != nil {
		unix.Close(t.fd)
		t.openNode = nil
	}
}

// walk finds the directory name, following symbolic links inside the root and making what is missing.
// With walkPeek it returns ENOENT for what is missing both here and below.
func (a *applier) walk(name string, mode walkMode) (*node, error) {
	t := &a.tree
	if mode == walkTouch && t.last != nil && !t.last.gone && t.lastName == name {
		return t.last, nil
	}
	cur, rest, links := t.root, name, 0
	for rest != "" {
		var comp string
		comp, rest, _ = strings.Cut(rest, "/")
		switch comp {
		case "", ".":
			continue
		case "..":
			if cur.parent != nil {
				cur = cur.parent
			}
			continue
		}
		next, target, err := a.step(cur, comp, mode)
		if err != nil {
			return nil, err
		}
		if next != nil {
			cur = next
			continue
		}
		if links++; links > maxLinks {
			return nil, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			cur = t.root
		}
		rest = target + "/" + rest
	}
	if mode == walkTouch {
		t.last, t.lastName = nil, ""
		if links == 0 {
			t.last, t.lastName = cur, name
		}
	}
	return cur, nil
}

// step goes from cur to its member name. It returns the directory, or a symbolic link's target.
func (a *applier) step(cur *node, name string, mode walkMode) (next *node, target string, err error) {
	if next = cur.children[name]; next != nil {
		if mode == walkTouch {
			next.shadow = false
		}
		return next, "", nil
	}
	fd, err := a.tree.dirfd(cur)
	if err != nil {
		return nil, "", err
	}
	if mode == walkTouch && a.lower == nil {
		// Nearly always the directory is simply missing.
		if next, err = a.makeImplicit(cur, fd, name); err != unix.EEXIST {
			return next, "", err
		}
	}
	st, err := lstatAt(fd, name)
	switch {
	case err == nil && isType(&st, unix.S_IFLNK):
		target, err = readlinkAt(fd, name)
		return nil, target, err
	case err == nil && mode == walkPeek:
		return nil, "", unix.ENOENT
	case err == nil:
		next, err = a.replaceByDir(cur, name)
		return next, "", err
	case !isNotExist(err):
		return nil, "", err
	}
	return a.stepBelow(cur, name, mode)
}

// stepBelow is step for a member that the layer has not, where the lower tree may have it.
func (a *applier) stepBelow(cur *node, name string, mode walkMode) (next *node, target string, err error) {
	isDir := false
	if a.lower != nil && cur.contentVisible() {
		path := cur.child(name)
		st, err := statBeneath(a.lower.fd, path)
		switch {
		case err == nil && isType(&st, unix.S_IFLNK):
			target, err = readlinkBeneath(a.lower.fd, path)
			return nil, target, err
		case err == nil:
			isDir = isType(&st, unix.S_IFDIR)
		case !isNotExist(err):
			return nil, "", err
		}
	}
	if mode == walkPeek && !isDir {
		return nil, "", unix.ENOENT
	}
	fd, err := a.tree.dirfd(cur)
	if err != nil {
		return nil, "", err
	}
	if next, err = a.makeImplicit(cur, fd, name); err != nil {
		return nil, "", err
	}
	next.lowerIsDir, next.shadow = isDir, mode == walkPeek
	return next, "", nil
}

// makeImplicit makes the directory name in cur, which fd is, for entries below it.
func (a *applier) makeImplicit(cur *node, fd int, name string) (*node, error) {
	if err := unix.Mkdirat(fd, name, 0o700); err != nil {
		return nil, err
	}
	if err := a.count(); err != nil {
		return nil, err
	}
	next := a.remember(cur, name)
	next.through = cur.contentVisible()
	return next, nil
}

// replaceByDir puts a directory in the place of whatever else name is in cur. What the lower tree has there was hidden
// by that, and stays so.
func (a *applier) replaceByDir(cur *node, name string) (*node, error) {
	if err := a.clear(cur, name); err != nil {
		return nil, err
	}
	fd, err := a.tree.dirfd(cur)
	if err != nil {
		return nil, err
	}
	next, err := a.makeImplicit(cur, fd, name)
	if err != nil {
		return nil, err
	}
	next.opaque, next.reset, next.through = true, true, false
	return next, nil
}
