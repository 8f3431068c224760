package snapshot

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/layer"
)

// Size tells whether the layer is published, and how many bytes its tar has.
func (s *Store) Size(diffID digest.Digest) (bytes int64, published bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.layers[diffID]
	if l == nil {
		return 0, false
	}
	return l.record.Size, true
}

// find gives the layer wherever it is. Preconditions: s.mu held.
func (s *Store) find(diffID digest.Digest) *storedLayer {
	if l := s.layers[diffID]; l != nil {
		return l
	}
	return s.ingested[diffID]
}

// Ingest unpacks the layer's uncompressed tar r in private; Publish makes it one of the store's. It is nil at once, with r
// unread, if the store has the layer. r must honour ctx; it is read to its end and no more after the return. Bytes that
// are not diffID's are ErrDigestMismatch. After an error the space is given back.
func (s *Store) Ingest(ctx context.Context, diffID digest.Digest, r io.Reader) error {
	return s.ingest(ctx, diffID, diffID, r)
}

// IngestAs is Ingest of a layer whose name is not the digest of its tar, and must not look like one: it is a SHA-512 digest. The caller
// vouches that the name stands for these bytes.
func (s *Store) IngestAs(ctx context.Context, name digest.Digest, r io.Reader) error {
	if err := name.Validate(); err != nil || name.Algorithm() != digest.SHA512 {
		return fmt.Errorf("ingest layer: name %q: not a SHA-512 digest", string(name))
	}
	return s.ingest(ctx, name, "", r)
}

// ingest makes the layer diffID of a tar that has a digest, or any if that is "".
func (s *Store) ingest(ctx context.Context, diffID, want digest.Digest, r io.Reader) error {
	if err := checkDiffIDs(diffID); err != nil {
		return fmt.Errorf("ingest layer: %w", err)
	}
	s.mu.Lock()
	limits, known := s.limits, s.find(diffID) != nil
	s.mu.Unlock()
	if known {
		return nil
	}
	dir, err := s.scratch()
	if err != nil {
		return fmt.Errorf("ingest layer %s: %w", diffID, err)
	}
	l := &storedLayer{dir: dir, record: layerRecord{DiffID: diffID}}
	if err := l.unpack(ctx, want, r, limits); err != nil {
		return errors.Join(fmt.Errorf("ingest layer %s: %w", diffID, err), s.trash.discard(dir))
	}
	s.mu.Lock()
	known = s.find(diffID) != nil
	if !known {
		s.ingested[diffID] = l
	}
	s.mu.Unlock()
	if known {
		return s.trash.discard(dir)
	}
	return nil
}

// unpack fills the folder l.dir, and the record, which has the diffID already. want is the tar's digest, if it is known.
func (l *storedLayer) unpack(ctx context.Context, want digest.Digest, r io.Reader, limits layer.Limits) error {
	kept, err := l.openKept()
	if err != nil {
		return err
	}
	defer kept.Close()
	split, err := createSplit(filepath.Join(l.dir, "split.zst"))
	if err != nil {
		return err
	}
	res, err := layer.Apply(ctx, r, l.folder(), split, layer.Options{Limits: limits, Kept: kept})
	if err := errors.Join(err, split.Close()); err != nil {
		return err
	}
	if want != "" && res.DiffID != want {
		return fmt.Errorf("%w: the tar's is %s", ErrDigestMismatch, res.DiffID)
	}
	if len(res.Moves) == 0 {
		if err := os.Remove(filepath.Join(l.dir, "kept")); err != nil {
			return err
		}
	}
	l.record = layerRecord{
		DiffID: l.record.DiffID, Tar: res.DiffID, Size: res.Size, Entries: res.Entries, DiskUsage: res.DiskUsage, Inodes: res.Inodes,
		DroppedXattrs: res.DroppedXattrs, OpaqueRoot: res.OpaqueRoot, Moves: res.Moves,
	}
	if want != "" {
		l.record.Tar = ""
	}
	if err := writeRecord(filepath.Join(l.dir, "pending"), res.Pending); err != nil {
		return err
	}
	for _, name := range []string{".", "split.zst", "pending"} {
		if err := l.record.add(filepath.Join(l.dir, name)); err != nil {
			return err
		}
	}
	l.record.Inodes++ // of the record itself
	return writeRecord(filepath.Join(l.dir, "layer"), l.record)
}

// add accounts for one more file.
func (r *layerRecord) add(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	r.DiskUsage += st.Blocks * 512
	r.Inodes++
	return nil
}

func (l *storedLayer) openKept() (*os.File, error) {
	if err := os.Mkdir(l.folder(), 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(l.dir, "kept"), 0o700); err != nil {
		return nil, err
	}
	return os.Open(filepath.Join(l.dir, "kept"))
}

// pending reads what the layer leaves to those below.
func (l *storedLayer) pending() (*layer.Pending, error) {
	p := &layer.Pending{}
	return p, readRecord(filepath.Join(l.dir, "pending"), p)
}

// splitFile is a new file, written compressed.
type splitFile struct {
	*zstd.Encoder
	file *os.File
}

func createSplit(path string) (*splitFile, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &splitFile{Encoder: z, file: f}, nil
}

func (s *splitFile) Close() error { return errors.Join(s.Encoder.Close(), s.file.Close()) }

// Discard gives back what was ingested and not published, when nothing will publish it.
func (s *Store) Discard(ctx context.Context, diffIDs ...digest.Digest) error {
	if err := s.lock(ctx); err != nil {
		return fmt.Errorf("discard layers: %w", err)
	}
	defer s.unlock()
	var errs []error
	for _, d := range diffIDs {
		s.mu.Lock()
		l := s.ingested[d]
		delete(s.ingested, d)
		s.mu.Unlock()
		if l != nil {
			errs = append(errs, s.trash.discard(l.dir))
		}
	}
	return errors.Join(errs...)
}

// WriteTar writes the layer's exact tar to w. Content that has changed on disk is an error, if not by its own checksum
// then by the digest of the whole, which is compared at the end.
func (s *Store) WriteTar(ctx context.Context, diffID digest.Digest, w io.Writer) error {
	s.mu.Lock()
	l := s.find(diffID)
	s.mu.Unlock()
	if l == nil {
		return fmt.Errorf("rebuild layer %s: %w", diffID, ErrNotFound)
	}
	sum := sha256.New()
	if err := l.rebuild(ctx, io.MultiWriter(w, sum)); err != nil {
		return fmt.Errorf("rebuild layer %s: %w", diffID, err)
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != l.record.tar() {
		return fmt.Errorf("rebuild layer %s: %w: the tar's is %s", diffID, ErrDigestMismatch, got)
	}
	return nil
}

// Verify compares all content of the layer on disk, and the way it was packed, with its diffID.
func (s *Store) Verify(ctx context.Context, diffID digest.Digest) error {
	return s.WriteTar(ctx, diffID, io.Discard)
}

func (l *storedLayer) rebuild(ctx context.Context, w io.Writer) error {
	f, err := os.Open(filepath.Join(l.dir, "split.zst"))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return err
	}
	defer z.Close()
	buf := bufio.NewWriterSize(w, 256<<10)
	src := layer.Source{Folder: l.folder(), Kept: filepath.Join(l.dir, "kept"), Moves: l.record.Moves, Split: z}
	if err := layer.Rebuild(ctx, buf, src); err != nil {
		return err
	}
	return buf.Flush()
}
