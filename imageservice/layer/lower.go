package layer

import (
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// lower is the lower tree that a layer is applied upon: whole, and changed by nobody.
type lower struct {
	fd     int
	groups map[uint64][]string // names of the files that have more than one, by inode; nil: not yet gathered
}

// copyUp brings the lower tree's file name in from, with all its names that are still visible, into the folder, so that
// it can be linked. It returns ENOENT if there is none, and ErrInvalid for a directory.
func (a *applier) copyUp(from *node, name string) error {
	if !from.contentVisible() {
		return unix.ENOENT
	}
	file := from.child(name)
	st, err := statBeneath(a.lower.fd, file)
	if err != nil {
		return err
	}
	if isType(&st, unix.S_IFDIR) {
		return invalid("hard link to the directory %q", file)
	}
	dirfd, err := a.tree.dirfd(from)
	if err != nil {
		return err
	}
	if err := a.copyObject(file, dirfd, name); err != nil {
		return fmt.Errorf("copy %q of the layers below: %w", file, err)
	}
	a.markCopied(from, name)
	if err := a.count(); err != nil {
		return err
	}
	if st.Nlink < 2 {
		return nil
	}
	names, err := a.lower.names(st.Ino, a.opts.Limits.Memory)
	if err != nil {
		return err
	}
	for _, other := range names {
		if other == file {
			continue
		}
		if err := a.linkCopied(from, name, other); err != nil {
			return fmt.Errorf("link %q of the layers below: %w", other, err)
		}
	}
	return nil
}

func (a *applier) markCopied(n *node, name string) {
	if n.copied == nil {
		n.copied = make(map[string]struct{})
	}
	n.copied[strings.Clone(name)] = struct{}{}
	a.hold(nameMemory + len(name))
}

// linkCopied gives the file just copied up as name in from its other lower name, unless the layer hides that.
func (a *applier) linkCopied(from *node, name, other string) error {
	dirName, base := path.Split(other)
	dir, err := a.shadowDir(dirName)
	if err != nil || dir == nil {
		return err
	}
	fromFD, err := openDirPath(a.tree.rootFD, from.path())
	if err != nil {
		return err
	}
	defer unix.Close(fromFD)
	dirfd, err := a.tree.dirfd(dir)
	if err != nil {
		return err
	}
	err = unix.Linkat(fromFD, name, dirfd, base, 0)
	if err == unix.EEXIST { // replaced or whited out
		return nil
	}
	if err == nil {
		a.markCopied(dir, base)
	}
	return err
}

// shadowDir gives the node of a directory of the lower tree, nil if the layer hides it.
func (a *applier) shadowDir(name string) (*node, error) {
	cur := a.tree.root
	for comp := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		if cur.opaque {
			return nil, nil
		}
		if comp == "" {
			continue
		}
		next := cur.children[comp]
		if next == nil {
			fd, err := a.tree.dirfd(cur)
			if err != nil {
				return nil, err
			}
			if next, err = a.makeImplicit(cur, fd, comp); err == unix.EEXIST {
				return nil, nil
			} else if err != nil {
				return nil, err
			}
			next.shadow, next.lowerIsDir = true, true
		}
		cur = next
	}
	if cur.opaque {
		return nil, nil
	}
	return cur, nil
}

// names lists all names of the file with that inode number. To find them takes at most about max bytes of memory.
func (l *lower) names(ino uint64, max int64) ([]string, error) {
	if l.groups == nil {
		g := gatherer{root: l.fd, groups: make(map[uint64][]string), left: max}
		if err := g.gather(""); err != nil {
			return nil, fmt.Errorf("gather link groups: %w", err)
		}
		l.groups = g.groups
	}
	return l.groups[ino], nil
}

// gatherer finds the files that have more than one name.
type gatherer struct {
	root   int
	groups map[uint64][]string
	left   int64 // bytes of memory
}

func (g *gatherer) gather(dir string) error {
	dirs, err := g.read(dir)
	if err != nil {
		return err
	}
	for _, name := range dirs {
		if err := g.gather(path.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// read takes in one directory, and gives the names of those in it.
func (g *gatherer) read(dir string) (dirs []string, err error) {
	fd, err := openDir(g.root, dir)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	for {
		entries, err := f.ReadDir(1024)
		if err == io.EOF {
			return dirs, nil
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				dirs = append(dirs, e.Name())
				g.left -= int64(nameMemory + len(e.Name()))
				continue
			}
			st, err := lstatAt(fd, e.Name())
			if err != nil {
				return nil, err
			}
			if st.Nlink > 1 {
				name := path.Join(dir, e.Name())
				groups := append(g.groups[st.Ino], name)
				g.groups[st.Ino] = groups
				g.left -= int64(nameMemory + len(name))
			}
		}
		if g.left < 0 {
			return nil, fmt.Errorf("%w: the names of hard links in the layers below take too much memory", ErrLimit)
		}
	}
}

// copyObject copies the lower tree's object file, no directory, to name in dirfd, with its attributes.
func (a *applier) copyObject(file string, dirfd int, name string) error {
	src, err := beneath(a.lower.fd, file, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	at, st, err := specialAttrsAt(src)
	if err != nil {
		return err
	}
	switch kind := st.Mode & unix.S_IFMT; kind {
	case unix.S_IFREG:
		return a.copyFile(file, dirfd, name, &at)
	case unix.S_IFLNK:
		target, err := readlinkAt(src, "")
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, dirfd, name); err != nil {
			return err
		}
		return setSpecialAt(dirfd, name, kind, &at)
	default:
		if err := unix.Mknodat(dirfd, name, kind|at.mode&0o777, int(st.Rdev)); err != nil {
			return err
		}
		return setSpecialAt(dirfd, name, kind, &at)
	}
}

func (a *applier) copyFile(file string, dirfd int, name string, at *attrs) error {
	srcFD, err := beneath(a.lower.fd, file, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(srcFD), file)
	defer src.Close()
	fd, err := unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf, size := make([]byte, blockSize), int64(0)
	for {
		n, err := io.ReadFull(src, buf)
		if err := writeHoles(fd, buf[:n], size); err != nil {
			return err
		}
		size += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	a.res.DiskUsage += st.Blocks * 512
	return at.set(fd, &st)
}
