package snapshottest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/snapshot"
)

// Layers is the half of a snapshotter that images need.
type Layers interface {
	Ingest(ctx context.Context, diffID digest.Digest, r io.Reader) error
	Has(diffID digest.Digest) bool
	Publish(ctx context.Context, diffIDs []digest.Digest) error
	View(diffIDs []digest.Digest) ([]snapshot.Mount, error)
	ReadFile(ctx context.Context, diffIDs []digest.Digest, path string, max int64) ([]byte, error)
	Prune(ctx context.Context, keep []digest.Digest) error
}

// Writables is the half that containers need.
type Writables interface {
	Prepare(ctx context.Context, key string, diffIDs []digest.Digest) ([]snapshot.Mount, error)
	Mounts(key string) ([]snapshot.Mount, error)
	Remove(ctx context.Context, key string) error
	Keys() ([]string, error)
	Usage(key string) (bytes, inodes int64, err error)
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
		t.Skip("needs root: owners, devices and overlayfs")
	}
	s := &suite{open: open}
	t.Run("Trees", s.trees)
	t.Run("Malformed", s.malformed)
	t.Run("LayersAreShared", s.shared)
	t.Run("NothingIsVisibleBeforePublish", s.unpublished)
	t.Run("WrongDigest", s.wrongDigest)
	t.Run("WritableLayer", s.writable)
	t.Run("ReadFile", s.readFile)
	t.Run("Prune", s.prune)
	t.Run("Reopen", s.reopen)
}

type suite struct {
	open func(root string) (Snapshotter, error)
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
			if err := Publish(t.Context(), st, tc.Layers...); err == nil {
				t.Error("published")
			}
			if _, err := st.View(DiffIDs(tc.Layers...)); err == nil {
				t.Error("visible")
			}
		})
	}
}

// shared: the order in which stacks that share layers come must not matter.
func (s *suite) shared(t *testing.T) {
	base1 := Layer(Dir("a", 0o700), Symlink("l", "a"), File("a/x", "1"))
	base2 := Layer(Dir("a", 0o750).As(7, 8, 0o750), Dir("l", 0o711), File("l/x", "2"))
	top := Layer(File("a/y", "y"), File("l/z", "z"), Whiteout("l", "x"))
	st := s.fresh(t)
	for range 2 {
		for _, base := range [][]byte{base1, base2} {
			Check(t, st, base, top)
			Check(t, st, base)
		}
	}
	Check(t, st, base1, base2, top)
	Check(t, st, top)
}

func (s *suite) unpublished(t *testing.T) {
	st, l := s.fresh(t), Layer(File("x", "x"))
	ids := DiffIDs(l)
	if err := st.Publish(t.Context(), ids); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("publish of nothing = %v, want ErrNotFound", err)
	}
	if err := st.Ingest(t.Context(), ids[0], bytes.NewReader(l)); err != nil {
		t.Fatal(err)
	}
	if st.Has(ids[0]) {
		t.Error("Has before Publish")
	}
	if _, err := st.View(ids); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("view before publish = %v, want ErrNotFound", err)
	}
	if _, err := st.Prepare(t.Context(), "k", ids); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("prepare before publish = %v, want ErrNotFound", err)
	}
	if err := st.Publish(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	if !st.Has(ids[0]) {
		t.Error("no Has after Publish")
	}
	// Again: nothing is read, nothing fails.
	if err := st.Ingest(t.Context(), ids[0], strings.NewReader("not read")); err != nil {
		t.Errorf("ingest again: %v", err)
	}
	if err := st.Publish(t.Context(), ids); err != nil {
		t.Errorf("publish again: %v", err)
	}
}

func (s *suite) wrongDigest(t *testing.T) {
	st, l := s.fresh(t), Layer(File("x", "x"))
	id := digest.FromString("another")
	if err := st.Ingest(t.Context(), id, bytes.NewReader(l)); !errors.Is(err, snapshot.ErrDigestMismatch) {
		t.Errorf("ingest = %v, want ErrDigestMismatch", err)
	}
	if err := st.Publish(t.Context(), []digest.Digest{id}); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("publish = %v, want ErrNotFound", err)
	}
	for _, bad := range []digest.Digest{"", "sha256:../../x", digest.Digest(strings.Repeat("a", 64)), digest.Digest("sha512:" + strings.Repeat("a", 128))} {
		if err := st.Ingest(t.Context(), bad, bytes.NewReader(l)); err == nil {
			t.Errorf("ingest of %q went through", bad)
		}
	}
}

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
	bytes, inodes, err := st.Usage("k")
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

