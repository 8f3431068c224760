package layer

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Limits bound what one layer may cost. A zero field stands for its default.
type Limits struct {
	Bytes      int64 // of the tar, and of a sparse file's length; default 64 GiB
	Entries    int64 // with directories that no entry names; default 4,000,000
	Replaced   int   // things that the layer itself replaces, and 1/64 of the bytes of their names; default 65,536
	Memory     int64 // bytes of memory for directories and names; default 256 MiB
	FreeBytes  int64 // to be left free on the file system for those who are not root; default 64 MiB
	FreeInodes int64 // to be left free on the file system; default 1,024
}

func (l Limits) withDefaults() Limits {
	set := func(field *int64, value int64) {
		if *field == 0 {
			*field = value
		}
	}
	set(&l.Bytes, 64<<30)
	set(&l.Entries, 4_000_000)
	set(&l.Memory, 256<<20)
	set(&l.FreeBytes, 64<<20)
	set(&l.FreeInodes, 1024)
	if l.Replaced == 0 {
		l.Replaced = 65_536
	}
	return l
}

// Options are what Apply can do without.
type Options struct {
	Limits Limits

	// Kept is a directory on the folder's file system for content that a later entry of the same layer replaces, so that
	// the tar can be rebuilt. With nil it is deleted.
	Kept *os.File

	// Lower is the root of the lower tree. With nil the layer is applied by itself, and Pending says what that left open;
	// with it the result is complete for stacking on that very tree.
	Lower *os.File
}

// Result says what Apply did.
type Result struct {
	DiffID        digest.Digest // SHA-256 of all bytes read
	Size          int64         // bytes read
	Entries       int64         // entries of the tar
	DiskUsage     int64         // bytes of blocks that the folder takes
	Inodes        int64         // that the folder takes
	DroppedXattrs int           // extended attributes not kept
	OpaqueRoot    bool          // the layer hides all layers below
	Pending       Pending
	Moves         []Move
}

// Move says that the layer replaced the object at From before the split's record Position: its content, if any earlier
// record names it, lies in the Kept directory as To.
type Move struct {
	Position int    `json:"position"`
	From     Path   `json:"from"`
	To       string `json:"to"`
}

type applier struct {
	opts  Options
	tree  tree
	in    *stream
	tar   *tar.Reader
	split *splitWriter
	lower *lower // nil: applied by itself
	res   Result

	links     int   // hard links whose target the layer has not
	nextCheck int64 // inode count at which to look at the free space again
	nextBytes int64 // stream position at which to look at the free space again

	sparseBytes int64 // lengths of all sparse files
	movedBytes  int   // of the names of all that was replaced
	held        int64 // bytes of memory, about; what is dropped counts on
}

// Apply reads an uncompressed tar stream into the empty directory dir, whose parent nobody but root may enter, as an
// overlayfs lower layer, and writes the tar-split records to split (nil: none). It reads r to its end, ahead of what it
// unpacks, and returns after r's last Read has: r must honour ctx. It does not sync. The digest is of the bytes read,
// with all padding; to compare it is the caller's part.
func Apply(ctx context.Context, r io.Reader, dir string, split io.Writer, opts Options) (Result, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Result{}, fmt.Errorf("open layer folder %s: %w", dir, err)
	}
	defer unix.Close(root)
	opts.Limits = opts.Limits.withDefaults()
	if split == nil {
		split = io.Discard
	}

	a := &applier{opts: opts, split: newSplitWriter(split), res: Result{Inodes: 1}}
	a.tree = tree{rootFD: root, root: &node{lowerIsDir: opts.Lower != nil}}
	defer a.tree.close()
	if opts.Lower != nil {
		a.lower = &lower{fd: int(opts.Lower.Fd())}
	}
	a.in = newStream(ctx, r, opts.Limits.Bytes)
	a.in.emit = a.split.segment
	a.tar = tar.NewReader(a.in)
	err = a.run(ctx)
	a.in.stop()
	if err != nil {
		return Result{}, err
	}
	a.res.DiffID, a.res.Size = digest.NewDigest(digest.SHA256, a.in.sum), a.in.total
	a.res.Pending.Links = a.links
	return a.res, nil
}

