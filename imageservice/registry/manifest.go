package registry

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/imageservice/reference"
)

// Media types of Docker's image manifest version 2, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs."
)

var acceptManifests = []string{strings.Join([]string{
	ocispec.MediaTypeImageIndex, dockerList, ocispec.MediaTypeImageManifest, dockerManifest,
}, ", ")}

// Descriptor names content. Its digest is valid and its size in bounds; urls of the original are gone.
type Descriptor struct {
	MediaType string
	Digest    digest.Digest
	Size      int64  // bytes
	Title     string // of a file of an artifact, "" if it has none. HOSTILE: it may be any string
}

// Manifest is a checked image manifest with its bytes, or that of an OCI artifact (image-spec manifest.md, "Guidelines for Artifact Usage").
type Manifest struct {
	Named     digest.Digest // what the reference named: of the index, or of the manifest itself
	Digest    digest.Digest // of Raw
	MediaType string
	Raw       []byte
	Config    Descriptor
	Layers    []Descriptor // lowest first; of an artifact its files, of any media type

	ArtifactType string // what an artifact says it is, printable; "" = this is an image
}

// wireDescriptor is a descriptor as it stands in JSON.
type wireDescriptor struct {
	MediaType string            `json:"mediaType"`
	Digest    string            `json:"digest"`
	Size      *int64            `json:"size"`
	Platform  *ocispec.Platform `json:"platform"`

	Annotations json.RawMessage `json:"annotations"` // looked into only where they mean something
}

// wireManifest is a manifest or an index as it stands in JSON.
type wireManifest struct {
	SchemaVersion int              `json:"schemaVersion"`
	MediaType     string           `json:"mediaType"`
	ArtifactType  string           `json:"artifactType"`
	Config        *wireDescriptor  `json:"config"`
	Layers        []wireDescriptor `json:"layers"`
	Manifests     []wireDescriptor `json:"manifests"`
	FSLayers      json.RawMessage  `json:"fsLayers"`
}

// kind of document.
type kind int

const (
	kindManifest kind = iota
	kindIndex
)

// parse checks the bytes of a manifest or an index that came with contentType.
func parse(raw []byte, contentType string) (wireManifest, kind, error) {
	var m wireManifest
	if err := checkJSON(raw, manifestKeys); err != nil {
		return m, 0, fmt.Errorf("%w: %w", ErrInvalidManifest, err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return m, 0, fmt.Errorf("%w: %w", ErrInvalidManifest, err)
	}
	if m.SchemaVersion == 1 || m.FSLayers != nil {
		return m, 0, fmt.Errorf("%w: image manifests of schema version 1 are not supported", ErrInvalidManifest)
	}
	if m.SchemaVersion != 2 {
		return m, 0, fmt.Errorf("%w: schemaVersion %d is not 2", ErrInvalidManifest, m.SchemaVersion)
	}
	k, err := m.kind(contentType)
	if err != nil {
		return m, 0, fmt.Errorf("%w: %w", ErrInvalidManifest, err)
	}
	return m, k, nil
}

// kind holds the media type in the body, the Content-Type and what the document has against each other.
func (m wireManifest) kind(contentType string) (kind, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		media = ""
	}
	byHeader, headerKnown := kindOf(media)
	byBody, bodyKnown := kindOf(m.MediaType)
	k := kindManifest
	if m.Manifests != nil {
		k = kindIndex
	}
	switch {
	case m.Manifests != nil && (m.Layers != nil || m.Config != nil):
		return 0, errors.New("it has both manifests and layers or config")
	case m.MediaType != "" && !bodyKnown:
		return 0, fmt.Errorf("mediaType %q is not that of an image", printable(m.MediaType))
	case headerKnown && m.MediaType != "" && media != m.MediaType:
		return 0, fmt.Errorf("mediaType %q is not the Content-Type %q", m.MediaType, media)
	case bodyKnown && byBody != k, headerKnown && byHeader != k:
		return 0, errors.New("its media type is not that of what it holds")
	case !headerKnown && m.MediaType == "" && m.Manifests == nil && (m.Config == nil || m.Layers == nil):
		return 0, fmt.Errorf("Content-Type %q is not that of an image", printable(media))
	}
	return k, nil
}

func kindOf(media string) (kind, bool) {
	switch media {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		return kindManifest, true
	case ocispec.MediaTypeImageIndex, dockerList:
		return kindIndex, true
	}
	return 0, false
}

