package sandbox

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestVolumesOfAContainerAreItsImagesOnce(t *testing.T) {
	image := func(ref string) *runtimeapi.Mount {
		return &runtimeapi.Mount{Image: &runtimeapi.ImageSpec{Image: "name", ImageRef: ref}}
	}
	config := &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{image("b"), {HostPath: "/x"}, image("a"), {HostPath: "/y", Image: &runtimeapi.ImageSpec{}}, image("b")}}
	if got := volumes(config); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("volumes = %q", got)
	}
	if err := checkMounts(&runtimeapi.ContainerConfig{Mounts: config.Mounts[:1]}); err != nil {
		t.Errorf("an image has no path on the host to look at: %v", err)
	}
}
