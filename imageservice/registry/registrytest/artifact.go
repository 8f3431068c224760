package registrytest

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Artifact is an OCI artifact with the empty config. Of a File only Name, which is its title, and Body count; one without a name has no title.
type Artifact struct {
	Type   string // default: application/vnd.example.thing
	Files  []File
	Mutate func(*ocispec.Manifest) // last change to the manifest before it is written
}

// Image is what Push takes to store the artifact. The ImageID that Push tells is not the artifact's: that is the Digest.
func (a Artifact) Image() Image {
	if a.Type == "" {
		a.Type = "application/vnd.example.thing"
	}
	img := Image{RawConfig: ocispec.DescriptorEmptyJSON.Data}
	for _, f := range a.Files {
		blob := append([]byte{}, f.Body...)
		img.Layers = append(img.Layers, Layer{Blob: blob, DiffID: digest.FromBytes(blob), MediaType: a.Type + ".file"})
	}
	img.Mutate = func(m *ocispec.Manifest) {
		m.ArtifactType, m.Config.MediaType = a.Type, ocispec.MediaTypeEmptyJSON
		for i, f := range a.Files {
			if f.Name != "" {
				m.Layers[i].Annotations = map[string]string{ocispec.AnnotationTitle: f.Name}
			}
		}
		if a.Mutate != nil {
			a.Mutate(m)
		}
	}
	return img
}
