package registrytest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of the Docker image manifest version 2, schema 2.
const (
	MediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	MediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	MediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"
	mediaTypeDockerLayer    = "application/vnd.docker.image.rootfs.diff.tar"
)

// Compression says how a layer's blob is packed. The zero value means gzip for an image, and "as the image" for a layer.
type Compression int

// The compressions that the image-spec knows.
const (
	Inherit Compression = iota
	Gzip
	Zstd
	Plain
)

// Schema chooses the family of media types.
type Schema int

// OCI is the zero value.
const (
	OCI Schema = iota
	Docker
)

// File is one entry of a layer's tar. Type is a tar type flag; 0 means a regular file, or a folder if Name ends in "/".
// A zero Mode means 0644, or 0755 for a folder. A zero ModTime is 2024-01-02 03:04:05 UTC, so that layers are reproducible.
type File struct {
	Name     string
	Body     []byte
	Mode     int64
	UID, GID int
	Type     byte
	Linkname string
	Major    int64
	Minor    int64
	ModTime  time.Time
	PAX      map[string]string // for example "SCHILY.xattr.user.k": "v"
}

// Layer is one layer of an Image: Files, or a ready Tar. The fields below Compression override what would be computed,
// to make layers that lie.
type Layer struct {
	Files       []File
	Tar         []byte
	Compression Compression

	Blob      []byte        // packed bytes instead of the packed Tar
	Digest    digest.Digest // of the descriptor
	Size      int64         // of the descriptor
	DiffID    digest.Digest // in the config
	MediaType string
	URLs      []string
}

// Image is what Push takes. The zero value is a linux image of this architecture without layers.
type Image struct {
	Layers      []Layer
	Config      ocispec.ImageConfig
	Schema      Schema
	Compression Compression
	Platform    ocispec.Platform // zero: linux and the architecture of this program

	RawConfig []byte                  // config bytes instead of computed ones
	Mutate    func(*ocispec.Manifest) // last change to the manifest before it is written
}

// PushedLayer tells what a layer became.
type PushedLayer struct {
	Digest, DiffID digest.Digest
	Size           int64 // of the blob, in bytes
}

// Pushed tells what an image became.
type Pushed struct {
	Ref       string // HOST:PORT/REPO:TAG
	DigestRef string // HOST:PORT/REPO@DIGEST
	ImageID   string // digest of the config
	Digest    digest.Digest
	MediaType string
	Manifest  []byte
	Config    []byte
	Layers    []PushedLayer
	Platform  ocispec.Platform
}

