package snapshot_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/imageservice/snapshot"
	"github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

// BenchmarkPull unpacks and publishes an image as a pull does, without the network and the decompression. BERTH_LAYERS=DIR
// takes the tars of DIR.
func BenchmarkPull(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Fatal("needs root: owners and overlayfs")
	}
	var names []string
	var ids []digest.Digest
	if dir := os.Getenv("BERTH_LAYERS"); dir != "" {
		names, _ = filepath.Glob(filepath.Join(dir, "*.tar"))
	} else {
		for i := range 4 {
			var entries []snapshottest.Entry
			for j := range 2000 {
				entries = append(entries, snapshottest.File(fmt.Sprintf("usr/d%d/f%d", j/50, j), string(make([]byte, j*5))))
			}
			name := filepath.Join(b.TempDir(), fmt.Sprint(i))
			if err := os.WriteFile(name, snapshottest.Layer(append(entries, snapshottest.File(fmt.Sprint(i), ""))...), 0o600); err != nil {
				b.Fatal(err)
			}
			names = append(names, name)
		}
	}
	size := int64(0)
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		ids = append(ids, digest.FromBytes(content))
		size += int64(len(content))
	}
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		store, err := snapshot.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		var g errgroup.Group
		g.SetLimit(runtime.NumCPU() + 1)
		for i, id := range ids {
			g.Go(func() error {
				f, err := os.Open(names[i])
				if err != nil {
					return err
				}
				defer f.Close()
				return store.Ingest(b.Context(), id, f)
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
		if err := store.Publish(b.Context(), ids); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		store.Close()
		b.StartTimer()
	}
}

// BenchmarkPrepare is the part of the store in the life of a container.
func BenchmarkPrepare(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Fatal("needs root: owners and overlayfs")
	}
	store, err := snapshot.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	layers := [][]byte{snapshottest.Layer(snapshottest.Dir("d", 0o700)), snapshottest.Layer(snapshottest.File("d/f", ""))}
	if err := snapshottest.Publish(b.Context(), store, layers...); err != nil {
		b.Fatal(err)
	}
	ids := snapshottest.DiffIDs(layers...)
	for i := 0; b.Loop(); i++ {
		key := fmt.Sprint(i)
		if _, err := store.Prepare(b.Context(), key, ids); err != nil {
			b.Fatal(err)
		}
		if err := store.Remove(b.Context(), key); err != nil {
			b.Fatal(err)
		}
	}
}
