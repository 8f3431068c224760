package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry"
)

// ingest fetches, unpacks and applies one layer. If a mirror served wrong bytes the next one is asked.
func (s *Service) ingest(ctx context.Context, src source, l recordLayer, count *atomic.Int64) (bytes int64, err error) {
	if bytes, ok := s.has(l.DiffID); ok { // another pull brought it a moment ago
		return bytes, nil
	}
	for {
		bytes, err := s.stream(ctx, src, l, count, usualWindow)
		if errors.Is(err, errWide) {
			count.Store(0)
			bytes, err = s.wide(ctx, src, l, count)
		}
		if err == nil {
			s.catalog.setSize(l.DiffID, bytes)
			return bytes, nil
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if errors.Is(err, ErrInvalidImage) || !src.HasOther(registry.Descriptor{Digest: l.Digest, Size: l.Size}, err) {
			return 0, err
		}
		count.Store(0)
	}
}

// has says whether a layer is in the store, published or not, and how many bytes its tar has. No image need have it: a root filesystem
// keeps layers, too.
// Preconditions: the layer is leased, so that it stays if it is.
func (s *Service) has(diffID digest.Digest) (bytes int64, ok bool) {
	if bytes, ok := s.snap.Size(diffID); ok {
		return bytes, true
	}
	return s.catalog.size(diffID)
}

// stream is one try of ingest: network, decompression and disk at the same time, a few pieces apart.
func (s *Service) stream(ctx context.Context, src source, l recordLayer, count *atomic.Int64, window uint64) (bytes int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	blob := src.Blob(ctx, registry.Descriptor{Digest: l.Digest, Size: l.Size})
	now := s.settings.Load()
	packed := newReadahead(counter{blob, count})
	stream := newLayerStream(packed, max(now.MinUnpacked, min(l.Size, math.MaxInt64/maxRatio)*maxRatio), window)
	stream.turn = turn{ctx: ctx, slots: now.unpacking}
	defer func() {
		cancel() // ends a read of the network, and with it those behind
		packed.Close()
		blob.Close()
		stream.close()
	}()
	ingest := s.snap.Ingest
	if _, ok := src.(*files); ok {
		ingest = s.snap.IngestAs // the name covers the digests of the files, which are checked
	}
	err = ingest(ctx, l.DiffID, stream)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || ctx.Err() != nil {
		return 0, err
	}
	if err != nil {
		return 0, stream.verdict(err)
	}
	if stream.err != io.EOF {
		bytes, _ := s.has(l.DiffID) // the store had the layer, and read nothing
		return bytes, nil
	}
	return stream.size, nil
}

// wide is stream for a layer that needs a large window, in its turn. It is fetched before, to the disk: no registry is so slow that others wait for it.
func (s *Service) wide(ctx context.Context, src source, l recordLayer, count *atomic.Int64) (bytes int64, err error) {
	fd, err := unix.Open(s.root, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("make file for a layer in %s: %w", s.root, err)
	}
	file := os.NewFile(uintptr(fd), "layer")
	defer file.Close()
	blob := src.Blob(ctx, registry.Descriptor{Digest: l.Digest, Size: l.Size})
	_, err = io.Copy(file, counter{blob, count})
	if err := errors.Join(err, blob.Close()); err != nil {
		return 0, err
	}
	select {
	case s.pulls.wide <- struct{}{}:
		defer func() { <-s.pulls.wide }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	return s.stream(ctx, fetched{src, file}, l, &atomic.Int64{}, maxWindow)
}

// fetched is a source whose one blob is here, and was right.
type fetched struct {
	source
	file *os.File
}

// Blob reads the blob from its beginning.
func (f fetched) Blob(context.Context, registry.Descriptor) io.ReadCloser {
	return io.NopCloser(io.NewSectionReader(f.file, 0, math.MaxInt64))
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n *atomic.Int64
}

func (c counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// store writes the record of an image that ref names, and takes the tag from the image that had it. r is new, and has no
// references yet; those that the image has had stay.
func (s *Service) store(r *record, ref reference.Reference, named digest.Digest) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	now := time.Now().UnixNano()
	var loser *record
	if e := s.catalog.get(r.ImageID); e != nil {
		if (e.image.ArtifactType == "") != (r.ArtifactType == "") { // one content that reads as an image's config and as a manifest
			return fmt.Errorf("%w: %s is here as something else", ErrInvalidImage, r.ImageID)
		}
		old := e.record.clone()
		r.Tags, r.RepoDigests = old.Tags, old.RepoDigests
	}
	if e := s.catalog.tagged(ref.String()); e != nil && ref.Digest == "" {
		now = max(now, e.record.Tags[ref.String()]+1) // also when the clock went back
		if e.image.ID != r.ImageID {
			loser = e.record.clone()
			delete(loser.Tags, ref.String())
		}
	}
	r.Pulled = now
	if ref.Digest == "" {
		r.Tags[ref.String()] = now
	}
	if d := ref.Repository() + "@" + named.String(); !slices.Contains(r.RepoDigests, d) {
		r.RepoDigests = append(r.RepoDigests, d)
	}
	// The winner first: if only it is written, load sees from the times that it is one.
	if err := s.write(r); err != nil {
		return err
	}
	if loser != nil {
		return s.write(loser)
	}
	return nil
}

// write puts a record on disk, then into memory.
// Preconditions: s.commit held.
func (s *Service) write(r *record) error {
	image, err := r.image()
	if err != nil {
		return err
	}
	if err := s.records.write(r); err != nil {
		return err
	}
	s.catalog.put(r, image)
	return nil
}
