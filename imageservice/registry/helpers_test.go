package registry

import (
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/imageservice/reference"
)

func parseRef(t *testing.T, s string) reference.Reference {
	t.Helper()
	ref, err := reference.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func platform(os, arch, variant string) *ocispec.Platform {
	return &ocispec.Platform{OS: os, Architecture: arch, Variant: variant}
}
