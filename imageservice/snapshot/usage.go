package snapshot

import (
	"context"
	"fmt"
	"io"
	"math"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Usage counts what the key's writable layer takes: bytes of blocks and inodes, a file with several names once. A
// container may be writing meanwhile: the count is of about now.
func (s *Store) Usage(ctx context.Context, key string) (bytes, inodes int64, err error) {
	s.mu.Lock()
	w := s.keys[key]
	there := w != nil && !w.making
	s.mu.Unlock()
	if !there {
		return 0, 0, fmt.Errorf("usage of %q: %w", key, ErrNotFound)
	}
	c := counter{root: filepath.Join(w.dir, "upper")}
	if err := c.walk(ctx); err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", key, err)
	}
	return int64(math.Round(c.bytes)), int64(math.Round(c.inodes)), nil
}

const (
	// maxSearches is how often a walk looks for the way down to where it was. Then it goes on at the root.
	maxSearches = 10
	// dirsHeld is how many members of a directory a walk remembers, about.
	dirsHeld = 1024
)

// counter walks a tree that a container may be changing, as deep and as wide as that may make it, with one directory open at a time
// and no recursion. A container can neither stop it nor make it remember much.
type counter struct {
	root          string
	bytes, inodes float64 // of a file with n names each name has 1/n: all of them are in the tree
	above         []level // the current directory last
	searches      int
	buf           [32 << 10]byte
}

type level struct {
	name     string // in the level above
	dev, ino uint64
	dirs     []string // members still to be walked
	next     int64    // where to go on reading, when these are done; -1: there are no more
}

const openDirFlags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

func (c *counter) walk(ctx context.Context) error {
	dir, err := unix.Open(c.root, openDirFlags, 0)
	if err != nil {
		return err
	}
	defer func() { unix.Close(dir) }()
	if err := c.enter(dir, ""); err != nil {
		return err
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		top := &c.above[len(c.above)-1]
		if len(top.dirs) == 0 && top.next >= 0 {
			if err := c.read(dir, top); err != nil {
				return err
			}
			continue
		}
		n := len(top.dirs)
		if n == 0 && len(c.above) == 1 {
			return nil
		}
		if n == 0 {
			c.above = c.above[:len(c.above)-1]
			if dir, err = c.up(dir); err != nil {
				return err
			}
			continue
		}
		name := top.dirs[n-1]
		top.dirs = top.dirs[:n-1]
		sub, err := unix.Openat(dir, name, openDirFlags, 0)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		unix.Close(dir)
		dir = sub
		if err := c.enter(dir, name); err != nil {
			return err
		}
	}
}

// enter counts the directory and begins to read it.
func (c *counter) enter(dir int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	c.bytes += float64(st.Blocks * 512)
	c.inodes++
	c.above = append(c.above, level{name: name, dev: st.Dev, ino: st.Ino})
	return nil
}

// read counts members of the directory and notes those to be walked, until it has noted many.
func (c *counter) read(dir int, l *level) error {
	if _, err := unix.Seek(dir, l.next, io.SeekStart); err != nil {
		return err
	}
	var names []string
	for len(l.dirs) < dirsHeld {
		n, err := unix.ReadDirent(dir, c.buf[:])
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOENT || err == nil && n <= 0 { // the directory itself was removed, or this is its end
			l.next = -1
			return nil
		}
		if err != nil {
			return err
		}
		_, _, names = unix.ParseDirent(c.buf[:n], -1, names[:0])
		for _, name := range names {
			if err := c.member(dir, name, l); err != nil {
				return err
			}
		}
	}
	var err error
	l.next, err = unix.Seek(dir, 0, io.SeekCurrent)
	return err
}

func (c *counter) member(dir int, name string, l *level) error {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT || err == nil && st.Nlink == 0:
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		l.dirs = append(l.dirs, name)
		return nil
	}
	c.bytes += float64(st.Blocks*512) / float64(st.Nlink)
	c.inodes += 1 / float64(st.Nlink)
	return nil
}

// up goes back to the directory that the walk came from, and closes dir. If a container has moved one of the two, the way to it is looked for
// from the root, as far down as everything is where it was; what is not has left the tree or is met at its new place.
func (c *counter) up(dir int) (int, error) {
	parent, err := unix.Openat(dir, "..", openDirFlags, 0)
	if err != nil {
		return dir, err
	}
	unix.Close(dir)
	if c.is(parent, len(c.above)-1) {
		return parent, nil
	}
	unix.Close(parent)
	if dir, err = unix.Open(c.root, openDirFlags, 0); err != nil {
		return -1, err
	}
	if c.searches++; c.searches > maxSearches {
		c.above = c.above[:1]
	}
	for i := 1; i < len(c.above); i++ {
		sub, err := unix.Openat(dir, c.above[i].name, openDirFlags, 0)
		if err == nil && !c.is(sub, i) {
			unix.Close(sub)
			err = unix.ENOENT
		}
		if err != nil {
			c.above = c.above[:i]
			break
		}
		unix.Close(dir)
		dir = sub
	}
	return dir, nil
}

// is tells whether dir is that of a level.
func (c *counter) is(dir, i int) bool {
	var st unix.Stat_t
	return unix.Fstat(dir, &st) == nil && st.Dev == c.above[i].dev && st.Ino == c.above[i].ino
}
