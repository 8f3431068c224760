package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/layer"
	"github.com/berthd/berth/imageservice/snapshot"
	"github.com/berthd/berth/imageservice/snapshot/snapshottest"
	"github.com/berthd/berth/test/wait"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: owners, devices and overlayfs")
	}
}

func TestConformance(t *testing.T) {
	mounts := mountTable(t)
	snapshottest.Run(t, func(root string) (snapshottest.Snapshotter, error) { return snapshot.Open(root) })
	if got := mountTable(t); got != mounts {
		t.Errorf("the mount table was changed")
	}
}

// mountTable lists the overlay mounts: others come and go on a busy host.
func mountTable(t *testing.T) (lines string) {
	t.Helper()
	all, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, os.TempDir()+"/TestConformance") {
			lines += line
		}
	}
	return lines
}

func open(t *testing.T, root string) *snapshot.Store {
	t.Helper()
	store, err := snapshot.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

func TestFoldersAreClosedToOthers(t *testing.T) {
	needRoot(t)
	old := unix.Umask(0)
	defer unix.Umask(old)
	root := filepath.Join(t.TempDir(), "images")
	for _, dir := range []string{"", "layers", "containers"} { // left open by someone
		if err := os.MkdirAll(filepath.Join(root, dir), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(root, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	store := open(t, root)
	layers := crashLayers()
	if err := snapshottest.Publish(t.Context(), store, layers...); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Prepare(t.Context(), "k", snapshottest.DiffIDs(layers...)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := filepath.Base(path); base == "fs" || base == "upper" {
			return filepath.SkipDir // the image's own
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %v", path, info.Mode())
		}
		if filepath.Base(path) == "kept" {
			return filepath.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A record that is bad makes that one object unknown, not the store.
func TestBadRecords(t *testing.T) {
	needRoot(t)
	layers := crashLayers()
	ids := snapshottest.DiffIDs(layers...)
	other := snapshottest.Layer(snapshottest.File("other", ""))
	for name, damage := range map[string]func(file string) error{
		"empty":       func(f string) error { return os.Truncate(f, 0) },
		"cut":         func(f string) error { return os.Truncate(f, 100) },
		"bit flipped": flip,
		"gone":        os.Remove,
		"directory":   func(f string) error { return errors.Join(os.Remove(f), os.Mkdir(f, 0o700)) },
		"another's":   func(f string) error { return os.WriteFile(f, []byte("{}"), 0o600) },
		"future version": func(f string) error {
			return os.WriteFile(f, []byte("berth-snapshot 99 "+strings.Repeat("0", 64)+"\n{}"), 0o600)
		},
	} {
		for _, kind := range []string{"layers/*/layer", "chains/*/chain", "containers/k/stack"} {
			t.Run(strings.ReplaceAll(name, " ", "_")+"_"+filepath.Base(kind), func(t *testing.T) {
				root := t.TempDir()
				store := open(t, root)
				for _, stack := range [][][]byte{layers, {other}} {
					if err := snapshottest.Publish(t.Context(), store, stack...); err != nil {
						t.Fatal(err)
					}
				}
				for key, stack := range map[string][]digest.Digest{"k": ids, "o": snapshottest.DiffIDs(other)} {
					if _, err := store.Prepare(t.Context(), key, stack); err != nil {
						t.Fatal(err)
					}
				}
				mounts, err := store.Mounts("k")
				if err != nil {
					t.Fatal(err)
				}
				running := snapshottest.Open(t, mounts)
				store.Close()
				files, _ := filepath.Glob(filepath.Join(root, kind))
				for _, f := range files {
					if strings.Contains(f, snapshottest.DiffIDs(other)[0].Encoded()) {
						continue
					}
					if err := damage(f); err != nil {
						t.Fatal(err)
					}
				}

				store = open(t, root)
				if len(store.Problems()) == 0 {
					t.Error("no problems")
				}
				if err := store.Prune(t.Context(), nil); err != nil {
					t.Errorf("prune: %v", err)
				}
				if err := store.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				if _, err := snapshottest.Tree(running); err != nil {
					t.Errorf("the running container lost its files: %v", err)
				}
				if _, err := store.Mounts("o"); err != nil {
					t.Errorf("another was damaged, too: %v", err)
				}
				for _, key := range []string{"k", "o"} {
					if err := store.Remove(t.Context(), key); err != nil {
						t.Errorf("remove: %v", err)
					}
				}
				// A new pull puts it right, and what was damaged goes.
				snapshottest.Check(t, store, layers...)
				if err := store.Prune(t.Context(), nil); err != nil {
					t.Errorf("prune: %v", err)
				}
				if err := store.Wait(t.Context()); err != nil {
					t.Error(err)
				}
				for _, dir := range []string{"layers", "chains", "containers", "ingest", "trash", "damaged"} {
					if left, _ := os.ReadDir(filepath.Join(root, dir)); len(left) > 0 {
						t.Errorf("left in %s: %v", dir, left)
					}
				}
			})
		}
	}
}

func flip(file string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	content[len(content)-3] ^= 1
	return os.WriteFile(file, content, 0o600)
}

// A record that cannot be opened for want of descriptors or memory is not damaged: nothing is put aside, and the store does not open.
func TestOpenInAShortage(t *testing.T) {
	needRoot(t)
	root, layers := t.TempDir(), crashLayers()
	store := open(t, root)
	if err := snapshottest.Publish(t.Context(), store, layers...); err != nil {
		t.Fatal(err)
	}
	ids := snapshottest.DiffIDs(layers...)
	if _, err := store.Prepare(t.Context(), "k", ids, ids[:1]); err != nil {
		t.Fatal(err)
	}
	store.Close()
	for _, name := range []string{"layer", "chain", "stack", "kept"} {
		for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
			end := snapshot.FailReads(t, name, errno)
			if store, err := snapshot.Open(root); !errors.Is(err, errno) || !strings.Contains(err.Error(), root) {
				t.Errorf("Open without %s, by %v = %v, %v", name, errno, store, err)
				if err == nil {
					store.Close()
				}
			}
			end()
		}
	}
	store = open(t, root)
	if p := store.Problems(); len(p) > 0 {
		t.Errorf("problems afterwards: %v", p)
	}
	if _, err := store.Mounts("k"); err != nil {
		t.Error(err)
	}
	snapshottest.Check(t, store, layers...)
}

func TestVerifyFindsDamage(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	store, content := open(t, root), snapshottest.Layer(snapshottest.File("f", "content"))
	if err := snapshottest.Publish(t.Context(), store, content); err != nil {
		t.Fatal(err)
	}
	id := snapshottest.DiffIDs(content)[0]
	if err := store.Verify(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "layers", id.Encoded(), "fs", "f"), []byte("CONTENT"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Verify(t.Context(), id); err == nil {
		t.Error("verified")
	}
}

// A failed ingest leaves nothing, and the next one works.
func TestFailedIngestGivesItsSpaceBack(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	store, content := open(t, root), snapshottest.Layer(snapshottest.File("f", strings.Repeat("x", 1<<20)))
	id := snapshottest.DiffIDs(content)[0]
	store.SetLimits(layer.Limits{FreeBytes: 1 << 60})
	if err := store.Ingest(t.Context(), id, bytes.NewReader(content)); !errors.Is(err, layer.ErrLimit) || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("ingest on a full disk = %v", err)
	}
	store.SetLimits(layer.Limits{})
	if err := store.Ingest(t.Context(), id, bytes.NewReader(content[:5000])); !errors.Is(err, layer.ErrInvalid) {
		t.Errorf("ingest of half a layer = %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := store.Ingest(ctx, id, bytes.NewReader(content)); !errors.Is(err, context.Canceled) {
		t.Errorf("ingest, cancelled = %v", err)
	}
	if err := store.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"ingest", "trash", "layers"} {
		if left, _ := os.ReadDir(filepath.Join(root, dir)); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
	if bytes, inodes := store.LayersUsage(); bytes != 0 || inodes != 0 {
		t.Errorf("usage = %d bytes, %d inodes", bytes, inodes)
	}
	snapshottest.Check(t, store, content)
	if bytes, inodes := store.LayersUsage(); bytes < 1<<20 || bytes > 2<<20 || inodes < 5 {
		t.Errorf("usage = %d bytes, %d inodes", bytes, inodes)
	}
	if err := store.Ingest(t.Context(), snapshottest.DiffIDs(snapshottest.Layer())[0], bytes.NewReader(snapshottest.Layer())); err != nil {
		t.Fatal(err)
	}
	if err := store.Discard(t.Context(), snapshottest.DiffIDs(snapshottest.Layer())...); err != nil {
		t.Fatal(err)
	}
	if err := store.Publish(t.Context(), snapshottest.DiffIDs(snapshottest.Layer())); !errors.Is(err, snapshot.ErrNotFound) {
		t.Errorf("publish of what was discarded = %v", err)
	}
}

// A container can nest directories deeper than a path can name, make files that root may not delete, and move things
// about while they are counted.
func TestHostileWritableLayer(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	store, content := open(t, root), snapshottest.Layer(snapshottest.File("f", ""))
	if err := snapshottest.Publish(t.Context(), store, content); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Prepare(t.Context(), "k", snapshottest.DiffIDs(content)); err != nil {
		t.Fatal(err)
	}
	upper := filepath.Join(root, "containers", "k", "upper")
	const depth = 5_000
	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	unix.Close(fd)
	if err := os.WriteFile(filepath.Join(upper, "a"), make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(upper, "a"), filepath.Join(upper, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(upper, "locked"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"locked/f", "locked"} {
		f, err := os.OpenFile(filepath.Join(upper, name), os.O_RDONLY, 0)
		if errors.Is(err, os.ErrNotExist) {
			f, err = os.Create(filepath.Join(upper, name))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0x10); err != nil {
			t.Logf("the file system has no immutable files: %v", err)
		}
		f.Close()
	}
	const wide = 5_000 // more than a walk remembers
	for i := range wide {
		if err := os.MkdirAll(filepath.Join(upper, "wide", strconv.Itoa(i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	const movers = 20
	move := func(from, to string) {
		for i := range movers {
			_ = os.Rename(filepath.Join(upper, fmt.Sprint(from, i), "d"), filepath.Join(upper, fmt.Sprint(to, i), "d"))
		}
	}
	for i := range movers {
		for _, name := range []string{fmt.Sprint("here", i, "/d/d/d/d"), fmt.Sprint("there", i)} {
			if err := os.MkdirAll(filepath.Join(upper, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	bytes, inodes, err := store.Usage(t.Context(), "k")
	var folder unix.Stat_t // a file system may have folders that take no blocks
	if err := unix.Stat(filepath.Join(upper, "wide", "0"), &folder); err != nil {
		t.Fatal(err)
	}
	if want, least := int64(depth+wide+5+6*movers), depth*folder.Blocks*512+1<<16; err != nil || inodes != want || bytes < least {
		t.Errorf("usage = %d bytes, %d inodes, %v, want %d inodes and %d bytes at least", bytes, inodes, err, want, least)
	}

	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				_ = os.Rename(filepath.Join(upper, "d/d/d"), filepath.Join(upper, "x"))
				move("here", "there")
				_ = os.Rename(filepath.Join(upper, "x"), filepath.Join(upper, "d/d/d"))
				move("there", "here")
			}
		}
	}()
	for range 10 { // what moves is met at both its places at most, and what does not is met
		if _, inodes, err := store.Usage(t.Context(), "k"); err != nil || inodes > 2*depth+wide+5+10*movers || inodes < wide+5+2*movers {
			t.Errorf("usage = %d inodes, %v", inodes, err)
		}
	}
	close(stop)
	<-ended
	before := openFiles(t)
	if err := store.Remove(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := store.Wait(t.Context()); err != nil {
		t.Errorf("delete: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "trash")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if !wait.Until(20*time.Second, time.Millisecond, func() bool { return openFiles(t) <= before }) {
		t.Fatalf("%d open files, before %d", openFiles(t), before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Close stops a deletion; the next Open goes on with it.
func TestDeletionGoesOnAfterReopening(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	var entries []snapshottest.Entry
	for i := range 3000 {
		entries = append(entries, snapshottest.File(fmt.Sprint("f", i), ""))
	}
	store, content := open(t, root), snapshottest.Layer(entries...)
	if err := snapshottest.Publish(t.Context(), store, content); err != nil {
		t.Fatal(err)
	}
	if err := store.Prune(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	store.Close()
	store = open(t, root)
	if err := store.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(filepath.Join(root, "trash")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Pulls of images with common layers, containers and prunes, all at once; meaningful with -race.
func TestConcurrentUse(t *testing.T) {
	needRoot(t)
	before := runtime.NumGoroutine()
	store := open(t, t.TempDir())
	layers := crashLayers()
	ids := snapshottest.DiffIDs(layers...)
	var errs = make(chan error, 100)
	end := time.Now().Add(2 * time.Second)
	for n := range 6 {
		go func() {
			errs <- func() error {
				for i := 0; time.Now().Before(end); i++ {
					top := 1 + (n+i)%3
					if err := snapshottest.Publish(t.Context(), store, layers[:top]...); err != nil && !errors.Is(err, snapshot.ErrNotFound) {
						return fmt.Errorf("publish: %w", err)
					}
					key := fmt.Sprintf("k-%d-%d", n, i)
					if _, err := store.Prepare(t.Context(), key, ids[:top]); err == nil {
						if _, err := store.ReadFile(t.Context(), ids[:top], "d/59", 1<<20); err != nil {
							return fmt.Errorf("read below a container: %w", err)
						}
						if _, _, err := store.Usage(t.Context(), key); err != nil {
							return err
						}
					} else if !errors.Is(err, snapshot.ErrNotFound) {
						return fmt.Errorf("prepare: %w", err)
					}
					if err := store.Remove(t.Context(), key); err != nil {
						return fmt.Errorf("remove: %w", err)
					}
					if n == 0 {
						if err := store.Prune(t.Context(), ids[:i%3]); err != nil {
							return fmt.Errorf("prune: %w", err)
						}
					}
				}
				return nil
			}()
		}()
	}
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	store.Close()
	for range 2000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines, before %d", runtime.NumGoroutine(), before)
}

// overlayfs stacks 500 folders and no more; 500 layers are no reason to fall over.
func TestTooManyLayers(t *testing.T) {
	needRoot(t)
	store := open(t, t.TempDir())
	var layers [][]byte
	for i := range 510 {
		layers = append(layers, snapshottest.Layer(snapshottest.File(fmt.Sprint("f", i), "")))
	}
	if err := snapshottest.Publish(t.Context(), store, layers...); !errors.Is(err, snapshot.ErrTooManyLayers) {
		t.Errorf("publish of 510 layers = %v", err)
	}
	ids := snapshottest.DiffIDs(layers[:500]...)
	if err := store.Publish(t.Context(), ids); err != nil {
		t.Fatalf("publish of 500 layers: %v", err)
	}
	if _, err := store.ReadFile(t.Context(), ids, "f0", 1); err != nil {
		t.Error(err)
	}
}
