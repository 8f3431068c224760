package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/imageservice/snapshot"
)

// fakeSnap is a Snapshotter in memory.
type fakeSnap struct {
	mu        sync.Mutex
	published map[digest.Digest][]byte
	ingested  map[digest.Digest][]byte
	keys      map[string][]digest.Digest
	kept      map[string]int
	files     map[string]string
	reads     int
	walks     int
	fail      map[string]error // by method
	hold      chan struct{}    // Ingest waits for it, if it is not nil
	holding   chan struct{}    // gets one for each Ingest that waits
}

func newFakeSnap() *fakeSnap {
	return &fakeSnap{
		published: map[digest.Digest][]byte{}, ingested: map[digest.Digest][]byte{},
		keys: map[string][]digest.Digest{}, kept: map[string]int{}, files: map[string]string{}, fail: map[string]error{}, holding: make(chan struct{}, 100),
	}
}

func (f *fakeSnap) Size(d digest.Digest) (bytes int64, published bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	raw := f.published[d]
	return int64(len(raw) - 1), raw != nil // see ingest
}

func (f *fakeSnap) has(d digest.Digest) bool {
	_, published := f.Size(d)
	return published
}

func (f *fakeSnap) Ingest(ctx context.Context, d digest.Digest, r io.Reader) error {
	return f.ingest(ctx, d, r, func(raw []byte) bool { return digest.FromBytes(raw) == d })
}

func (f *fakeSnap) IngestAs(ctx context.Context, d digest.Digest, r io.Reader) error {
	return f.ingest(ctx, d, r, func([]byte) bool { return true })
}

func (f *fakeSnap) ingest(ctx context.Context, d digest.Digest, r io.Reader, right func([]byte) bool) error {
	f.mu.Lock()
	known := f.published[d] != nil || f.ingested[d] != nil
	hold, fail, unread := f.hold, f.fail["Ingest"], f.fail["Ingest, unread"]
	f.mu.Unlock()
	if known {
		return nil
	}
	if hold != nil {
		f.holding <- struct{}{}
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if unread != nil {
		return fmt.Errorf("ingest: %w", unread)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("ingest: %w", err)
	}
	if fail != nil {
		return fmt.Errorf("ingest: %w", fail)
	}
	if !right(raw) {
		return fmt.Errorf("ingest: %w", snapshot.ErrDigestMismatch)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.published[d] == nil {
		f.ingested[d] = append(raw, 0) // never nil
	}
	return nil
}

func (f *fakeSnap) Publish(_ context.Context, diffIDs []digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail["Publish"]; err != nil {
		return err
	}
	for _, d := range diffIDs {
		if f.published[d] == nil && f.ingested[d] == nil {
			return fmt.Errorf("publish %s: %w", d, snapshot.ErrNotFound)
		}
	}
	for _, d := range diffIDs {
		if raw := f.ingested[d]; raw != nil {
			f.published[d] = raw
			delete(f.ingested, d)
		}
	}
	return nil
}

func (f *fakeSnap) Discard(_ context.Context, diffIDs ...digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range diffIDs {
		delete(f.ingested, d)
	}
	return nil
}

func (f *fakeSnap) Prune(_ context.Context, keep []digest.Digest) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, diffIDs := range f.keys {
		keep = append(keep, diffIDs...)
	}
	for d := range f.published {
		if !slices.Contains(keep, d) {
			delete(f.published, d)
		}
	}
	return nil
}

func (f *fakeSnap) LayersUsage() (bytes, inodes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, raw := range f.published {
		bytes += int64(len(raw))
		inodes++
	}
	return bytes, inodes
}

func (f *fakeSnap) ReadFile(_ context.Context, diffIDs []digest.Digest, path string, max int64) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	content, ok := f.files[path]
	if !ok {
		return nil, fmt.Errorf("read: %w", fs.ErrNotExist)
	}
	if int64(len(content)) > max {
		return nil, snapshot.ErrTooLarge
	}
	return []byte(content), nil
}

func (f *fakeSnap) Prepare(_ context.Context, key string, diffIDs []digest.Digest, kept ...[]digest.Digest) ([]snapshot.Mount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := slices.Concat(append(kept, diffIDs)...)
	for _, d := range all {
		if f.published[d] == nil {
			return nil, fmt.Errorf("prepare %s: %w", d, snapshot.ErrNotFound)
		}
	}
	f.keys[key], f.kept[key] = all, len(kept)
	return []snapshot.Mount{{Type: "overlay"}}, nil
}

func (f *fakeSnap) Kept(key string) ([]snapshot.Mount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[key] == nil {
		return nil, snapshot.ErrNotFound
	}
	return make([]snapshot.Mount, f.kept[key]), nil
}

func (f *fakeSnap) CheckVolume(ctx context.Context, diffIDs []digest.Digest, path string) error {
	_, err := f.ReadFile(ctx, diffIDs, path, 1<<20)
	return err
}

func (f *fakeSnap) Mounts(key string) ([]snapshot.Mount, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys[key] == nil {
		return nil, snapshot.ErrNotFound
	}
	return []snapshot.Mount{{Type: "overlay"}}, nil
}

func (f *fakeSnap) Remove(_ context.Context, key string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.keys, key)
	return nil
}

func (f *fakeSnap) Keys() ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for key := range f.keys {
		keys = append(keys, key)
	}
	return keys, nil
}

func (f *fakeSnap) Usage(_ context.Context, key string) (bytes, inodes int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.walks++
	if f.keys[key] == nil {
		return 0, 0, snapshot.ErrNotFound
	}
	return 100, 2, nil
}

// layers is what is there: published, and ingested only.
func (f *fakeSnap) layers() (published, ingested int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.published), len(f.ingested)
}

func (f *fakeSnap) set(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail[method] = err
}

var errTest = errors.New("test")

// world is a service over a fake snapshotter and a registry.
type world struct {
	*Service
	t    *testing.T
	snap *fakeSnap
	reg  *registrytest.Registry
	root string
}