// Tar writes files as a tar archive; equal files give equal bytes.
func Tar(files ...File) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, f := range files {
		if err := writeFile(tw, f); err != nil {
			return nil, fmt.Errorf("write tar entry %q: %w", f.Name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("end tar: %w", err)
	}
	return buf.Bytes(), nil
}

func writeFile(tw *tar.Writer, f File) error {
	folder := f.Type == tar.TypeDir || f.Type == 0 && len(f.Name) > 0 && f.Name[len(f.Name)-1] == '/'
	hdr := &tar.Header{
		Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Typeflag: f.Type, Linkname: f.Linkname,
		Devmajor: f.Major, Devminor: f.Minor, ModTime: f.ModTime, PAXRecords: f.PAX, Size: int64(len(f.Body)),
	}
	if hdr.Typeflag == 0 {
		hdr.Typeflag = tar.TypeReg
		if folder {
			hdr.Typeflag = tar.TypeDir
		}
	}
	if hdr.Mode == 0 {
		hdr.Mode = 0o644
		if folder {
			hdr.Mode = 0o755
		}
	}
	if hdr.ModTime.IsZero() {
		hdr.ModTime = time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	}
	if err := tw.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := tw.Write(f.Body)
	return err
}

// Pack compresses data; Inherit means gzip.
func Pack(data []byte, c Compression) ([]byte, error) {
	var buf bytes.Buffer
	var w io.WriteCloser
	switch c {
	case Plain:
		return data, nil
	case Zstd:
		enc, err := zstd.NewWriter(&buf)
		if err != nil {
			return nil, fmt.Errorf("open zstd writer: %w", err)
		}
		w = enc
	default:
		w = gzip.NewWriter(&buf)
	}
	if _, err := w.Write(data); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return buf.Bytes(), nil
}

// builtLayer is a layer with every field known.
type builtLayer struct {
	desc   ocispec.Descriptor
	diffID digest.Digest
	blob   []byte
}

func (l Layer) build(img Image) (builtLayer, error) {
	raw := l.Tar
	if raw == nil {
		var err error
		if raw, err = Tar(l.Files...); err != nil {
			return builtLayer{}, err
		}
	}
	c := l.Compression
	if c == Inherit {
		c = img.Compression
	}
	blob := l.Blob
	if blob == nil {
		var err error
		if blob, err = Pack(raw, c); err != nil {
			return builtLayer{}, err
		}
	}
	b := builtLayer{diffID: l.DiffID, blob: blob, desc: ocispec.Descriptor{
		MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, URLs: l.URLs,
	}}
	if b.diffID == "" {
		b.diffID = digest.FromBytes(raw)
	}
	if b.desc.Digest == "" {
		b.desc.Digest = digest.FromBytes(blob)
	}
	if b.desc.Size == 0 {
		b.desc.Size = int64(len(blob))
	}
	if b.desc.MediaType == "" {
		b.desc.MediaType = layerMediaType(img.Schema, c)
	}
	return b, nil
}

func layerMediaType(s Schema, c Compression) string {
	media := ocispec.MediaTypeImageLayer
	gzipSuffix := "+gzip"
	if s == Docker {
		media, gzipSuffix = mediaTypeDockerLayer, ".gzip"
	}
	switch c {
	case Plain:
		return media
	case Zstd:
		if s == Docker {
			return media + ".zstd"
		}
		return media + "+zstd"
	}
	return media + gzipSuffix
}

// build makes the blobs, the config and the manifest of an image.
func (img Image) build() (Pushed, []builtLayer, error) {
	if img.Platform.OS == "" {
		img.Platform.OS = "linux"
	}
	if img.Platform.Architecture == "" {
		img.Platform.Architecture = runtime.GOARCH
	}
	p := Pushed{Platform: img.Platform, MediaType: ocispec.MediaTypeImageManifest}
	configType := ocispec.MediaTypeImageConfig
	if img.Schema == Docker {
		p.MediaType, configType = MediaTypeDockerManifest, MediaTypeDockerConfig
	}
	created := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	config := ocispec.Image{Created: &created, Platform: img.Platform, Config: img.Config, RootFS: ocispec.RootFS{Type: "layers"}}
	config.RootFS.DiffIDs = []digest.Digest{}
	manifest := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: p.MediaType, Layers: []ocispec.Descriptor{}}
	layers := make([]builtLayer, 0, len(img.Layers))
	for i, l := range img.Layers {
		b, err := l.build(img)
		if err != nil {
			return Pushed{}, nil, fmt.Errorf("build layer %d: %w", i, err)
		}
		layers = append(layers, b)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, b.diffID)
		config.History = append(config.History, ocispec.History{Created: &created, CreatedBy: "registrytest"})
		manifest.Layers = append(manifest.Layers, b.desc)
		p.Layers = append(p.Layers, PushedLayer{Digest: b.desc.Digest, DiffID: b.diffID, Size: b.desc.Size})
	}
	p.Config = img.RawConfig
	if p.Config == nil {
		var err error
		if p.Config, err = json.Marshal(config); err != nil {
			return Pushed{}, nil, fmt.Errorf("encode config: %w", err)
		}
	}
	id := digest.FromBytes(p.Config)
	p.ImageID = id.String()
	manifest.Config = ocispec.Descriptor{MediaType: configType, Digest: id, Size: int64(len(p.Config))}
	if img.Mutate != nil {
		img.Mutate(&manifest)
	}
	var err error
	if p.Manifest, err = json.MarshalIndent(manifest, "", "  "); err != nil {
		return Pushed{}, nil, fmt.Errorf("encode manifest: %w", err)
	}
	p.Digest = digest.FromBytes(p.Manifest)
	return p, layers, nil
}
