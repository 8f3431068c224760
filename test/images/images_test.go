package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
)

func TestBuilderMakesParentsOnce(t *testing.T) {
	files, err := NewBuilder().File("a/b/c", "x", 0o644).File("/a/b/d", "y", 0o600).Symlink("a/l", "b").Dir("a", 0o700).Files()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name)
	}
	if got, want := strings.Join(names, " "), "a/ a/b/ a/b/c a/b/d a/l"; got != want {
		t.Errorf("names = %q, want %q", got, want)
	}
}

func TestProgramBringsItsLibraries(t *testing.T) {
	files, err := NewBuilder().Program("bin/env", "/usr/bin/env").Files()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.Contains(f.Name, "libc.so") {
			return
		}
	}
	t.Errorf("no libc in %d files", len(files))
}

func TestShellNamesTheMissingProgram(t *testing.T) {
	if _, err := Shell("/nowhere/busybox").Files(); err == nil || !strings.Contains(err.Error(), "/nowhere/busybox") {
		t.Errorf("Shell of a missing program: %v", err)
	}
}

func TestBigLayersHaveTheirSizes(t *testing.T) {
	layers, err := Big(1<<20, 3<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []int64{1 << 20, 3 << 20} {
		z, err := gzip.NewReader(bytes.NewReader(layers[i].Blob))
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		content, files := int64(0), 0
		all := tar.NewReader(io.TeeReader(z, sum))
		for {
			hdr, err := all.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			content += hdr.Size
			files++
		}
		io.Copy(sum, z) // the rest after the tar's end
		if content != want || files < 10 {
			t.Errorf("layer %d has %d bytes in %d entries, want %d bytes", i, content, files, want)
		}
		if got := digest.NewDigest(digest.SHA256, sum); got != layers[i].DiffID {
			t.Errorf("layer %d: diffID %s, want %s", i, layers[i].DiffID, got)
		}
	}
}
