package snapshottest

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/snapshot"
)

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
	if has(st, ids[0]) {
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
	if !has(st, ids[0]) {
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
		if d := time.Since(start); d > 20*time.Second {
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
			if got := has(st, DiffIDs(layer)[0]); got != want[name] {
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