func (s *suite) readFile(t *testing.T) {
	st := s.fresh(t)
	layers := [][]byte{
		Layer(File("etc/passwd", "below"), File("etc/gone", "x"), Symlink("abs", "/etc/passwd"), Symlink("up", "../../../../etc/passwd"),
			FIFO("fifo"), Symlink("tofifo", "fifo"), Char("null", 1, 3), Symlink("loop", "loop"), Symlink("magic", "/proc/self/status"), File("large", strings.Repeat("x", 101))),
		Layer(File("etc/passwd", "above"), Whiteout("etc", "gone")),
	}
	if err := Publish(t.Context(), st, layers...); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path, want string
		err        error
	}{
		{path: "etc/passwd", want: "above"},
		{path: "/etc/passwd", want: "above"},
		{path: "abs", want: "above"},
		{path: "up", want: "above"},
		{path: "../../etc/passwd", want: "above"},
		{path: "etc/gone", err: fs.ErrNotExist},
		{path: "magic", err: fs.ErrNotExist},
		{path: "etc/passwd/x", err: fs.ErrNotExist},
		{path: "etc", err: snapshot.ErrNotRegular},
		{path: "fifo", err: snapshot.ErrNotRegular},
		{path: "tofifo", err: snapshot.ErrNotRegular},
		{path: "null", err: snapshot.ErrNotRegular},
		{path: "large", err: snapshot.ErrTooLarge},
		{path: "loop", err: errAny},
	} {
		start := time.Now()
		got, err := st.ReadFile(t.Context(), DiffIDs(layers...), tc.path, 100)
		if string(got) != tc.want || !errors.Is(err, tc.err) && (tc.err != errAny || err == nil) {
			t.Errorf("ReadFile(%q) = %q, %v, want %q, %v", tc.path, got, err, tc.want, tc.err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("ReadFile(%q) took %v", tc.path, d)
		}
	}
}

var errAny = errors.New("any error")

func (s *suite) prune(t *testing.T) {
	st := s.fresh(t)
	a, b, c, d := Layer(File("a", "")), Layer(File("b", "")), Layer(File("c", "")), Layer(File("d", ""))
	for _, stack := range [][][]byte{{a, b}, {a, c}} {
		if err := Publish(t.Context(), st, stack...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Prepare(t.Context(), "k", DiffIDs(a, c)); err != nil {
		t.Fatal(err)
	}
	if err := st.Ingest(t.Context(), DiffIDs(d)[0], bytes.NewReader(d)); err != nil {
		t.Fatal(err)
	}
	prune := func(want map[string]bool, keep ...digest.Digest) {
		t.Helper()
		if err := st.Prune(t.Context(), keep); err != nil {
			t.Fatal(err)
		}
		for name, layer := range map[string][]byte{"a": a, "b": b, "c": c, "d": d} {
			if got := st.Has(DiffIDs(layer)[0]); got != want[name] {
				t.Errorf("Has(%s) = %v", name, got)
			}
		}
	}
	prune(map[string]bool{"a": true, "b": true, "c": true}, DiffIDs(a, b)...)
	prune(map[string]bool{"a": true, "c": true}) // the key's
	if _, err := st.View(DiffIDs(a, b)); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("view of pruned stack = %v, want ErrNotFound", err)
	}
	if _, err := st.Mounts("k"); err != nil {
		t.Errorf("mounts after prune: %v", err)
	}
	if err := st.Remove(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	prune(map[string]bool{})
	if err := st.Publish(t.Context(), DiffIDs(d)); err != nil { // a pull under way is not disturbed
		t.Errorf("publish what was ingested before: %v", err)
	}
	Check(t, st, a, b)
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
	if !st.Has(DiffIDs(a)[0]) || !st.Has(DiffIDs(b)[0]) || st.Has(DiffIDs(Layer())[0]) {
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
	_, inodes, err := st.Usage("k")
	if err != nil || inodes != 2 {
		t.Errorf("usage = %d inodes, %v, want 2", inodes, err)
	}
}
