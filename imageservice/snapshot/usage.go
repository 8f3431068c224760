package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// usageTries is how often a walk starts anew because a container moved directories about under it.
const usageTries = 4

// errMoved says that a directory is no longer where the walk left it.
var errMoved = errors.New("directories moved while they were counted")

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
	for range usageTries {
		c := counter{linked: make(map[uint64]struct{})}
		if err = c.walk(ctx, filepath.Join(w.dir, "upper")); !errors.Is(err, errMoved) {
			bytes, inodes = c.bytes, c.inodes
			break
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", key, err)
	}
	return bytes, inodes, nil
}

// counter walks a tree that a container may be changing, as deep as that may make it, with one directory open at a time
// and no recursion.
type counter struct {
	bytes, inodes int64
	linked        map[uint64]struct{} // inodes with several names, seen
	above         []level             // the current directory last
}

type level struct {
	dev, ino uint64
	dirs     []string // members still to be walked
}

func (c *counter) walk(ctx context.Context, root string) error {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), root)
	defer func() { dir.Close() }()
	if err := c.enter(dir); err != nil {
		return err
	}
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		top := &c.above[len(c.above)-1]
		next := ".."
		if n := len(top.dirs); n > 0 {
			next = top.dirs[n-1]
			top.dirs = top.dirs[:n-1]
		} else if len(c.above) == 1 {
			return nil
		} else {
			c.above = c.above[:len(c.above)-1]
		}
		fd, err := unix.Openat(int(dir.Fd()), next, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if next != ".." && (err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP) {
			continue // gone meanwhile
		}
		if err != nil {
			return err
		}
		dir.Close()
		dir = os.NewFile(uintptr(fd), next)
		if next == ".." {
			err = c.back(dir)
		} else {
			err = c.enter(dir)
		}
		if err != nil {
			return err
		}
	}
}

// back checks that dir, reached by "..", is the directory that the walk came from: a container may have moved the one left.
func (c *counter) back(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	if top := c.above[len(c.above)-1]; st.Dev != top.dev || st.Ino != top.ino {
		return errMoved
	}
	return nil
}

// enter counts the directory and its members, and notes those to be walked.
func (c *counter) enter(dir *os.File) error {
	var st unix.Stat_t
	fd := int(dir.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	c.bytes += st.Blocks * 512
	c.inodes++
	here := level{dev: st.Dev, ino: st.Ino}
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err == unix.ENOENT {
				continue
			} else if err != nil {
				return err
			}
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				here.dirs = append(here.dirs, name)
				continue
			}
			c.count(&st)
		}
		if err == io.EOF || err == nil && len(names) == 0 {
			break
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) { // the directory itself was removed
			return err
		}
		if err != nil {
			break
		}
	}
	c.above = append(c.above, here)
	return nil
}

func (c *counter) count(st *unix.Stat_t) {
	if st.Nlink > 1 {
		if _, seen := c.linked[st.Ino]; seen {
			return
		}
		c.linked[st.Ino] = struct{}{}
	}
	c.bytes += st.Blocks * 512
	c.inodes++
}
