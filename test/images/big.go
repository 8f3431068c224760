package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

// bigTime is the time of all files.
var bigTime = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)

// bigFile is the largest file that Big takes: one file must not be most of a layer.
const bigFile = 24 << 20

// Big makes layers of real files of this machine, each unpacking to as many bytes of content as its size says, packed with gzip. It
// is for measuring pulls. The files differ from machine to machine, so figures of two machines are not compared; when the machine has
// too few they come again under another folder.
func Big(sizes ...int64) ([]registrytest.Layer, error) {
	var need int64
	for _, size := range sizes {
		need += size
	}
	found, err := machineFiles(need)
	if err != nil {
		return nil, err
	}
	layers := make([]registrytest.Layer, len(sizes))
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	next, again := 0, 0
	for i, size := range sizes {
		w := bigLayer{left: size}
		for planned := size; planned > 0; next++ {
			if next == len(found) {
				next, again = 0, again+1
			}
			f := found[next]
			w.files = append(w.files, bigEntry{machineFile: f, again: again})
			planned -= f.size
		}
		g.Go(func() (err error) {
			layers[i], err = w.write()
			return err
		})
	}
	return layers, g.Wait()
}

// machineFile is a regular file of this machine.
type machineFile struct {
	path string
	size int64
	exec bool
}

// machineFiles lists files with about as many bytes as are needed: sources, programs, libraries and documents in turns, so
// that layers are alike.
func machineFiles(need int64) ([]machineFile, error) {
	goroot, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, fmt.Errorf("find Go's folder: %w", err)
	}
	top := strings.TrimSpace(string(goroot))
	var lists [][]machineFile
	for _, dir := range []string{filepath.Join(top, "src"), filepath.Join(top, "pkg"), "/usr/lib", "/usr/share", "/usr/bin", "/usr/include"} {
		list, err := listFiles(dir, need)
		if err != nil {
			return nil, err
		}
		if len(list) > 0 {
			lists = append(lists, list)
		}
	}
	if len(lists) == 0 {
		return nil, fmt.Errorf("make a big image: this machine has no files for it")
	}
	return interleave(lists), nil
}

// listFiles lists the regular files below a folder, as far as need goes. A folder that is not there has none.
func listFiles(dir string, need int64) ([]machineFile, error) {
	var list []machineFile
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // what cannot be read is left out
		}
		st, err := e.Info()
		if err != nil || st.Size() == 0 || st.Size() > bigFile {
			return nil
		}
		list = append(list, machineFile{path: path, size: st.Size(), exec: st.Mode()&0o100 != 0})
		if need -= st.Size(); need <= 0 {
			return filepath.SkipAll
		}
		return nil
	})
	return list, err
}

// interleave takes from the lists in proportion to what they hold.
func interleave(lists [][]machineFile) []machineFile {
	var all []machineFile
	longest := 0
	for _, l := range lists {
		longest = max(longest, len(l))
	}
	taken := make([]int, len(lists))
	for i := range longest {
		for k, l := range lists {
			for upto := (i + 1) * len(l) / longest; taken[k] < upto; taken[k]++ {
				all = append(all, l[taken[k]])
			}
		}
	}
	return all
}

// bigEntry is a file of a layer. again is how often all files were used before.
type bigEntry struct {
	machineFile
	again int
}

// bigLayer is one layer of Big while it is made.
type bigLayer struct {
	files []bigEntry
	left  int64 // bytes of content to come
	seen  map[string]bool
	tar   *tar.Writer
}

func (l *bigLayer) write() (registrytest.Layer, error) {
	var blob bytes.Buffer
	packed, err := gzip.NewWriterLevel(&blob, gzip.DefaultCompression)
	if err != nil {
		return registrytest.Layer{}, err
	}
	sum := sha256.New()
	l.seen, l.tar = map[string]bool{}, tar.NewWriter(io.MultiWriter(packed, sum))
	for _, f := range l.files {
		if err := l.add(f); err != nil {
			return registrytest.Layer{}, fmt.Errorf("make a big layer: %w", err)
		}
	}
	if err := l.tar.Close(); err != nil {
		return registrytest.Layer{}, fmt.Errorf("make a big layer: %w", err)
	}
	if err := packed.Close(); err != nil {
		return registrytest.Layer{}, fmt.Errorf("make a big layer: %w", err)
	}
	return registrytest.Layer{Tar: []byte{}, Blob: blob.Bytes(), DiffID: digest.NewDigest(digest.SHA256, sum)}, nil
}

// add writes one file, or as much of it as the layer still takes, and its parents.
func (l *bigLayer) add(f bigEntry) error {
	body, err := os.ReadFile(f.path)
	if err != nil || int64(len(body)) != f.size {
		body = make([]byte, f.size) // it has changed since it was listed
	}
	body = body[:min(l.left, f.size)]
	l.left -= int64(len(body))
	name := strings.TrimPrefix(f.path, "/")
	if f.again > 0 {
		name = fmt.Sprintf("again%d/%s", f.again, name)
	}
	if err := l.parents(filepath.Dir(name)); err != nil {
		return err
	}
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o644, ModTime: bigTime}
	if f.exec {
		hdr.Mode = 0o755
	}
	if err := l.tar.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = l.tar.Write(body)
	return err
}

func (l *bigLayer) parents(dir string) error {
	if dir == "." || l.seen[dir] {
		return nil
	}
	if err := l.parents(filepath.Dir(dir)); err != nil {
		return err
	}
	l.seen[dir] = true
	return l.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: bigTime})
}
