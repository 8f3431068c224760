package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/layer"
	. "github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: owners and devices")
	}
}

// applied is a layer and where it was unpacked.
type applied struct {
	fs, kept string
	split    bytes.Buffer
	res      layer.Result
}

func apply(t testing.TB, content io.Reader, limits layer.Limits) (*applied, error) {
	t.Helper()
	dir := t.TempDir()
	a := &applied{fs: filepath.Join(dir, "fs"), kept: filepath.Join(dir, "kept")}
	for _, d := range []string{a.fs, a.kept} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.Open(a.kept)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	a.res, err = layer.Apply(t.Context(), content, a.fs, &a.split, layer.Options{Kept: kept, Limits: limits})
	return a, err
}

func mustApply(t testing.TB, content []byte) *applied {
	t.Helper()
	a, err := apply(t, bytes.NewReader(content), layer.Limits{})
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return a
}

func (a *applied) rebuild(t testing.TB) ([]byte, error) {
	t.Helper()
	var out bytes.Buffer
	err := layer.Rebuild(t.Context(), &out, layer.Source{Folder: a.fs, Kept: a.kept, Moves: a.res.Moves, Split: bytes.NewReader(a.split.Bytes())})
	return out.Bytes(), err
}

// ustar writes entries in another of tar's formats.
func ustar(format tar.Format, entries ...Entry) []byte {
	for i := range entries {
		entries[i].Format = format
		entries[i].ModTime = entries[i].ModTime.Truncate(time.Second)
	}
	return Layer(entries...)
}

func exactTars() map[string][]byte {
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	big := strings.Repeat("0123456789abcdef", 1<<16) // four blocks of the stream
	long := strings.Repeat("x", 150) + "/" + strings.Repeat("y", 200)
	return map[string][]byte{
		"no bytes at all":        {},
		"no entries":             Layer(),
		"pax":                    Layer(File("a", "a"), Dir("d", 0o700), File("d/"+long, "l"), File("e", "").With("user.x", "\x00\xff")),
		"ustar":                  ustar(tar.FormatUSTAR, File("a", "a"), File("b", strings.Repeat("b", 513)), File("c", strings.Repeat("c", 512))),
		"gnu":                    ustar(tar.FormatGNU, File(long, "l"), Symlink("s", long), Link("h", long)),
		"large files":            Layer(File("a", big), File("b", big[:len(big)-7]), File("c", big[5:])),
		"sparse, old":            join(oldSparse("s"), eof),
		"sparse, 0.1":            join(paxSparse01("s"), eof),
		"sparse, 1.0":            join(paxSparse10("s"), eof),
		"sparse among others":    join(Layer(File("a", "a"))[:1536+512], oldSparse("s"), paxSparse10("t"), rawHeader("u", '0', 0), eof),
		"no end":                 Layer(File("a", "a"))[:2048],
		"half an end":            Layer(File("a", "a"))[:2560],
		"padded end":             join(Layer(File("a", "a")), make([]byte, 3<<20+17)),
		"garbage after the end":  join(Layer(File("a", "a")), []byte("garbage"), Layer(File("b", "b"))),
		"duplicates":             Layer(File("a", "1"), File("a", "22"), File("a", ""), File("a", "333"), Dir("d", 0o700), File("d/a", "4"), File("d", "55"), Dir("d", 0o700), File("d/a", "6"), Symlink("d", "x")),
		"through symlinks":       Layer(Dir("d", 0o700), Symlink("s", "d"), File("s/f", "f"), Symlink("t", "/s"), File("t/g", "g"), Dir("s", 0o700), File("s/f", "other")),
		"whiteouts with content": Layer(Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: ".wh.x", Size: 3, Format: tar.FormatPAX}, Content: "abc"}, File("b", "b")),
		"link to what is below":  Layer(File("a", "a"), Link("l", "below"), File("l/x", "x"), File("b", "b")),
		"global header":          join(rawHeader("g", 'g', 0), Layer(File("a", "a"))),
		"not UTF-8":              Layer(File("\xff\xfe", "x"), File("\xff\xfe", "y")),
		"header in a header":     Layer(File("inner.tar", string(Layer(File("a", "a"))))),
	}
}

