package snapshottest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrMalformed says that the layers have no meaning: a link to nothing, a whiteout of nothing, a loop.
var ErrMalformed = errors.New("malformed layers")

// Unpack applies the layers one after another to the empty directory root.
func Unpack(root string, layers ...[]byte) error {
	u := &unpacker{root: root, times: map[string]time.Time{"": time.Unix(0, 0)}}
	if err := u.reset(""); err != nil {
		return err
	}
	for i, l := range layers {
		u.mine, u.named = map[string]bool{}, map[string]bool{}
		if err := u.layer(l); err != nil {
			return fmt.Errorf("unpack layer %d: %w", i, err)
		}
	}
	return u.setTimes()
}

// unpacker keeps what the tree on disk does not say. Paths are relative to the root, which is "", and hold no symbolic link.
type unpacker struct {
	root  string
	times map[string]time.Time // of all directories
	mine  map[string]bool      // what this layer has made, and the directories that it has put something into
	named map[string]bool      // directories with an entry in this layer
}

func (u *unpacker) at(p string) string { return filepath.Join(u.root, p) }

func (u *unpacker) layer(content []byte) error {
	r := tar.NewReader(bytes.NewReader(content))
	for {
		hdr, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.entry(hdr, r); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
}

func (u *unpacker) entry(hdr *tar.Header, content io.Reader) error {
	name := path.Clean("/" + hdr.Name)[1:]
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return ErrMalformed
		}
		u.named[""] = true
		u.times[""] = hdr.ModTime
		return u.attributes("", hdr)
	}
	dirName, base := path.Split(name)
	for comp := range strings.SplitSeq(name, "/") {
		if strings.HasPrefix(comp, ".wh..wh.") && comp != ".wh..wh..opq" {
			return nil // AUFS's own
		}
	}
	if strings.Contains("/"+dirName, "/.wh.") {
		return ErrMalformed
	}
	dir, err := u.directory(dirName, u.make)
	if err != nil {
		return err
	}
	p := path.Join(dir, base)
	switch hidden, isWhiteout := strings.CutPrefix(base, ".wh."); {
	case base == ".wh..wh..opq":
		return u.hideContent(dir)
	case isWhiteout && (hidden == "" || hidden == "." || hidden == ".."):
		return ErrMalformed
	case isWhiteout:
		return u.hide(path.Join(dir, hidden))
	case hdr.Typeflag == tar.TypeLink:
		return u.link(p, hdr.Linkname)
	}
	st, err := os.Lstat(u.at(p))
	if err == nil && !(st.IsDir() && hdr.Typeflag == tar.TypeDir) {
		err = u.remove(p)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := u.object(p, hdr, content); err != nil {
		return err
	}
	u.mine[p] = true
	return u.attributes(p, hdr)
}

// object makes what the entry names, without attributes.
func (u *unpacker) object(p string, hdr *tar.Header, content io.Reader) error {
	switch hdr.Typeflag {
	case tar.TypeDir:
		u.named[p], u.times[p] = true, hdr.ModTime
		if err := os.Mkdir(u.at(p), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case tar.TypeSymlink:
		return os.Symlink(hdr.Linkname, u.at(p))
	case tar.TypeChar:
		return unix.Mknod(u.at(p), unix.S_IFCHR, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
	case tar.TypeBlock:
		return unix.Mknod(u.at(p), unix.S_IFBLK, int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))))
	case tar.TypeFifo:
		return unix.Mkfifo(u.at(p), 0)
	}
	all, err := io.ReadAll(content)
	if err != nil {
		return err
	}
	return os.WriteFile(u.at(p), all, 0o600)
}

// attributes gives p those of the entry, and no others.
func (u *unpacker) attributes(p string, hdr *tar.Header) error {
	file := u.at(p)
	if err := os.Lchown(file, hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		for _, name := range xattrs(file) {
			if err := unix.Lremovexattr(file, name); err != nil {
				return err
			}
		}
	}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, "SCHILY.xattr.")
		if !ok || name != "security.capability" && (!strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.overlay.")) {
			continue
		}
		if err := unix.Lsetxattr(file, name, []byte(value), 0); err != nil {
			return err
		}
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(file, uint32(hdr.Mode)&0o7777); err != nil {
			return err
		}
	}
	return setTime(file, hdr.ModTime)
}

