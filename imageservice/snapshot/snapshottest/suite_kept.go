package snapshottest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/snapshot"
)

func (s *suite) checkVolume(t *testing.T) {
	st := s.fresh(t)
	layers := [][]byte{
		Layer(Dir("etc", 0o700), File("etc/passwd", "below"), File("etc/gone", "x"), Symlink("abs", "/etc"), Symlink("up", "../../../../etc/passwd"),
			FIFO("fifo"), Char("null", 1, 3), Symlink("loop", "loop"), Symlink("magic", "/proc/self/root"), Symlink("out", "/../../var")),
		Layer(Whiteout("etc", "gone")),
	}
	if err := Publish(t.Context(), st, layers...); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]error{
		"/": nil, "etc": nil, "/etc/passwd": nil, "abs": nil, "abs/passwd": nil, "up": nil,
		"etc/gone": fs.ErrNotExist, "no": fs.ErrNotExist, "magic": fs.ErrNotExist, "out": fs.ErrNotExist, "etc/passwd/x": fs.ErrNotExist,
		"fifo": snapshot.ErrNotRegular, "null": snapshot.ErrNotRegular, "loop": snapshot.ErrNotRegular,
	} {
		if err := st.CheckVolume(t.Context(), DiffIDs(layers...), path); !errors.Is(err, want) {
			t.Errorf("CheckVolume(%q) = %v, want %v", path, err, want)
		}
	}
	if err := st.CheckVolume(t.Context(), DiffIDs(Layer()), "/"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("of a stack that is not there: %v", err)
	}
}

// A stack that a key has for reading stays for as long as the key, is seen as it is, and cannot be made writable.
func (s *suite) kept(t *testing.T) {
	root := t.TempDir()
	st, ctx := s.store(t, root), t.Context()
	base, one := Layer(File("x", "x")), Layer(File("one", "1"))
	many := [][]byte{Layer(File("a", "a")), Layer(File("a", "b"), Dir("d", 0o700))}
	for _, stack := range [][][]byte{{base}, {one}, many} {
		if err := Publish(ctx, st, stack...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Prepare(ctx, "bad", DiffIDs(base), DiffIDs(one), DiffIDs(one, base)); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("keep a stack that is not there: %v", err)
	}
	for range 2 {
		if _, err := st.Prepare(ctx, "k", DiffIDs(base), DiffIDs(one), DiffIDs(many...)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := st.Prepare(ctx, "k", DiffIDs(base), DiffIDs(one)); !errors.Is(err, snapshot.ErrInUse) {
		t.Errorf("prepare with other stacks = %v, want ErrInUse", err)
	}
	before := must(st.Kept("k"))(t)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	st = s.store(t, root)
	defer st.Close()
	if err := st.Prune(ctx, nil); err != nil {
		t.Fatal(err)
	}
	mounts := must(st.Kept("k"))(t)
	if diff := cmp.Diff(before, mounts); diff != "" {
		t.Errorf("after opening again:\n%s", diff)
	}
	for i, stack := range [][][]byte{{one}, many} {
		dir := t.TempDir()
		if err := Unpack(dir, stack...); err != nil {
			t.Fatal(err)
		}
		compare(t, "kept", mounts[i:i+1], must(Tree(dir))(t))
		f, err := open(mounts[i : i+1])
		if err != nil {
			t.Fatal(err)
		}
		err = unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
		if err == nil {
			err = os.WriteFile(filepath.Join("/proc/self/fd", itoa(f.Fd()), "new"), nil, 0o600)
		}
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("write to a stack for reading: %v", err)
		}
		f.Close()
	}
	if err := st.Remove(ctx, "k"); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Kept("k"); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("kept by a key that is gone: %v", err)
	}
	if err := st.Prune(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if has(st, DiffIDs(one)[0]) {
		t.Error("a layer stays that nobody keeps")
	}
}