func TestRebuildGivesTheExactTar(t *testing.T) {
	needRoot(t)
	for name, content := range exactTars() {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			a := mustApply(t, content)
			if want := digest.FromBytes(content); a.res.DiffID != want || a.res.Size != int64(len(content)) {
				t.Errorf("diffID, size = %s, %d, want %s, %d", a.res.DiffID, a.res.Size, want, len(content))
			}
			got, err := a.rebuild(t)
			if err != nil {
				t.Fatalf("rebuild: %v", err)
			}
			if digest.FromBytes(got) != a.res.DiffID {
				t.Errorf("rebuilt tar of %d bytes differs from that of %d", len(got), len(content))
			}
		})
	}
}

// The tool that comes with tar-split can rebuild what needs none of berth's additions.
func TestSplitIsTarSplits(t *testing.T) {
	needRoot(t)
	content := Layer(Dir("d", 0o700), File("d/a", "a"), File("<&>\"\u2028", "quoted"), Symlink("s", "d"), File("\xff", "raw"))
	a := mustApply(t, content)
	var got bytes.Buffer
	unpacker := storage.NewJSONUnpacker(bytes.NewReader(a.split.Bytes()))
	if err := asm.WriteOutputTarStream(storage.NewPathFileGetter(a.fs), unpacker, &got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), content) {
		t.Error("tar-split rebuilds another tar")
	}
}

func TestRebuildFindsDamage(t *testing.T) {
	needRoot(t)
	for name, damage := range map[string]func(file string) error{
		"truncated":    func(f string) error { return os.Truncate(f, 0) },
		"longer":       func(f string) error { return os.Truncate(f, 1<<20) },
		"one bit":      func(f string) error { return os.WriteFile(f, []byte("contenu"), 0o600) },
		"gone":         os.Remove,
		"symlink":      func(f string) error { return errors.Join(os.Remove(f), os.Symlink("../f2", f)) },
		"FIFO":         func(f string) error { return errors.Join(os.Remove(f), unix.Mkfifo(f, 0o600)) },
		"sparse file":  func(f string) error { return os.Truncate(filepath.Join(filepath.Dir(f), "sparse"), 5) },
		"sparse holes": func(f string) error { return os.Truncate(filepath.Join(filepath.Dir(f), "sparse"), sparseSize-1) },
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			a := mustApply(t, bytes.Join([][]byte{Layer(File("f", "content"), File("f2", "content"))[:4096], oldSparse("sparse"), eof}, nil))
			if _, err := a.rebuild(t); err != nil {
				t.Fatalf("rebuild: %v", err)
			}
			if err := damage(filepath.Join(a.fs, "f")); err != nil {
				t.Fatal(err)
			}
			if _, err := a.rebuild(t); err == nil {
				t.Error("rebuilt from damaged content")
			}
		})
	}
	a := mustApply(t, Layer(File("f", "content")))
	a.split.Truncate(a.split.Len() - 10)
	if _, err := a.rebuild(t); err == nil {
		t.Error("rebuilt from a truncated split")
	}
}