func setTime(file string, at time.Time) error {
	ts := unix.Timespec{Sec: at.Unix(), Nsec: int64(at.Nanosecond())}
	return unix.UtimesNanoAt(unix.AT_FDCWD, file, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// directory finds the directory name, following symbolic links in the root; onWay is asked what to do with what is there
// and no directory, or (found is nil) with what is missing.
func (u *unpacker) directory(name string, onWay func(p string, found os.FileInfo) error) (string, error) {
	cur, rest := "", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		comp := rest[0]
		rest = rest[1:]
		p := path.Join(cur, comp)
		if comp == ".." {
			p = path.Clean("/" + cur + "/..")[1:]
		}
		st, err := os.Lstat(u.at(p))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err == nil && st.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(u.at(p))
			if err != nil {
				return "", err
			}
			if links++; links > 40 {
				return "", ErrMalformed
			}
			if strings.HasPrefix(target, "/") {
				cur = ""
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		}
		if err := onWay(p, st); err != nil {
			return "", err
		}
		cur = p
	}
	return cur, nil
}

// make is for directories that are to be there.
func (u *unpacker) make(p string, found os.FileInfo) error {
	if found != nil && found.IsDir() {
		u.mine[p] = true
		return nil
	}
	if found != nil {
		if err := u.remove(p); err != nil {
			return err
		}
	}
	if err := os.Mkdir(u.at(p), 0o700); err != nil {
		return err
	}
	u.mine[p] = true
	return u.reset(p)
}

// look is for directories that ought to be there.
func (u *unpacker) look(_ string, found os.FileInfo) error {
	if found == nil || !found.IsDir() {
		return ErrMalformed
	}
	return nil
}

// reset gives a directory what one has that no entry names.
func (u *unpacker) reset(p string) error {
	u.times[p] = time.Unix(0, 0)
	return u.attributes(p, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, ModTime: u.times[p]})
}

func (u *unpacker) link(p, target string) error {
	dirName, base := path.Split(path.Clean("/" + target)[1:])
	dir, err := u.directory(dirName, u.look)
	if err != nil {
		return err
	}
	from := path.Join(dir, base)
	st, err := os.Lstat(u.at(from))
	if err != nil || st.IsDir() {
		return ErrMalformed
	}
	if from == p {
		return nil
	}
	if err := u.remove(p); err != nil {
		return err
	}
	u.mine[p] = true
	if err := os.Link(u.at(from), u.at(p)); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// remove takes p away with all that is known of it.
func (u *unpacker) remove(p string) error {
	for _, m := range []map[string]bool{u.mine, u.named} {
		for q := range m {
			if q == p || strings.HasPrefix(q, p+"/") {
				delete(m, q)
			}
		}
	}
	for q := range u.times {
		if q == p || strings.HasPrefix(q, p+"/") {
			delete(u.times, q)
		}
	}
	return os.RemoveAll(u.at(p))
}

// hide takes away what lower layers have put at p.
func (u *unpacker) hide(p string) error {
	if !u.mine[p] {
		return u.remove(p)
	}
	if st, err := os.Lstat(u.at(p)); err != nil || !st.IsDir() {
		return err
	}
	if err := u.hideContent(p); err != nil || u.named[p] {
		return err
	}
	return u.reset(p)
}

func (u *unpacker) hideContent(dir string) error {
	members, err := os.ReadDir(u.at(dir))
	if err != nil {
		return err
	}
	for _, m := range members {
		if err := u.hide(path.Join(dir, m.Name())); err != nil {
			return err
		}
	}
	return nil
}

// setTimes comes last: whatever is put into a directory moves its time.
func (u *unpacker) setTimes() error {
	for p, at := range u.times {
		if err := setTime(u.at(p), at); err != nil {
			return err
		}
	}
	return nil
}
