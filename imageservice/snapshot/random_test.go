package snapshot_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/imageservice/snapshot"
	"github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

// randomLayers makes layers over so few names that they meet all the time.
func randomLayers(r *rand.Rand) [][]byte {
	name := func() string {
		parts := make([]string, 1+r.IntN(3))
		for i := range parts {
			parts[i] = string("abcd"[r.IntN(4)])
		}
		return strings.Join(parts, "/")
	}
	target := func() string {
		switch r.IntN(4) {
		case 0:
			return "/" + name()
		case 1:
			return "../" + name()
		}
		return name()
	}
	files := []string{} // for links to find something
	layers := make([][]byte, 1+r.IntN(4))
	for i := range layers {
		var entries []snapshottest.Entry
		for range r.IntN(8) {
			var e snapshottest.Entry
			n := name()
			dir, base := filepath.Split(n)
			if dir == "" {
				dir = "."
			}
			switch r.IntN(20) {
			case 0, 1, 2, 3:
				e = snapshottest.Dir(n, int64(r.IntN(0o10000)))
				if r.IntN(3) == 0 {
					e = e.With("user."+string("xy"[r.IntN(2)]), "v")
				}
			case 4, 5, 6, 7, 8, 9:
				e = snapshottest.File(n, fmt.Sprint("content ", r.IntN(1000)))
				if r.IntN(4) == 0 {
					e = e.As(r.IntN(3), r.IntN(3), int64(r.IntN(0o10000)))
				}
			case 10, 11, 12:
				e = snapshottest.Symlink(n, target())
			case 13, 14:
				if len(files) == 0 || r.IntN(10) == 0 {
					files = append(files, name())
				}
				e = snapshottest.Link(n, files[r.IntN(len(files))])
			case 15, 16, 17:
				e = snapshottest.Whiteout(strings.TrimSuffix(dir, "/"), base)
			case 18:
				e = snapshottest.Opaque(n)
				if r.IntN(10) == 0 {
					e = snapshottest.Opaque(".")
				}
			case 19:
				e = snapshottest.FIFO(n)
			}
			if e.Typeflag == tar.TypeReg || e.Typeflag == tar.TypeSymlink {
				files = append(files, n)
			}
			e.ModTime = e.ModTime.Add(time.Duration(r.IntN(1000)) * time.Second)
			entries = append(entries, e)
		}
		layers[i] = snapshottest.Layer(entries...)
	}
	return layers
}

// TestRandomStacksEqualSequentialUnpack goes on for the time it is given: BERTH_RANDOM=10m, for ten minutes.
func TestRandomStacksEqualSequentialUnpack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: owners, devices and overlayfs")
	}
	budget := 3 * time.Second
	if v := os.Getenv("BERTH_RANDOM"); v != "" {
		var err error
		if budget, err = time.ParseDuration(v); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	published, refused := 0, 0
	var store *snapshot.Store
	begun := time.Now()
	for n := uint64(0); time.Since(begun) < budget || (published == 0 || refused == 0) && time.Since(begun) < budget+time.Minute; n++ {
		layers := randomLayers(rand.New(rand.NewPCG(seed, n)))
		if n%50 == 0 {
			if store != nil {
				store.Close()
			}
			var err error
			if store, err = snapshot.Open(t.TempDir()); err != nil {
				t.Fatal(err)
			}
		}
		ok := t.Run(fmt.Sprintf("%d_%d", seed, n), func(t *testing.T) {
			snapshottest.Check(t, store, layers...)
			checkTars(t, store, layers...)
			if store.Publish(t.Context(), snapshottest.DiffIDs(layers...)) == nil {
				published++
			} else {
				refused++
			}
		})
		if !ok {
			for i, l := range layers {
				t.Logf("layer %d:\n%s", i, list(l))
			}
			break
		}
	}
	store.Close()
	t.Logf("%d stacks published, %d refused", published, refused)
	if published == 0 || refused == 0 {
		t.Errorf("%d stacks published, %d refused: the mix is wrong", published, refused)
	}
}

// checkTars compares the tars that the store gives back.
func checkTars(t *testing.T, store *snapshot.Store, layers ...[]byte) {
	t.Helper()
	for i, id := range snapshottest.DiffIDs(layers...) {
		var got bytes.Buffer
		if err := store.WriteTar(t.Context(), id, &got); errors.Is(err, snapshot.ErrNotFound) {
			continue // refused
		} else if err != nil {
			t.Errorf("rebuild layer %d: %v", i, err)
		} else if !bytes.Equal(got.Bytes(), layers[i]) {
			t.Errorf("rebuilt layer %d differs", i)
		}
	}
}
