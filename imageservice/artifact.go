package imageservice

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/registry"
)

// files is the source of an OCI artifact's one layer: a tar of its blobs, each a regular file as it was served.
type files struct {
	source
	all     []registry.Descriptor
	current registry.Descriptor // the blob that was read last
}

// artifact makes the record of an artifact, and the source of its layer. The layer's diffID is the digest of a list of the files, because
// that of the tar is not known before everything is fetched. It is a SHA-512: an image, whose diffIDs are SHA-256, cannot name it.
func artifact(src source, m registry.Manifest) (*record, source, error) {
	if len(m.Layers) == 0 {
		return nil, nil, fmt.Errorf("read artifact: %w: it has no layers", ErrInvalidImage)
	}
	list := &bytes.Buffer{}
	fmt.Fprintln(list, "berth artifact 1")
	seen := map[string]bool{} // by name; true: a file, false: a folder
	var size int64
	for _, f := range m.Layers {
		name, err := fileName(f)
		if err == nil {
			err = enter(seen, name)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read artifact: %w: layer %s: %w", ErrInvalidImage, f.Digest, err)
		}
		fmt.Fprintf(list, "%s %d %q\n", f.Digest, f.Size, name)
		size += f.Size
	}
	r := &record{
		ImageID: m.Digest.String(), MediaType: m.MediaType, Digest: m.Digest, Manifest: m.Raw, Tags: map[string]int64{},
		ArtifactType: m.ArtifactType, Layers: []recordLayer{{Digest: m.Digest, DiffID: digest.SHA512.FromBytes(list.Bytes()), Size: size}},
	}
	return r, &files{source: src, all: m.Layers}, nil
}

// enter notes a file, and the folders above it.
func enter(seen map[string]bool, name string) error {
	if _, ok := seen[name]; ok {
		return fmt.Errorf("its name %q stands twice", name)
	}
	seen[name] = true
	for i := strings.LastIndexByte(name, '/'); i >= 0; i = strings.LastIndexByte(name[:i], '/') {
		if seen[name[:i]] {
			return fmt.Errorf("its name %q is below that of another file", name)
		}
		seen[name[:i]] = false
	}
	return nil
}

// fileName is the title of a file, which is a path below the volume, or made of its digest.
func fileName(f registry.Descriptor) (string, error) {
	if f.Title == "" {
		return f.Digest.Algorithm().String() + "-" + f.Digest.Encoded(), nil
	}
	if len(f.Title) > maxTitle {
		return "", fmt.Errorf("its title has %d bytes, at most %d are possible", len(f.Title), maxTitle)
	}
	if strings.ContainsFunc(f.Title, func(r rune) bool { return r == '\\' || r == utf8.RuneError || unicode.IsControl(r) }) {
		return "", fmt.Errorf("its title %q has characters that are not possible", f.Title)
	}
	for name := range strings.SplitSeq(f.Title, "/") {
		// A layer cannot have names that begin with .wh.: they delete others.
		if name == "" || name == "." || name == ".." || len(name) > maxTitleName || strings.HasPrefix(name, ".wh.") {
			return "", fmt.Errorf("its title %q is no path of a file below the volume", f.Title)
		}
	}
	return f.Title, nil
}

// Blob streams the tar of all files. Its first entry is the folder that they are in, so that it never looks packed. An end without an
// error means that all files were right.
func (s *files) Blob(ctx context.Context, _ registry.Descriptor) io.ReadCloser {
	t := &fileTar{}
	t.parts = append(t.parts, func() io.ReadCloser { return header(&tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}) })
	for _, f := range s.all {
		t.parts = append(t.parts, func() io.ReadCloser {
			name, _ := fileName(f) // it was checked
			return header(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o444, Size: f.Size})
		}, func() io.ReadCloser {
			s.current = f
			return s.source.Blob(ctx, f)
		}, func() io.ReadCloser { return zeros(-f.Size & 511) })
	}
	t.parts = append(t.parts, func() io.ReadCloser { return zeros(1024) })
	return t
}

// HasOther asks for the file that broke.
func (s *files) HasOther(_ registry.Descriptor, err error) bool {
	return s.source.HasOther(s.current, err)
}

// header is that of one entry of a tar, with the same bytes for the same entry.
func header(h *tar.Header) io.ReadCloser {
	h.ModTime = time.Unix(0, 0)
	b := &bytes.Buffer{}
	if err := tar.NewWriter(b).WriteHeader(h); err != nil {
		return io.NopCloser(failing{fmt.Errorf("%w: write tar entry %q: %w", ErrInvalidImage, h.Name, err)})
	}
	return io.NopCloser(b)
}

func zeros(n int64) io.ReadCloser { return io.NopCloser(bytes.NewReader(make([]byte, n))) }

// failing is a reader of nothing but an error.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// fileTar reads one part after the other, each opened when its turn comes.
type fileTar struct {
	parts []func() io.ReadCloser
	open  io.ReadCloser
}

func (t *fileTar) Read(p []byte) (int, error) {
	for {
		if t.open == nil {
			if len(t.parts) == 0 {
				return 0, io.EOF
			}
			t.open, t.parts = t.parts[0](), t.parts[1:]
		}
		n, err := t.open.Read(p)
		if err == io.EOF {
			err = t.closeOpen()
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Close gives up what has not been read.
func (t *fileTar) Close() error {
	t.parts = nil
	return t.closeOpen()
}

func (t *fileTar) closeOpen() error {
	if t.open == nil {
		return nil
	}
	err := t.open.Close()
	t.open = nil
	return err
}
