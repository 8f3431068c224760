package snapshottest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Tree describes everything below root, and root, one line each, sorted by name: type, mode, owner, time, extended
// attributes, link group, device, target and content. Equal trees have equal lines. overlayfs's own attributes are left out.
func Tree(root string) ([]string, error) {
	d := describer{root: root, first: map[[2]uint64]string{}}
	if err := d.describe("."); err != nil {
		return nil, fmt.Errorf("describe %s: %w", root, err)
	}
	return d.lines, nil
}

type describer struct {
	root  string
	lines []string
	first map[[2]uint64]string // of each inode with several names the first
}

func (d *describer) describe(name string) error {
	file := filepath.Join(d.root, name)
	if name == "." {
		file += "/." // root may be a magic link
	}
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		if errors.Is(err, unix.ENOENT) { // listed, but not there: overlayfs shows whiteouts like that
			d.lines = append(d.lines, fmt.Sprintf("%q ghost", name))
			return nil
		}
		return err
	}
	kind := st.Mode & unix.S_IFMT
	line := fmt.Sprintf("%q type %o mode %o owner %d:%d time %s", name, kind>>12, st.Mode&0o7777, st.Uid, st.Gid,
		time.Unix(st.Mtim.Unix()).UTC().Format(time.RFC3339Nano))
	for _, x := range xattrs(file) {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(file, x, value)
		if err != nil {
			return fmt.Errorf("%s of %s: %w", x, name, err)
		}
		line += fmt.Sprintf(" %s=%q", x, value[:n])
	}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if d.first[id] == "" {
			d.first[id] = name
		} else {
			line += fmt.Sprintf(" is %q", d.first[id])
		}
	}
	more, err := special(file, kind, st.Rdev)
	if err != nil {
		return err
	}
	d.lines = append(d.lines, line+more)
	if kind != unix.S_IFDIR {
		return nil
	}
	return d.members(file, name)
}

func (d *describer) members(dir, name string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, m := range names {
		if err := d.describe(filepath.Join(name, m)); err != nil {
			return err
		}
	}
	return nil
}

func special(file string, kind uint32, rdev uint64) (string, error) {
	switch kind {
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		return fmt.Sprintf(" -> %q", target), err
	case unix.S_IFCHR, unix.S_IFBLK:
		return fmt.Sprintf(" device %d:%d", unix.Major(rdev), unix.Minor(rdev)), nil
	case unix.S_IFREG:
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		sum := sha256.New()
		n, err := io.Copy(sum, f)
		return fmt.Sprintf(" bytes %d content %x", n, sum.Sum(nil)[:8]), errors.Join(err, f.Close())
	}
	return "", nil
}

// xattrs lists the extended attributes of file that are not overlayfs's, sorted.
func xattrs(file string) []string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(file, buf)
	if err != nil {
		return nil
	}
	var names []string
	for name := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if name != "" && !strings.HasPrefix(name, "trusted.overlay.") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
