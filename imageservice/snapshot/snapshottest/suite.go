package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/layer"
	"github.com/berthd/berth/imageservice/snapshot"
)

// Layers is the half of a snapshotter that images need.
type Layers interface {
	Ingest(ctx context.Context, diffID digest.Digest, r io.Reader) error
	Size(diffID digest.Digest) (bytes int64, published bool)
	Publish(ctx context.Context, diffIDs []digest.Digest) error
	View(diffIDs []digest.Digest) ([]snapshot.Mount, error)
	ReadFile(ctx context.Context, diffIDs []digest.Digest, path string, max int64) ([]byte, error)
	Prune(ctx context.Context, keep []digest.Digest) error
}

// Writables is the half that containers need.
type Writables interface {
	Prepare(ctx context.Context, key string, diffIDs []digest.Digest, kept ...[]digest.Digest) ([]snapshot.Mount, error)
	Mounts(key string) ([]snapshot.Mount, error)
	Kept(key string) ([]snapshot.Mount, error)
	CheckVolume(ctx context.Context, diffIDs []digest.Digest, path string) error
	Remove(ctx context.Context, key string) error
	Keys() ([]string, error)
	Usage(ctx context.Context, key string) (bytes, inodes int64, err error)
}

// Snapshotter is what Run tests.
type Snapshotter interface {
	Layers
	Writables
	Close() error
}

// Run holds a snapshotter to the contract. open opens the store at root; a second call after Close finds what was left.
func Run(t *testing.T, open func(root string) (Snapshotter, error)) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: owners, devices and overlayfs")
	}
	s := &suite{open: open}
	t.Run("Trees", s.trees)
	t.Run("Malformed", s.malformed)
	t.Run("LayersAreShared", s.shared)
	t.Run("NothingIsVisibleBeforePublish", s.unpublished)
	t.Run("WrongDigest", s.wrongDigest)
	t.Run("WritableLayer", s.writable)
	t.Run("ReadFile", s.readFile)
	t.Run("CheckVolume", s.checkVolume)
	t.Run("Kept", s.kept)
	t.Run("Prune", s.prune)
	t.Run("Reopen", s.reopen)
}

type suite struct {
	open func(root string) (Snapshotter, error)
}

// has tells whether a layer is published.
func has(st Layers, diffID digest.Digest) bool {
	_, published := st.Size(diffID)
	return published
}

func (s *suite) store(t *testing.T, root string) Snapshotter {
	t.Helper()
	st, err := s.open(root)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	return st
}

func (s *suite) fresh(t *testing.T) Snapshotter {
	t.Helper()
	st := s.store(t, t.TempDir())
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return st
}

// Publish ingests and publishes the layers.
func Publish(ctx context.Context, l Layers, layers ...[]byte) error {
	ids := DiffIDs(layers...)
	for i, content := range layers {
		if err := l.Ingest(ctx, ids[i], bytes.NewReader(content)); err != nil {
			return err
		}
	}
	return l.Publish(ctx, ids)
}

// Check publishes the layers and compares each stack of them with the reference, read-only and below a writable layer.
// Layers that the reference refuses the snapshotter must refuse, too.
func Check(t *testing.T, st Snapshotter, layers ...[]byte) {
	t.Helper()
	dir := t.TempDir()
	wantErr := Unpack(dir, layers...)
	err := Publish(t.Context(), st, layers...)
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("publish: %v; the reference says: %v", err, wantErr)
	}
	if err != nil {
		return
	}
	want, err := Tree(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids := DiffIDs(layers...)
	mounts, err := st.View(ids)
	if err != nil {
		t.Fatalf("view: %v", err)
	}
	compare(t, "view", mounts, want)
	key := "check-" + ids[len(ids)-1].Encoded()[:12]
	if mounts, err = st.Prepare(t.Context(), key, ids); err != nil {
		t.Fatalf("prepare: %v", err)
	}
	compare(t, "writable tree", mounts, want)
	if err := st.Remove(t.Context(), key); err != nil {
		t.Fatalf("remove: %v", err)
	}
}

func compare(t *testing.T, what string, mounts []snapshot.Mount, want []string) {
	t.Helper()
	f, err := open(mounts)
	if err != nil {
		t.Fatalf("mount %s: %v", what, err)
	}
	defer f.Close()
	got, err := Tree(filepath.Join("/proc/self/fd", itoa(f.Fd())))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s differs from a sequential unpack (-want +got):\n%s", what, diff)
	}
}

func (s *suite) trees(t *testing.T) {
	for _, tc := range Cases() {
		t.Run(strings.ReplaceAll(tc.Name, " ", "_"), func(t *testing.T) { Check(t, s.fresh(t), tc.Layers...) })
	}
}

func (s *suite) malformed(t *testing.T) {
	for _, tc := range MalformedCases() {
		t.Run(strings.ReplaceAll(tc.Name, " ", "_"), func(t *testing.T) {
			st := s.fresh(t)
			if err := Publish(t.Context(), st, tc.Layers...); !errors.Is(err, layer.ErrInvalid) {
				t.Errorf("publish = %v, want layer.ErrInvalid", err)
			}
			if _, err := st.View(DiffIDs(tc.Layers...)); err == nil {
				t.Error("visible")
			}
		})
	}
}
