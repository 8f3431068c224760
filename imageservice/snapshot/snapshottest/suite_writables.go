package snapshottest

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/imageservice/snapshot"
)

func (s *suite) writable(t *testing.T) {
	st, l, other := s.fresh(t), Layer(Dir(".", 0o1777).As(3, 4, 0o1777), File("x", "x")), Layer(File("y", "y"))
	ctx, ids := t.Context(), DiffIDs(l)
	for _, layer := range [][]byte{l, other} {
		if err := Publish(ctx, st, layer); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"", ".", "..", "a/b", "../x", "a\x00", strings.Repeat("k", 200)} {
		if _, err := st.Prepare(ctx, key, ids); !errors.Is(err, snapshot.ErrKey) {
			t.Errorf("prepare of key %q = %v, want ErrKey", key, err)
		}
	}
	mounts, err := st.Prepare(ctx, "k", ids)
	if err != nil {
		t.Fatal(err)
	}
	again, err := st.Prepare(ctx, "k", ids)
	if diff := cmp.Diff(mounts, again); err != nil || diff != "" {
		t.Errorf("prepare again: %v\n%s", err, diff)
	}
	if _, err := st.Prepare(ctx, "k", DiffIDs(other)); !errors.Is(err, snapshot.ErrInUse) {
		t.Errorf("prepare upon other layers = %v, want ErrInUse", err)
	}
	tree := Open(t, mounts)
	if err := os.WriteFile(filepath.Join(tree, "new"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(tree, "x")); err != nil {
		t.Fatal(err)
	}
	bytes, inodes, err := st.Usage(t.Context(), "k")
	if err != nil || bytes < 1<<20 || bytes > 1<<20+64<<10 || inodes != 3 { // the root, the file, the whiteout
		t.Errorf("usage = %d bytes, %d inodes, %v", bytes, inodes, err)
	}
	if keys, err := st.Keys(); err != nil || !slices.Equal(keys, []string{"k"}) {
		t.Errorf("keys = %v, %v", keys, err)
	}
	for range 2 {
		if err := st.Remove(ctx, "k"); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := st.Mounts("k"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("mounts after remove = %v, want ErrNotFound", err)
	}
	if keys, err := st.Keys(); err != nil || len(keys) != 0 {
		t.Errorf("keys after remove = %v, %v", keys, err)
	}
	// The key is free, and what was written is not there.
	if mounts, err = st.Prepare(ctx, "k", ids); err != nil {
		t.Fatal(err)
	}
	want, err := Tree(Open(t, []snapshot.Mount{must(st.View(ids))(t)[0]}))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "second writable tree", mounts, want)
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (s *suite) reopen(t *testing.T) {
	root := t.TempDir()
	a, b := Layer(Dir("a", 0o700)), Layer(File("a/b", ""))
	st := s.store(t, root)
	if err := Publish(t.Context(), st, a, b); err != nil {
		t.Fatal(err)
	}
	mounts, err := st.Prepare(t.Context(), "k", DiffIDs(a, b))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(Open(t, mounts), "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := st.Ingest(t.Context(), DiffIDs(Layer())[0], bytes.NewReader(Layer())); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}

	st = s.store(t, root)
	defer st.Close()
	if !has(st, DiffIDs(a)[0]) || !has(st, DiffIDs(b)[0]) || has(st, DiffIDs(Layer())[0]) {
		t.Error("published layers are not those that were")
	}
	again, err := st.Mounts("k")
	if diff := cmp.Diff(mounts, again); err != nil || diff != "" {
		t.Errorf("mounts: %v\n%s", err, diff)
	}
	Check(t, st, a, b)
	if err := st.Publish(t.Context(), DiffIDs(Layer())); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("publish of what was not published before = %v, want ErrNotFound", err)
	}
	_, inodes, err := st.Usage(t.Context(), "k")
	if err != nil || inodes != 2 {
		t.Errorf("usage = %d inodes, %v, want 2", inodes, err)
	}
}
