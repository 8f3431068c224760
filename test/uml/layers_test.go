package uml_test

import (
	"fmt"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/images"
)

// Overlayfs takes its layers in one string of at most a page here, and fsconfig(2) strings of 256 bytes.
func TestImageOfManyLayers(t *testing.T) {
	d := harness.Start(t)
	const n = 120
	var layers []registrytest.Layer
	for i := range n {
		layer, err := images.NewBuilder().File("top", fmt.Sprint(i), 0o644).File(fmt.Sprintf("layers/%d", i), "x", 0o644).Layer()
		if err != nil {
			t.Fatal(err)
		}
		layers = append(layers, layer)
	}
	image := harness.PushImage(t, "test/layers", ocispec.ImageConfig{User: "www-data"}, layers...)
	d.Pull(image.Ref)
	c := d.RunPod(d.Pod("layers")).Run(d.Sleeper("c", harness.Image(image.Ref)))
	if got, want := c.Sh("cat /top; set -- /layers/*; echo :$#; id -u"), fmt.Sprintf("%d:%d\n33", n-1, n); got != want {
		t.Errorf("the container sees %q, want %q", got, want)
	}
	for line := range strings.Lines(hostMounts(t)) {
		if strings.Contains(line, " - overlay ") {
			t.Errorf("on the host's mount table: %s", line)
		}
	}
}
