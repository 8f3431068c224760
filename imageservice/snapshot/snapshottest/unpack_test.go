package snapshottest

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Where a layer leaves nothing implicit the reference is what tar(1) does, layer after layer, after what the whiteouts
// name is deleted.
func TestUnpackIsWhatTarDoes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: owners and devices")
	}
	long := strings.Repeat("n", 120)
	layers := [][]byte{
		Layer(Dir(".", 0o711), Dir("a", 0o2750).As(1, 2, 0o2750), Dir("a/b", 0o1777), File("a/f", "f").As(3, 4, 0o4755), File("a/b/g", "g").With("user.x", "1"),
			Symlink("a/s", "../a/f"), Link("h", "a/f"), FIFO("p"), Char("c", 1, 3), File("cap", "x").With("security.capability", Capability), Dir("gone", 0o700), File("gone/f", ""), Symlink("l", "a")),
		Layer(Dir(".", 0o755), Whiteout(".", "gone"), Whiteout("a", "f"), Dir("a", 0o700), Dir("a/b", 0o711), Opaque("a/b"), File("a/b/new", "n"), Dir(long, 0o755), File(long+"/"+long, "long")),
		Layer(Dir(".", 0o750), File("p", "no pipe"), Dir("gone", 0o755), File("gone/again", ""), File("h", "H"), Symlink("c", "p"), Dir("a", 0o711), Link("a/p", "p")),
	}
	byTar, byUs := t.TempDir(), t.TempDir()
	for _, l := range layers {
		whiteouts(t, byTar, l)
		cmd := exec.Command("tar", "-x", "-p", "-f", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--exclude=.wh.*", "-C", byTar)
		cmd.Stdin = bytes.NewReader(l)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("tar: %v\n%s", err, out)
		}
	}
	if err := Unpack(byUs, layers...); err != nil {
		t.Fatal(err)
	}
	want, err := Tree(byTar)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Tree(byUs)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("tar and Unpack differ (-tar +Unpack):\n%s", diff)
	}
}

func whiteouts(t *testing.T, root string, layer []byte) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		hdr, err := r.Next()
		if err != nil {
			return
		}
		dir, base := filepath.Split(filepath.Join(root, hdr.Name))
		name, ok := strings.CutPrefix(base, ".wh.")
		if !ok {
			continue
		}
		victims := []string{filepath.Join(dir, name)}
		if base == ".wh..wh..opq" {
			victims, _ = filepath.Glob(filepath.Join(dir, "*"))
		}
		for _, v := range victims {
			if err := os.RemoveAll(v); err != nil {
				t.Fatal(err)
			}
		}
	}
}
