package imageservice

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// Image is one image that is here. The caller may keep and change it, but for RawConfig and Manifest.Raw, which are shared.
type Image struct {
	ID          string   // sha256:HEX, the digest of RawConfig; of an artifact that of its manifest
	RepoTags    []string // HOST/PATH:TAG, sorted
	RepoDigests []string // HOST/PATH@DIGEST, sorted
	Size        uint64   // bytes of its layers, unpacked, each counted once
	Config      ImageConfig
	DiffIDs     []digest.Digest // lowest layer first
	Pinned      bool            // the operator wants it kept: who collects garbage is to spare it; Remove does as it is told
	RawConfig   []byte
	Manifest    Manifest
	Layers      []Layer
	Pulled      time.Time // when it was last pulled

	ArtifactType string // what an OCI artifact says it is; "" = it can be run. An artifact has files in one layer and no config
}

// Manifest is the manifest that the image was last pulled by.
type Manifest struct {
	MediaType string
	Digest    digest.Digest
	Raw       []byte
}

// Layer is one layer of an image, as it came and as it is.
type Layer struct {
	Digest digest.Digest // of the blob
	DiffID digest.Digest // of the tar
	Size   int64         // bytes of the blob
	Bytes  int64         // bytes of the tar
}

func (i Image) clone() Image {
	i.RepoTags, i.RepoDigests = slices.Clone(i.RepoTags), slices.Clone(i.RepoDigests)
	i.DiffIDs, i.Layers = slices.Clone(i.DiffIDs), slices.Clone(i.Layers)
	i.Config = i.Config.clone()
	return i
}