func TestSparseFilesKeepTheirHoles(t *testing.T) {
	needRoot(t)
	for name, entry := range map[string][]byte{"old": oldSparse("s"), "0.1": paxSparse01("s"), "1.0": paxSparse10("s")} {
		a := mustApply(t, append(entry, eof...))
		got, err := os.ReadFile(filepath.Join(a.fs, "s"))
		if err != nil || !bytes.Equal(got, sparseContent()) {
			t.Errorf("%s: content differs (%v)", name, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(a.fs, "s"), &st); err != nil || st.Blocks*512 > 20<<10 {
			t.Errorf("%s: %d bytes of blocks, %v", name, st.Blocks*512, err)
		}
	}
}

func TestLimits(t *testing.T) {
	needRoot(t)
	var deep []Entry
	for i := range 100 {
		deep = append(deep, File(strings.Repeat("d"+string(rune('a'+i%26))+"/", 20+i)+"f", ""))
	}
	var again []Entry
	for range 20 {
		again = append(again, File("a", "x"))
	}
	var longAgain, dirs, bigDirs, whiteouts []Entry
	long := strings.Repeat("n", 200)
	for i := range 40 {
		longAgain = append(longAgain, File(strings.Repeat(long+"/", 5)+"f", "x"))
		bigDirs = append(bigDirs, Dir("d", 0o700).With("user.x", strings.Repeat("x", 60_000)))
		for j := range 40 {
			name := fmt.Sprint(i, "-", j)
			dirs, whiteouts = append(dirs, Dir(name, 0o700)), append(whiteouts, Whiteout(".", long+name))
		}
	}
	huge := gnuHeader("s", 'S', 0, func(b []byte) {
		copy(b[386:], "77777777777\x0000000000000\x00")
		copy(b[483:], "\x80\x00\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff") // 2^55 bytes
	})
	hugest := gnuHeader("t", 'S', 0, func(b []byte) {
		copy(b[386:], "77777777777\x0000000000000\x00")
		copy(b[483:], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") // 2^63-1 bytes
	})
	var xattrs Entry = File("x", "")
	for i := range 200 {
		xattrs = xattrs.With("user."+strings.Repeat("x", i+1), "v")
	}
	longName := File("x", "").With("user."+strings.Repeat("x", 251), "v")
	bigValue := File("x", "").With("user.x", strings.Repeat("x", 64<<10+1))
	for _, tc := range []struct {
		name    string
		content io.Reader
		limits  layer.Limits
		also    error
	}{
		{name: "bytes of content", content: bytes.NewReader(Layer(File("a", strings.Repeat("a", 1<<20)))), limits: layer.Limits{Bytes: 1 << 19}},
		{name: "bytes after the end", content: io.MultiReader(bytes.NewReader(Layer()), zeroReader{}), limits: layer.Limits{Bytes: 1 << 26}},
		{name: "entries", content: bytes.NewReader(Layer(deep[:3]...)), limits: layer.Limits{Entries: 10}},
		{name: "directories without an entry", content: bytes.NewReader(Layer(deep...)), limits: layer.Limits{Entries: 1000}},
		{name: "replaced", content: bytes.NewReader(Layer(again...)), limits: layer.Limits{Replaced: 10}},
		{name: "names of what is replaced", content: bytes.NewReader(Layer(longAgain...)), limits: layer.Limits{Replaced: 100}},
		{name: "paths of directories without an entry", content: bytes.NewReader(Layer(File(strings.Repeat("d/", 1500)+"f", ""))), limits: layer.Limits{Memory: 1 << 20}},
		{name: "directories", content: bytes.NewReader(Layer(dirs...)), limits: layer.Limits{Memory: 1 << 18}},
		{name: "attributes of directories", content: bytes.NewReader(Layer(bigDirs...)), limits: layer.Limits{Memory: 1 << 20}},
		{name: "whiteouts", content: bytes.NewReader(Layer(whiteouts...)), limits: layer.Limits{Memory: 1 << 18}},
		{name: "sparse length", content: bytes.NewReader(append(huge, eof...))},
		{name: "sparse lengths that overflow", content: bytes.NewReader(slices.Concat(oldSparse("s"), hugest, eof))},
		{name: "sparse lengths", content: bytes.NewReader(bytes.Repeat(oldSparse("s"), 20)), limits: layer.Limits{Bytes: 15 * sparseSize}},
		{name: "extended attributes", content: bytes.NewReader(Layer(xattrs))},
		{name: "name of an extended attribute", content: bytes.NewReader(Layer(longName))},
		{name: "value of an extended attribute", content: bytes.NewReader(Layer(bigValue))},
		{name: "free bytes", content: bytes.NewReader(Layer(File("a", ""))), limits: layer.Limits{FreeBytes: 1 << 60}, also: unix.ENOSPC},
		{name: "free inodes", content: bytes.NewReader(Layer(File("a", ""))), limits: layer.Limits{FreeInodes: 1 << 60}, also: unix.ENOSPC},
	} {
		start := time.Now()
		_, err := apply(t, tc.content, tc.limits)
		if !errors.Is(err, layer.ErrLimit) || tc.also != nil && !errors.Is(err, tc.also) {
			t.Errorf("%s: %v, want ErrLimit", tc.name, err)
		}
		if d := time.Since(start); d > 30*time.Second {
			t.Errorf("%s: refused after %v", tc.name, d)
		}
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// L9, L10: what the tar format allows to be said and nobody means.
func TestMalformedTars(t *testing.T) {
	needRoot(t)
	far := strings.Repeat("a/", 1500)
	manyRegions := make([]byte, 8<<20)
	for i := range manyRegions {
		manyRegions[i] = "1\n"[i%2]
	}
	for name, content := range map[string]io.Reader{
		"PAX header of 1 GiB":   io.MultiReader(bytes.NewReader(rawHeader("x", 'x', 1<<30)), io.LimitReader(zeroReader{}, 1<<30)),
		"long name of 1 GiB":    io.MultiReader(bytes.NewReader(gnuHeader("x", 'L', 1<<30, func([]byte) {})), io.LimitReader(zeroReader{}, 1<<30)),
		"negative size":         bytes.NewReader(append(paxHeader([2]string{"size", "-5"}), rawHeader("x", '0', 5)...)),
		"size of 2^63-1":        bytes.NewReader(append(paxHeader([2]string{"size", "9223372036854775807"}), rawHeader("x", '0', 5)...)),
		"unknown type":          bytes.NewReader(append(rawHeader("x", 'Q', 0), eof...)),
		"one block of zeros":    bytes.NewReader(append(make([]byte, 512), rawHeader("x", '0', 0)...)),
		"wrong header checksum": bytes.NewReader(append([]byte("y"), append(rawHeader("x", '0', 0), eof...)[1:]...)),
		"sparse map of 4,000,000": bytes.NewReader(bytes.Join([][]byte{
			paxHeader([2]string{"GNU.sparse.major", "1"}, [2]string{"GNU.sparse.minor", "0"}, [2]string{"GNU.sparse.name", "s"}, [2]string{"GNU.sparse.realsize", "9"}),
			rawHeader("x", '0', int64(len(manyRegions))), []byte("4000000\n"), manyRegions}, nil)),
		"capability that is none":   bytes.NewReader(Layer(File("a", "a").With("security.capability", "x"))),
		"capability of a folder":    bytes.NewReader(Layer(Dir("a", 0o700).With("security.capability", "x"))),
		"capability of a device":    bytes.NewReader(Layer(Char("a", 1, 3).With("security.capability", "x"))),
		"way longer than a path is": bytes.NewReader(Layer(File(far+"f", ""), Symlink("s", far), File("s/"+far+"f", ""))),
		"sparse data missing":       bytes.NewReader(bytes.Join([][]byte{oldSparse("s")[:1024], make([]byte, 100)}, nil)),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := apply(t, content, layer.Limits{})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, layer.ErrInvalid) && !errors.Is(err, layer.ErrLimit) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
			t.Errorf("%s: %d MiB allocated", name, grown>>20)
		}
	}
}

func TestApplyEndsWithItsContext(t *testing.T) {
	needRoot(t)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
	ended := make(chan error, 1)
	dir := t.TempDir()
	go func() {
		_, err := layer.Apply(ctx, r, dir, nil, layer.Options{})
		ended <- err
	}()
	if _, err := w.Write(Layer(File("a", strings.Repeat("a", 1<<20)))[:600_000]); err != nil {
		t.Fatal(err)
	}
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("apply = %v, want context.Canceled", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("apply goes on")
	}
	for range 2000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, before %d", runtime.NumGoroutine(), before)
}

// A reader that never waits and never ends is given up, too.
func TestApplyOfAnEndlessReaderEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	after := readerFunc(func(p []byte) (int, error) {
		cancel()
		clear(p)
		return len(p), nil
	})
	_, err := layer.Apply(ctx, io.MultiReader(bytes.NewReader(Layer()), after), t.TempDir(), nil, layer.Options{Limits: layer.Limits{Bytes: 1 << 28}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("apply = %v, want context.Canceled", err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// The caller's reader is the caller's again when Apply returns.
func TestApplyReadsNoMoreWhenItHasReturned(t *testing.T) {
	var returned, late atomic.Bool
	slow := readerFunc(func(p []byte) (int, error) {
		time.Sleep(100 * time.Millisecond) // longer than Apply needs to find the first block malformed
		if returned.Load() {
			late.Store(true)
		}
		return len(p), nil
	})
	malformed := bytes.Repeat([]byte("not tar "), 256<<10/8) // a block of the stream
	_, err := layer.Apply(t.Context(), io.MultiReader(bytes.NewReader(malformed), slow), t.TempDir(), nil, layer.Options{})
	returned.Store(true)
	time.Sleep(200 * time.Millisecond) // nobody is waited for who ought to come: this is too short at worst
	if late.Load() || !errors.Is(err, layer.ErrInvalid) {
		t.Errorf("apply = %v, read after it returned: %v", err, late.Load())
	}
}

func TestReaderErrorsAreKept(t *testing.T) {
	needRoot(t)
	want := errors.New("the registry went away")
	whole := Layer(File("a", strings.Repeat("a", 1<<20)), File("b", ""))
	for _, n := range []int{0, 100, 512, 5000, 1 << 20, len(whole)} {
		_, err := apply(t, io.MultiReader(bytes.NewReader(whole[:n]), errReader{want}), layer.Limits{})
		if !errors.Is(err, want) {
			t.Errorf("after %d bytes: %v, want %v", n, err, want)
		}
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// A directory's setgid bit and default ACL must not reach what the layer puts into it.
func TestDirectoriesDoNotBequeath(t *testing.T) {
	needRoot(t)
	acl := "\x02\x00\x00\x00" + // version 2: tag, permissions, ID
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" + "\x04\x00\x07\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x07\x00\xff\xff\xff\xff"
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	a := mustApply(t, Layer(
		Dir("d", 0o2777).As(5, 6, 0o2777).With("system.posix_acl_default", acl),
		File("d/f", "f").As(0, 0, 0o666), Dir("d/d", 0o777), File("d/i/f", "")))
	for name, want := range map[string]uint32{"d": 0o42777, "d/f": 0o100666, "d/d": 0o40777, "d/i": 0o40755, "d/i/f": 0o100644} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(a.fs, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode != want || name != "d" && (st.Uid != 0 || st.Gid != 0) {
			t.Errorf("%s: mode %o, owner %d:%d, want mode %o", name, st.Mode, st.Uid, st.Gid, want)
		}
		if n, _ := unix.Llistxattr(filepath.Join(a.fs, name), nil); n != 0 && name != "d" {
			t.Errorf("%s has extended attributes", name)
		}
	}
}

func TestDroppedXattrsAreCounted(t *testing.T) {
	needRoot(t)
	a := mustApply(t, Layer(File("a", "").With("trusted.overlay.opaque", "y").With("user.overlay.metacopy", "").With("user.ok", "1").With("security.selinux", "x"),
		Dir("d", 0o755).With("trusted.overlay.redirect", "/etc")))
	if a.res.DroppedXattrs != 4 {
		t.Errorf("%d dropped, want 4", a.res.DroppedXattrs)
	}
	for _, name := range []string{"a", "d"} {
		buf := make([]byte, 1000)
		n, err := unix.Llistxattr(filepath.Join(a.fs, name), buf)
		if got := strings.TrimSuffix(string(buf[:max(n, 0)]), "\x00"); err != nil || got != map[string]string{"a": "user.ok", "d": ""}[name] {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
}
