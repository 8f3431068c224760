package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	paxXattr   = "SCHILY.xattr."
	opaqueName = "trusted.overlay.opaque"

	maxXattrs    = 128      // of one entry
	maxXattrSize = 64 << 10 // bytes, the kernel's XATTR_SIZE_MAX
)

type xattr struct{ name, value string }

// attrs is what a tree says of an object beside its type and content. Access time is not part of it: it follows mtime.
type attrs struct {
	mode     uint32 // permission bits with setuid, setgid and sticky
	uid, gid uint32
	mtime    unix.Timespec
	xattrs   []xattr // sorted by name
}

// defaultDir is what a directory gets that no entry of any layer names.
var defaultDir = attrs{mode: 0o755}

func (a *attrs) equal(b *attrs) bool {
	return a.mode == b.mode && a.uid == b.uid && a.gid == b.gid && a.mtime == b.mtime && slices.Equal(a.xattrs, b.xattrs)
}

// memory is what a has beside its fixed part, in bytes.
func (a *attrs) memory() (n int) {
	for _, x := range a.xattrs {
		n += nameMemory + len(x.name) + len(x.value)
	}
	return n
}

// keepXattr tells the extended attributes that a layer may carry into a folder. The rest is the host's business (security
// labels, trusted.*) or overlayfs's.
func keepXattr(name string) bool {
	switch {
	case name == "security.capability", name == "system.posix_acl_access", name == "system.posix_acl_default":
		return true
	case strings.HasPrefix(name, "user."):
		return !strings.HasPrefix(name, "user.overlay.")
	}
	return false
}

// attrsOf takes the attributes from an entry's header; dropped counts the extended attributes left out.
func attrsOf(hdr *tar.Header) (at attrs, dropped int, err error) {
	// 2^32-1 is "no change" to chown: never an owner.
	if hdr.Uid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid < 0 || hdr.Gid >= math.MaxUint32 {
		return at, 0, invalid("owner %d:%d is out of range", hdr.Uid, hdr.Gid)
	}
	at.mode, at.uid, at.gid = uint32(hdr.Mode)&0o7777, uint32(hdr.Uid), uint32(hdr.Gid)
	at.mtime = unix.Timespec{Sec: hdr.ModTime.Unix(), Nsec: int64(hdr.ModTime.Nanosecond())}
	for key, value := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok {
			continue
		}
		if !keepXattr(name) {
			dropped++
			continue
		}
		if len(at.xattrs) == maxXattrs || len(value) > maxXattrSize || len(name) > unix.NAME_MAX {
			return at, 0, fmt.Errorf("%w: more than %d extended attributes, or one above %d bytes", ErrLimit, maxXattrs, maxXattrSize)
		}
		at.xattrs = append(at.xattrs, xattr{name, value})
	}
	sortXattrs(at.xattrs)
	return at, dropped, nil
}

func sortXattrs(list []xattr) {
	slices.SortFunc(list, func(a, b xattr) int { return strings.Compare(a.name, b.name) })
}