// check makes a Descriptor of one that came over the wire.
func (w wireDescriptor) check(maxSize int64) (Descriptor, error) {
	d, err := reference.ParseDigest(w.Digest)
	if err != nil {
		return Descriptor{}, fmt.Errorf("%w: descriptor: %w", ErrInvalidManifest, err)
	}
	if w.Size == nil || *w.Size < 0 {
		return Descriptor{}, fmt.Errorf("%w: descriptor %s has no size", ErrInvalidManifest, d)
	}
	if *w.Size > maxSize {
		return Descriptor{}, fmt.Errorf("%w: descriptor %s: size %d is larger than %d", ErrInvalidManifest, d, *w.Size, maxSize)
	}
	return Descriptor{MediaType: w.MediaType, Digest: d, Size: *w.Size}, nil
}

// image turns a parsed manifest into a Manifest.
func (m wireManifest) image(raw []byte, contentType string) (Manifest, error) {
	out := Manifest{MediaType: m.MediaType, Raw: raw, Digest: digest.FromBytes(raw)}
	if out.MediaType == "" {
		out.MediaType = ocispec.MediaTypeImageManifest
		if media, _, err := mime.ParseMediaType(contentType); err == nil && media == dockerManifest {
			out.MediaType = media
		}
	}
	if m.Config == nil {
		return Manifest{}, fmt.Errorf("%w: it has no config", ErrInvalidManifest)
	}
	if len(m.Layers) > MaxLayers {
		return Manifest{}, fmt.Errorf("%w: %d layers are more than %d", ErrInvalidManifest, len(m.Layers), MaxLayers)
	}
	var err error
	if out.Config, err = m.Config.check(MaxManifest); err != nil {
		return Manifest{}, err
	}
	if t := m.artifactType(); t != "" && out.MediaType == ocispec.MediaTypeImageManifest {
		out.ArtifactType = cmp.Or(printable(t), "unknown")
		out.Layers, err = m.files()
		return out, err
	}
	if t := out.Config.MediaType; !configType(t) {
		return Manifest{}, fmt.Errorf("%w: config of type %q is not that of a container image", ErrInvalidManifest, printable(t))
	}
	if out.Config.Digest.Algorithm() != digest.SHA256 {
		return Manifest{}, fmt.Errorf("%w: the config's digest, which is the image ID, must be sha256", ErrInvalidManifest)
	}
	for _, l := range m.Layers {
		d, err := l.check(maxBlob)
		if err != nil {
			return Manifest{}, err
		}
		if !layerType(d.MediaType) {
			return Manifest{}, fmt.Errorf("%w: layer %s of type %q is not a tar archive", ErrInvalidManifest, d.Digest, printable(d.MediaType))
		}
		out.Layers = append(out.Layers, d)
	}
	return out, nil
}

// artifactType says what an artifact is; "" for an image. What has an image's config and only tar archives is an image, whatever it calls itself.
func (m wireManifest) artifactType() string {
	notTar := func(l wireDescriptor) bool { return !layerType(l.MediaType) }
	if configType(m.Config.MediaType) && !slices.ContainsFunc(m.Layers, notTar) {
		return ""
	}
	if m.ArtifactType == "" && !configType(m.Config.MediaType) {
		return m.Config.MediaType
	}
	return m.ArtifactType
}

// files are the layers of an artifact.
func (m wireManifest) files() (files []Descriptor, err error) {
	for _, l := range m.Layers {
		d, err := l.check(maxBlob)
		if err != nil {
			return nil, err
		}
		annotations := map[string]string{}
		if l.Annotations != nil {
			if err := json.Unmarshal(l.Annotations, &annotations); err != nil {
				return nil, fmt.Errorf("%w: annotations of layer %s: %w", ErrInvalidManifest, d.Digest, err)
			}
		}
		title, ok := annotations[ocispec.AnnotationTitle]
		if ok && title == "" {
			return nil, fmt.Errorf("%w: the title of layer %s is empty", ErrInvalidManifest, d.Digest)
		}
		d.Title = title
		files = append(files, d)
	}
	return files, nil
}

// configType says whether a media type may be that of an image's config.
func configType(media string) bool {
	return media == ocispec.MediaTypeImageConfig || media == dockerConfig || media == "application/octet-stream" || media == ""
}

// layerType says whether a media type is that of a tar, packed or not. How it is packed its first bytes tell.
func layerType(media string) bool {
	for _, prefix := range []string{
		ocispec.MediaTypeImageLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar",
		dockerLayer + "diff.tar", dockerLayer + "foreign.diff.tar",
	} {
		switch rest, ok := strings.CutPrefix(media, prefix); {
		case !ok:
		case rest == "", rest == "+gzip", rest == ".gzip", rest == "+zstd", rest == ".zstd":
			return true
		}
	}
	return false
}
