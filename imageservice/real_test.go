package imageservice

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/imageservice/snapshot"
	"github.com/berthd/berth/test/wait"
)

// needRoot skips a test that unpacks, owns and mounts.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: it makes files of other owners and mounts them")
	}
}

// openReal opens a service with the real snapshotter below root.
func openReal(t testing.TB, root string) *Service {
	t.Helper()
	s, err := Open(t.Context(), Config{Root: root, Registry: registry.Config{Backoff: 5 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func startReal(t testing.TB) *registrytest.Registry {
	t.Helper()
	reg, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	return reg
}

func realImage() registrytest.Image {
	return registrytest.Image{
		Layers: []registrytest.Layer{
			{Files: []registrytest.File{
				{Name: "etc/"}, {Name: "etc/passwd", Body: []byte("root:x:0:0\n")}, {Name: "usr/bin/tool", Body: []byte("#!"), Mode: 0o755},
				{Name: "bin", Type: tar.TypeSymlink, Linkname: "usr/bin"}, {Name: "gone", Body: []byte("x")},
			}},
			{Files: []registrytest.File{{Name: ".wh.gone"}, {Name: "bin/other", Body: []byte("o")}, {Name: "etc/passwd", Body: []byte("new\n")}}, Compression: registrytest.Zstd},
			{Files: []registrytest.File{{Name: "etc/group", Type: tar.TypeLink, Linkname: "etc/passwd"}}, Compression: registrytest.Plain},
		},
		Config: ocispec.ImageConfig{User: "1000"},
	}
}

func TestPulledImageIsStackedExactly(t *testing.T) {
	needRoot(t)
	reg := startReal(t)
	p, err := reg.Push("a/b", "1", realImage())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	s := openReal(t, root)
	id, err := s.Pull(t.Context(), p.Ref, Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		for path, want := range map[string]string{
			"etc/passwd": "new\n", "/etc/group": "new\n", "usr/bin/other": "o", "bin/other": "o", "bin/tool": "#!", "gone": "",
		} {
			got, err := s.ReadFile(t.Context(), id, path, 100)
			if string(got) != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("ReadFile(%s) = %q, %v, want %q", path, got, err, want)
			}
		}
		mounts, err := s.Prepare(t.Context(), "c1", id)
		if err != nil || len(mounts) == 0 {
			t.Fatalf("Prepare = %v, %v", mounts, err)
		}
		again, err := s.Mounts("c1")
		if err != nil || fmt.Sprint(again) != fmt.Sprint(mounts) {
			t.Errorf("Mounts = %v, %v", again, err)
		}
		images, containers, err := s.FsUsage(t.Context())
		if err != nil || images.Bytes == 0 || images.Inodes < 9 || containers.Inodes == 0 {
			t.Errorf("FsUsage = %+v, %+v, %v", images, containers, err)
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openReal(t, root)
	check()
	if len(s.Problems()) != 0 {
		t.Errorf("problems: %v", s.Problems())
	}
	if err := s.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if dirs := list(t, filepath.Join(root, "layers")); len(dirs) != 3 {
		t.Errorf("layers below a writable layer: %v", dirs)
	}
	if err := s.Release(t.Context(), "c1"); err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if len(list(t, filepath.Join(root, "layers")))+len(list(t, filepath.Join(root, "trash"))) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, name := range []string{"layers", "chains", "containers", "ingest", "trash", "records"} {
		if left := list(t, filepath.Join(root, name)); len(left) != 0 {
			t.Errorf("%s: %v left", name, left)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func list(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// used is what is taken on the file system of dir.
func used(t testing.TB, dir string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Frsize
}

func TestFullDiskDuringAPull(t *testing.T) {
	needRoot(t)
	reg := startReal(t)
	small, err := reg.Push("a/small", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("s", "s")}})
	if err != nil {
		t.Fatal(err)
	}
	// Packed it is small enough to begin, unpacked it is not.
	big, err := reg.Push("a/big", "1", registrytest.Image{Layers: []registrytest.Layer{
		layerOf("a", strings.Repeat("a", 30<<20)), layerOf("b", strings.Repeat("b", 200<<20)), layerOf("c", strings.Repeat("c", 30<<20)),
	}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=192m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	s := openReal(t, filepath.Join(dir, "images"))
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	if _, err := s.Pull(t.Context(), small.Ref, Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	before := used(t, dir)
	for range 2 {
		_, err = s.Pull(t.Context(), big.Ref, Auth{}, nil)
		if !errors.Is(err, unix.ENOSPC) || errors.Is(err, ErrRegistryUnavailable) {
			t.Errorf("Pull: %v, want ENOSPC", err)
		}
		for range 3000 {
			if used(t, dir) <= before+64<<10 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if after := used(t, dir); after > before+64<<10 {
			t.Errorf("%d bytes used after the failure, %d before", after, before)
		}
	}
	if err := s.Remove(t.Context(), small.Ref); err != nil {
		t.Errorf("Remove: %v", err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1g"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(t.Context(), big.Ref, Auth{}, nil); err != nil {
		t.Errorf("with room: %v", err)
	}
}

// TestLayersAreUnpackedAtOnce: whichever layer the registry stalls with, after a part of it, the other one is fetched and unpacked meanwhile.
func TestLayersAreUnpackedAtOnce(t *testing.T) {
	needRoot(t)
	for slow := range 2 {
		reg := startReal(t)
		p, err := reg.Push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{noise(1, 1<<20), noise(2, 1<<20)}})
		if err != nil {
			t.Fatal(err)
		}
		reg.AddFault(registrytest.Fault{Path: p.Layers[slow].Digest.String(), Cut: registrytest.Stall, At: 400_000})
		s := openReal(t, filepath.Join(t.TempDir(), "images"))
		ctx, cancel := context.WithCancel(t.Context())
		pulled := make(chan error, 1)
		go func() {
			_, err := s.Pull(ctx, p.Ref, Auth{}, nil)
			pulled <- err
		}()
		var seen []Progress
		if !wait.Until(time.Minute, 10*time.Millisecond, func() bool {
			seen = s.Pulls("")
			return len(seen) == 1 && len(seen[0].Layers) == 2 && seen[0].Layers[slow].Bytes > 0 && seen[0].Layers[1-slow].State == StateDone
		}) {
			t.Errorf("while layer %d stalls: %+v", slow, seen)
		}
		cancel()
		if err := <-pulled; !errors.Is(err, context.Canceled) {
			t.Errorf("Pull = %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoCompressedBlobIsKept: what is on the disk after a pull is the layers' files, and no layer as the registry has it.
func TestNoCompressedBlobIsKept(t *testing.T) {
	needRoot(t)
	reg, root := startReal(t), filepath.Join(t.TempDir(), "images")
	s := openReal(t, root)
	blobs := map[digest.Digest]bool{}
	for i, pack := range []registrytest.Compression{registrytest.Gzip, registrytest.Zstd, registrytest.Plain} {
		p, err := reg.Push("a/b", fmt.Sprint(i), registrytest.Image{Compression: pack, Layers: []registrytest.Layer{noise(byte(i), 2<<20)}})
		if err != nil {
			t.Fatal(err)
		}
		blobs[p.Layers[0].Digest] = true
		if _, err := s.Pull(t.Context(), p.Ref, Auth{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var all int64
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if all += int64(len(content)); blobs[digest.FromBytes(content)] {
			t.Errorf("%s is a layer's blob", path)
		}
		return err
	})
	if err != nil || all < 6<<20 || all > 7<<20 {
		t.Errorf("%d bytes are kept of three layers of 2 MiB each that cannot be compressed, %v", all, err)
	}
}

func TestInterruptedPullIsClearedAtOpen(t *testing.T) {
	needRoot(t)
	reg := startReal(t)
	p, err := reg.Push("a/b", "1", realImage())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	store, err := snapshot.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	// As after a kill: layers ingested, and published, and no record.
	s := openReal(t, root)
	if _, err := s.Pull(t.Context(), p.Ref, Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(root, "records")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "ingest", "half", "fs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), store.Close()); err != nil {
		t.Fatal(err)
	}
	s = openReal(t, root)
	for range 3000 {
		if len(list(t, filepath.Join(root, "trash"))) == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, name := range []string{"layers", "chains", "ingest", "trash"} {
		if left := list(t, filepath.Join(root, name)); len(left) != 0 {
			t.Errorf("%s: %v left", name, left)
		}
	}
	if _, err := s.Pull(t.Context(), p.Ref, Auth{}, nil); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkPull pulls nine layers of files of the sizes that images have.
func BenchmarkPull(b *testing.B) {
	needRoot(b)
	reg := startReal(b)
	p, err := reg.Push("a/b", "1", benchImage(90<<20))
	if err != nil {
		b.Fatal(err)
	}
	root := filepath.Join(b.TempDir(), "images")
	s := openReal(b, root)
	defer s.Close()
	var size uint64
	for b.Loop() {
		id, err := s.Pull(context.Background(), p.Ref, Auth{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		img, err := s.Image(id)
		if err != nil {
			b.Fatal(err)
		}
		size = img.Size
		b.StopTimer()
		if err := s.Remove(context.Background(), id); err != nil {
			b.Fatal(err)
		}
		for len(list(b, filepath.Join(root, "trash"))) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		b.StartTimer()
	}
	b.SetBytes(int64(size))
}

// benchImage has nine layers of about size bytes each, which pack to a third.
func benchImage(size int) registrytest.Image {
	words := strings.Fields("the of and to in is you that it he was for on are as with his they at be this have from or one had by word but not what all were we when your can said there use an each which she do how their if will up other about out many then them these so some her would make like him into time has look two more write go see number no way could people my than first water been call who oil its now find long down day did get come made may part")
	img := registrytest.Image{}
	seed := uint32(1)
	for l := range 9 {
		var files []registrytest.File
		for total, n := 0, 0; total < size; n++ {
			var body strings.Builder
			length := 2000
			switch {
			case n%50 == 0:
				length = 4 << 20
			case n%5 == 0:
				length = 40_000
			}
			for body.Len() < length {
				seed = seed*1664525 + 1013904223
				body.WriteString(words[(seed>>16)%uint32(len(words))])
				if seed&0x700000 == 0 {
					fmt.Fprintf(&body, "%x", seed)
				}
			}
			total += length
			files = append(files, registrytest.File{Name: fmt.Sprintf("l%d/d%d/f%d", l, n/100, n), Body: []byte(body.String())})
		}
		img.Layers = append(img.Layers, registrytest.Layer{Files: files})
	}
	return img
}