// set brings the file or directory open as fd to at; st is what it has. Order matters: chown takes setuid bits and
// capabilities away, and any other change moves the time.
func (at *attrs) set(fd int, st *unix.Stat_t) error {
	mode := st.Mode & 0o7777
	if at.uid != st.Uid || at.gid != st.Gid {
		if err := unix.Fchown(fd, int(at.uid), int(at.gid)); err != nil {
			return fmt.Errorf("change owner: %w", err)
		}
		mode &^= unix.S_ISUID | unix.S_ISGID
	}
	if mode != at.mode {
		if err := unix.Fchmod(fd, at.mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	for _, x := range at.xattrs {
		if err := setError(x.name, unix.Fsetxattr(fd, x.name, []byte(x.value), 0)); err != nil {
			return err
		}
	}
	return at.setTime(fd, "", unix.AT_EMPTY_PATH)
}

// setSpecial is set for an object open with O_PATH: a device, a FIFO, or (then without mode) a symbolic link.
func (at *attrs) setSpecial(fd int, st *unix.Stat_t) error {
	if at.uid != st.Uid || at.gid != st.Gid {
		if err := unix.Fchownat(fd, "", int(at.uid), int(at.gid), unix.AT_EMPTY_PATH); err != nil {
			return fmt.Errorf("change owner: %w", err)
		}
	}
	link := isType(st, unix.S_IFLNK)
	if !link && st.Mode&0o7777 != at.mode {
		if err := unix.Chmod(procPath(fd, ""), at.mode); err != nil {
			return fmt.Errorf("change mode: %w", err)
		}
	}
	for _, x := range at.xattrs {
		// A magic link leads to the object itself, also when that is a symbolic link.
		err := unix.Setxattr(procPath(fd, ""), x.name, []byte(x.value), 0)
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(x.name, "user.") {
			err = nil // user.* is for files and directories only
		}
		if err := setError(x.name, err); err != nil {
			return err
		}
	}
	return at.setTime(fd, "", unix.AT_EMPTY_PATH)
}

func (at *attrs) setTime(dirfd int, name string, flags int) error {
	if err := unix.UtimesNanoAt(dirfd, name, []unix.Timespec{at.mtime, at.mtime}, flags); err != nil {
		return fmt.Errorf("set time: %w", err)
	}
	return nil
}

// ignoreUnsupported lets a file system without a kind of extended attributes do without, as other runtimes do.
func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// setError says what it means that an extended attribute could not be set: a value that the kernel finds malformed is the layer's fault.
func setError(name string, err error) error {
	if err = ignoreUnsupported(err); err == nil {
		return nil
	}
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return fmt.Errorf("set extended attribute %q: %w", name, err)
}

// attrsAt reads the attributes of the file or directory open as fd.
func attrsAt(fd int) (attrs, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return attrs{}, st, err
	}
	at := attrsFromStat(&st)
	var err error
	at.xattrs, err = readXattrs(
		func(dest []byte) (int, error) { return unix.Flistxattr(fd, dest) },
		func(name string, dest []byte) (int, error) { return unix.Fgetxattr(fd, name, dest) })
	return at, st, err
}

// specialAttrsAt is attrsAt for an object open with O_PATH.
func specialAttrsAt(fd int) (attrs, unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return attrs{}, st, err
	}
	at, path := attrsFromStat(&st), procPath(fd, "")
	var err error
	at.xattrs, err = readXattrs(
		func(dest []byte) (int, error) { return unix.Listxattr(path, dest) },
		func(name string, dest []byte) (int, error) { return unix.Getxattr(path, name, dest) })
	return at, st, err
}

func attrsFromStat(st *unix.Stat_t) attrs {
	return attrs{mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, mtime: unix.Timespec{Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
}

func readXattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]xattr, error) {
	n, err := list(nil)
	if err != nil || n == 0 { // nearly always
		return nil, ignoreUnsupported(err)
	}
	buf := make([]byte, maxXattrSize)
	if n, err = list(buf); err != nil {
		return nil, err
	}
	var all []xattr
	for name := range bytes.SplitSeq(bytes.TrimSuffix(slices.Clone(buf[:n]), []byte{0}), []byte{0}) {
		if !keepXattr(string(name)) {
			continue
		}
		n, err := get(string(name), buf)
		if err != nil {
			return nil, err
		}
		all = append(all, xattr{string(name), string(buf[:n])})
	}
	sortXattrs(all)
	return all, nil
}

// CopyDirAttributes gives the directory dst what src has: owner, mode, extended attributes (those that a layer may
// carry) and time.
func CopyDirAttributes(dst, src string) error {
	from, err := unix.Open(src, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", src, err)
	}
	defer unix.Close(from)
	to, err := unix.Open(dst, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", dst, err)
	}
	defer unix.Close(to)
	at, _, err := attrsAt(from)
	if err != nil {
		return fmt.Errorf("read attributes of %s: %w", src, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(to, &st); err != nil {
		return fmt.Errorf("read attributes of %s: %w", dst, err)
	}
	return at.set(to, &st)
}
