package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

func cleanPath(name string) string { return path.Clean("/" + name)[1:] }

// file makes a regular file. Its content goes from the stream's blocks to the page cache, past the tar reader.
func (a *applier) file(parent *node, name string, hdr *tar.Header, at *attrs) (err error) {
	fd, err := a.create(parent, name, at.mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	sum := []byte(nil)
	size := hdr.Size
	switch {
	case isSparse(hdr):
		sum, err = a.sparse(fd, size)
		size = 0 // for the split: the tar's bytes of it are recorded
	case size > 0:
		sum, err = a.content(fd, size)
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	a.res.DiskUsage += st.Blocks * 512
	if err := at.set(fd, &st); err != nil {
		return err
	}
	return a.split.file(parent.child(name), size, sum)
}

// create makes an empty file in the place of anything that has its name.
func (a *applier) create(parent *node, name string, mode uint32) (fd int, err error) {
	err = a.replace(parent, name, func(dirfd int) error {
		fd, err = unix.Openat(dirfd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode&0o777)
		return err
	})
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// replace runs put, which makes name in parent and nothing but that, after clearing the place if it is taken.
func (a *applier) replace(parent *node, name string, put func(dirfd int) error) error {
	fd, err := a.tree.dirfd(parent)
	if err != nil {
		return err
	}
	err = put(fd)
	if err == unix.EEXIST {
		if err = a.clear(parent, name); err != nil {
			return err
		}
		if fd, err = a.tree.dirfd(parent); err != nil {
			return err
		}
		err = put(fd)
	}
	if err != nil {
		return err
	}
	return a.count()
}

// content copies the entry's content and sums it up.
func (a *applier) content(fd int, size int64) ([]byte, error) {
	var sum uint64
	for size > 0 {
		p, err := a.in.take(size)
		if err != nil {
			return nil, a.tarError(err)
		}
		sum = crc64.Update(sum, storage.CRCTable, p)
		if err := writeAll(fd, p); err != nil {
			return nil, fmt.Errorf("write content: %w", err)
		}
		size -= int64(len(p))
		if a.in.total >= a.nextBytes {
			a.nextBytes = a.in.total + checkBytes
			if err := a.checkFree(); err != nil {
				return nil, err
			}
		}
	}
	return appendSum(sum), nil
}

func appendSum(sum uint64) []byte {
	return []byte{byte(sum >> 56), byte(sum >> 48), byte(sum >> 40), byte(sum >> 32), byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}
}

// isSparse tells whether the tar reader may give other bytes than the tar has: GNU's formats, old and in PAX records.
func isSparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// sparse writes the entry's content as the tar reader gives it, and leaves holes where that is all zeros.
// Lengths count as bytes read: zeros cost time, too.
func (a *applier) sparse(fd int, size int64) ([]byte, error) {
	a.sparseBytes += size
	if size < 0 || a.sparseBytes > a.opts.Limits.Bytes || a.sparseBytes < 0 {
		return nil, fmt.Errorf("%w: sparse files are longer than %d bytes", ErrLimit, a.opts.Limits.Bytes)
	}
	var sum uint64
	buf, offset := make([]byte, blockSize), int64(0)
	for {
		n, err := io.ReadFull(a.tar, buf)
		sum = crc64.Update(sum, storage.CRCTable, buf[:n])
		if err := writeHoles(fd, buf[:n], offset); err != nil {
			return nil, fmt.Errorf("write content: %w", err)
		}
		offset += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && offset == size {
			break
		}
		if err != nil {
			return nil, a.tarError(err)
		}
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, fmt.Errorf("set length: %w", err)
	}
	return appendSum(sum), nil
}

const holeSize = 4096

var zeros [holeSize]byte

// writeHoles writes p at offset, but for its pages of zeros.
func writeHoles(fd int, p []byte, offset int64) error {
	for len(p) > 0 {
		page := p[:min(len(p), holeSize)]
		if !bytes.Equal(page, zeros[:len(page)]) {
			for done := 0; done < len(page); {
				n, err := unix.Pwrite(fd, page[done:], offset+int64(done))
				if err != nil && err != unix.EINTR {
					return err
				}
				done += max(n, 0)
			}
		}
		p, offset = p[len(page):], offset+int64(len(page))
	}
	return nil
}

// dir makes a directory or takes the attributes for one that the layer has. They are set at the end: until then it may
// have any content put into it, and its setgid bit and default ACL must not be inherited by that.
func (a *applier) dir(parent *node, name string, at *attrs) error {
	a.hold(at.memory())
	if d := parent.children[name]; d != nil {
		d.attrs, d.shadow = at, false
		return nil
	}
	replaced := false
	err := a.replace(parent, name, func(dirfd int) error {
		err := unix.Mkdirat(dirfd, name, 0o700)
		replaced = replaced || err == unix.EEXIST
		return err
	})
	if err != nil {
		return err
	}
	d := a.remember(parent, name)
	d.attrs, d.opaque, d.reset = at, replaced, replaced
	return nil
}

func (a *applier) symlink(parent *node, name, target string, at *attrs) error {
	return a.replace(parent, name, func(dirfd int) error {
		if err := unix.Symlinkat(target, dirfd, name); err != nil {
			return err
		}
		if at.uid != 0 || at.gid != 0 {
			if err := unix.Fchownat(dirfd, name, int(at.uid), int(at.gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fmt.Errorf("change owner: %w", err)
			}
		}
		if len(at.xattrs) > 0 {
			return setSpecialAt(dirfd, name, unix.S_IFLNK, at)
		}
		return at.setTime(dirfd, name, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// special makes a device or a FIFO. Devices are of no use but to a container that is given them: layer folders lie under
// a directory that only root enters, and containers are held by the device cgroup.
func (a *applier) special(parent *node, name string, hdr *tar.Header, at *attrs) error {
	kind, dev := uint32(unix.S_IFIFO), uint64(0)
	if hdr.Typeflag != tar.TypeFifo {
		kind = unix.S_IFCHR
		if hdr.Typeflag == tar.TypeBlock {
			kind = unix.S_IFBLK
		}
		// What the kernel's 32-bit device numbers hold.
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return invalid("device %d:%d is out of range", hdr.Devmajor, hdr.Devminor)
		}
		dev = unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor))
		if kind == unix.S_IFCHR && dev == 0 {
			return invalid("device 0:0 is overlayfs's whiteout")
		}
	}
	if dev > math.MaxInt32 {
		dev = uint64(uint32(dev))
	}
	return a.replace(parent, name, func(dirfd int) error {
		if err := unix.Mknodat(dirfd, name, kind|at.mode&0o777, int(dev)); err != nil {
			return err
		}
		return setSpecialAt(dirfd, name, kind, at)
	})
}

// setSpecialAt sets the attributes of the object of that kind just made as name.
func setSpecialAt(dirfd int, name string, kind uint32, at *attrs) error {
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if !isType(&st, kind) {
		return fmt.Errorf("object of type %#o was exchanged for %#o", kind, st.Mode&unix.S_IFMT)
	}
	return at.setSpecial(fd, &st)
}

// clear takes away what has the name in parent. Content is kept, if it can be, for rebuilding the tar.
func (a *applier) clear(parent *node, name string) error {
	fd, err := a.tree.dirfd(parent)
	if err != nil {
		return err
	}
	st, err := lstatAt(fd, name)
	if err != nil {
		return err
	}
	a.drop(parent, name)
	delete(parent.whiteouts, name)
	delete(parent.copied, name)
	isDir := isType(&st, unix.S_IFDIR)
	if !isDir && st.Nlink == 1 {
		a.res.Inodes--
	}
	if !isDir && (!isType(&st, unix.S_IFREG) || st.Size == 0) || !isDir && a.opts.Kept == nil {
		return unix.Unlinkat(fd, name, 0)
	}
	if a.opts.Kept == nil {
		return os.RemoveAll(procPath(fd, name))
	}
	from := parent.child(name)
	a.movedBytes += len(from)
	if len(a.res.Moves) >= a.opts.Limits.Replaced || a.movedBytes/64 > a.opts.Limits.Replaced {
		return fmt.Errorf("%w: it replaces more than %d of its own entries", ErrLimit, a.opts.Limits.Replaced)
	}
	to := strconv.Itoa(len(a.res.Moves))
	if err := unix.Renameat(fd, name, int(a.opts.Kept.Fd()), to); err != nil {
		return fmt.Errorf("keep replaced content: %w", err)
	}
	a.res.Moves = append(a.res.Moves, Move{Position: a.split.position, From: Path(from), To: to})
	return nil
}
