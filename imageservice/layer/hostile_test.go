package layer_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/layer"
	"github.com/berthd/berth/imageservice/snapshot"
	. "github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

// victim is a folder of the host that no layer may touch; check fails the test if one did.
func victim(t testing.TB) (dir string, check func()) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"d", "e", "implicit", "d/e"} { // whatever is looked for beyond a link is there
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"f", "d/f", "passwd"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("the host's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := describe(t, dir)
	return dir, func() {
		t.Helper()
		if diff := cmp.Diff(before, describe(t, dir)); diff != "" {
			t.Errorf("the host was changed:\n%s", diff)
		}
	}
}

func describe(t testing.TB, dir string) []string {
	t.Helper()
	lines, err := Tree(dir)
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	for _, name := range []string{"f", "d/f", "passwd"} {
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s inode %d nlink %d", name, st.Ino, st.Nlink))
	}
	return lines
}

// breakouts try to get at v, each as one layer, by all that a name, a link and an attribute can do.
func breakouts(v string) map[string][]Entry {
	up := strings.Repeat("../", 30)
	attack := func(through string) []Entry {
		return []Entry{
			File(through+"/new", "n"), File(through+"/f", "overwritten").As(5, 5, 0o4777).With("user.x", "x"), Dir(through+"/d", 0o777).As(5, 5, 0o777),
			Symlink(through+"/s", "x"), Char(through+"/null", 1, 3), FIFO(through + "/p"), Whiteout(through, "passwd"), Opaque(through + "/d"),
			Link("in", through+"/f"), Link(through+"/out", through+"/d/f"), Dir(through, 0o777).As(5, 5, 0o777), File(through+"/late", "l"), File(through, "f"),
		}
	}
	with := func(e Entry, through string) []Entry { return append([]Entry{e}, attack(through)...) }
	return map[string][]Entry{
		"absolute symlink":          with(Symlink("s", v), "s"),
		"relative symlink":          with(Symlink("s", up+v[1:]), "s"),
		"absolute names":            attack(v),
		"names with dot-dot":        attack(up + v[1:]),
		"names with dot-dot inside": attack("a/" + up + v[1:]),
		"symlink to a symlink":      append([]Entry{Symlink("a", v), Symlink("b", "a")}, attack("b")...),
		"symlink to proc":           append([]Entry{Symlink("p", "/proc/self/root"), Symlink("q", "/proc/self/cwd")}, append(attack("p"+v), attack("q")...)...),
		"hard link to a symlink":    append([]Entry{Symlink("a", v), Link("b", "a")}, attack("b")...),
		"file symlink":              {Symlink("s", v+"/f"), File("s", "x"), Symlink("t", v+"/f"), Link("h", "t"), File("h", "x"), Dir("t", 0o777)},
		// CVE-2025-47290: the directory was looked up before it was replaced.
		"directory becomes symlink":      append([]Entry{Dir("a", 0o755), File("a/1", "1"), Symlink("a", v)}, attack("a")...),
		"parent becomes symlink":         append([]Entry{Dir("a", 0o755), Dir("a/d", 0o755), File("a/d/1", "1"), Symlink("a", v)}, attack("a/d")...),
		"implicit directory to symlink":  append([]Entry{File("a/d/1", "1"), Symlink("a", v)}, attack("a/d")...),
		"directory becomes link":         append([]Entry{Symlink("s", v), Dir("a", 0o755), File("a/1", "1"), Link("a", "s")}, attack("a")...),
		"whiteout, then symlink":         append([]Entry{Dir("a", 0o755), File("a/1", "1"), Whiteout(".", "a"), Symlink("a", v)}, attack("a")...),
		"same name, symlink and dir":     {Symlink("a", v), Dir("a", 0o4777).As(5, 5, 0o777), Symlink("a", v), Dir("a/.", 0o777)},
		"symlink over root":              {Dir(".", 0o700), Symlink("x/..", v), File("f", "x")},
		"times of a symlink":             {Symlink("s", v), Symlink("s", v).As(7, 7, 0o777).With("user.x", "x")},
		"dangling symlink creates":       {Symlink("s", v+"/new/dir"), File("s/f", "x")},
		"dot-dot out of a linked folder": append([]Entry{Symlink("s", v+"/d")}, attack("s/..")...),
	}
}

func TestLayersStayInside(t *testing.T) {
	needRoot(t)
	v, check := victim(t)
	for name, entries := range breakouts(v) {
		// All at once stops at the first refusal; so each entry has its turn, too.
		for n := 1; n <= len(entries); n++ {
			_, _ = apply(t, bytes.NewReader(Layer(entries[:n]...)), layer.Limits{})
		}
		check()
		if t.Failed() {
			t.Fatalf("broken out: %s", name)
		}
	}
}

// The first entries are a layer of their own: what is hostile then lies in the lower tree.
func TestStacksStayInside(t *testing.T) {
	needRoot(t)
	v, check := victim(t)
	store, err := snapshot.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for name, entries := range breakouts(v) {
		for n := 1; n <= 3 && n < len(entries); n++ {
			for m := n + 1; m <= len(entries); m++ {
				_ = Publish(t.Context(), store, Layer(entries[:n]...), Layer(entries[n:m]...))
			}
		}
		check()
		if t.Failed() {
			t.Fatalf("broken out: %s", name)
		}
	}
}

// Whatever the bytes are: the host is as before, and a layer that is taken gives its exact bytes back.
func FuzzApply(f *testing.F) {
	needRoot(f)
	v, _ := victim(f)
	before := describe(f, v)
	for _, content := range exactTars() {
		if len(content) < 64<<10 {
			f.Add(content)
		}
	}
	for _, entries := range breakouts(v) {
		f.Add(Layer(entries...))
	}
	limits := layer.Limits{Bytes: 4 << 20, Entries: 1000, Memory: 4 << 20}
	f.Fuzz(func(t *testing.T, content []byte) {
		a, err := apply(t, bytes.NewReader(content), limits)
		if diff := cmp.Diff(before, describe(t, v)); diff != "" {
			t.Fatalf("the host was changed:\n%s", diff)
		}
		if err != nil {
			return
		}
		if got, err := a.rebuild(t); err != nil || !bytes.Equal(got, content) {
			t.Errorf("rebuilt %d bytes of %d, %v", len(got), len(content), err)
		}
	})
}

// Somebody exchanges directories and symbolic links in the folder all the time. Nobody but root can; still no path is
// looked up twice. BERTH_SWAP=60s swaps for a minute.
func TestSwappedDirectoriesLeadNowhere(t *testing.T) {
	needRoot(t)
	v, check := victim(t)
	var entries []Entry
	for i := range 200 {
		entries = append(entries,
			Dir("d", int64(0o700+i%8)), File(fmt.Sprintf("d/f%d", i), "x"), Dir("d/e", 0o777).As(i, i, 0o777),
			File("d/f", "x").As(5, 5, 0o4777),
			Symlink(fmt.Sprintf("d/s%d", i), "x"), Link(fmt.Sprintf("d/e/l%d", i), "d/f"), Whiteout("d", fmt.Sprint("w", i)),
			File(fmt.Sprintf("o/%d", i), ""), File(fmt.Sprintf("d/e/f%d", i), "x"), File(fmt.Sprintf("o/a%d", i), ""), Char(fmt.Sprintf("d/e/c%d", i), 1, 3),
			File("d/implicit/f", ""), File("d/implicit", ""))
	}
	content := Layer(entries...)
	budget := 2 * time.Second
	if s := os.Getenv("BERTH_SWAP"); s != "" {
		var err error
		if budget, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	done, refused := 0, 0
	for end := time.Now().Add(budget); time.Now().Before(end); {
		dir := t.TempDir()
		stop := make(chan struct{})
		var swapper sync.WaitGroup
		swapper.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
				name := filepath.Join(dir, []string{"d", "d/e", "d/implicit"}[i%3])
				aside := filepath.Join(dir, "aside")
				_ = os.Symlink(v, aside)
				if unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE) == nil {
					time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond)
					_ = unix.Renameat2(unix.AT_FDCWD, name, unix.AT_FDCWD, aside, unix.RENAME_EXCHANGE)
				}
			}
		})
		if _, err := layer.Apply(t.Context(), bytes.NewReader(content), dir, nil, layer.Options{}); err != nil {
			refused++
		} else {
			done++
		}
		close(stop)
		swapper.Wait()
		check()
		if t.Failed() {
			return
		}
	}
	t.Logf("%d layers applied, %d refused", done, refused)
}