func (a *applier) run(ctx context.Context) error {
	for {
		hdr, err := a.tar.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return a.tarError(err)
		}
		if err := a.in.flush(); err != nil {
			return fmt.Errorf("write split: %w", err)
		}
		err = a.entry(hdr)
		if err == nil && a.held > a.opts.Limits.Memory {
			err = fmt.Errorf("%w: directories and names take more than %d bytes of memory", ErrLimit, a.opts.Limits.Memory)
		}
		if err != nil {
			return nameError("apply entry", hdr.Name, err)
		}
		a.res.Entries++
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := a.in.drain(); err != nil {
		return fmt.Errorf("read after the tar's end: %w", err)
	}
	if err := a.split.flush(); err != nil {
		return fmt.Errorf("write split: %w", err)
	}
	return a.finish()
}

// entry applies one entry and records it.
func (a *applier) entry(hdr *tar.Header) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // pax(1): defaults for following entries; no runtime honours them, nor do we
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return a.rootEntry(hdr)
	}
	dirName, base := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dirName, base = name[:i], name[i+1:]
	}
	if hidden, err := inWhiteout(dirName); err != nil || hidden {
		return a.skip(hdr, err)
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteoutEntry(hdr, dirName, base)
	}
	if !supported(hdr.Typeflag) {
		return invalid("entry type %q is unknown", hdr.Typeflag)
	}
	parent, err := a.walk(dirName, walkTouch)
	if err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeLink {
		return a.skip(hdr, a.link(parent, base, hdr.Linkname))
	}
	at, dropped, err := attrsOf(hdr)
	if err != nil {
		return err
	}
	a.res.DroppedXattrs += dropped
	switch hdr.Typeflag {
	case tar.TypeDir:
		return a.skip(hdr, a.dir(parent, base, &at))
	case tar.TypeSymlink:
		return a.skip(hdr, a.symlink(parent, base, hdr.Linkname, &at))
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return a.skip(hdr, a.special(parent, base, hdr, &at))
	}
	return a.file(parent, base, hdr, &at)
}

func supported(kind byte) bool {
	switch kind {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, tar.TypeLink, tar.TypeDir, tar.TypeSymlink, tar.TypeChar,
		tar.TypeBlock, tar.TypeFifo:
		return true
	}
	return false
}

// skip records an entry whose content, if it has any, is part of the record already.
func (a *applier) skip(hdr *tar.Header, err error) error {
	if err != nil {
		return err
	}
	return a.split.file(hdr.Name, 0, nil)
}

// What is remembered takes, beside its names.
const (
	nodeMemory = 256
	nameMemory = 64
)

// hold accounts for memory that stays in use until the layer is applied.
func (a *applier) hold(bytes int) { a.held += int64(bytes) }

// rootEntry takes the root's attributes. The root is a directory, whatever the layer says.
func (a *applier) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return invalid("the root is not a directory (type %q)", hdr.Typeflag)
	}
	at, dropped, err := attrsOf(hdr)
	a.res.DroppedXattrs += dropped
	a.tree.root.attrs = &at
	a.hold(at.memory())
	return a.skip(hdr, err)
}

// cleanName makes a name relative to the root, without . and .. and empty components; the root is "".
func cleanName(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", invalid("name has a NUL")
	}
	clean := cleanPath(name)
	if len(clean) > maxPath {
		return "", invalid("name has %d bytes, at most %d are possible", len(clean), maxPath)
	}
	return clean, nil
}

// count accounts for one more inode.
func (a *applier) count() error {
	a.res.Inodes++
	if a.res.Inodes > a.opts.Limits.Entries {
		return fmt.Errorf("%w: more than %d entries", ErrLimit, a.opts.Limits.Entries)
	}
	if a.res.Inodes < a.nextCheck && a.in.total < a.nextBytes {
		return nil
	}
	a.nextCheck, a.nextBytes = a.res.Inodes+4096, a.in.total+checkBytes
	return a.checkFree()
}

const checkBytes = 64 << 20 // of the stream between two looks at the free space

// checkFree keeps an unpack from filling the file system under everything else that lives there.
func (a *applier) checkFree() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(a.tree.rootFD, &st); err != nil {
		return fmt.Errorf("ask for free space: %w", err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < a.opts.Limits.FreeBytes {
		return fmt.Errorf("%w: %d bytes free, %d are to be left: %w", ErrLimit, free, a.opts.Limits.FreeBytes, unix.ENOSPC)
	}
	if st.Files > 0 && int64(st.Ffree) < a.opts.Limits.FreeInodes { // btrfs counts no inodes
		return fmt.Errorf("%w: %d inodes free, %d are to be left: %w", ErrLimit, st.Ffree, a.opts.Limits.FreeInodes, unix.ENOSPC)
	}
	return nil
}
