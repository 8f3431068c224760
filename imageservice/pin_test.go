package imageservice

import (
	"testing"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

func TestPinned(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("team/web", "1", registrytest.Image{})
	w.pull(p.Ref)
	host := w.reg.Host()
	for _, tc := range []struct {
		pattern string
		want    bool
	}{
		{p.Ref, true},
		{p.DigestRef, true},
		{p.ImageID, true},
		{host + "/team/web", false}, // its tag is latest
		{host + "/team/*", true},
		{host + "/*:1", true},
		{host + "*eb:1", true},
		{"*/web:*", true},
		{"*team*web*1*", true},
		{"*", true},
		{"**", true},
		{host + "/team/web*1", true},
		{host + "/team/web:1*1", false}, // no text can be both
		{"*/web", false},
		{"team/*", false},
		{"", false},
		{"web:1", false},
	} {
		w.Pin([]string{"other", tc.pattern})
		img, err := w.Image(p.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if img.Pinned != tc.want || w.Images()[0].Pinned != tc.want {
			t.Errorf("with %q the image is pinned: %v, want %v", tc.pattern, img.Pinned, tc.want)
		}
	}
	w.Pin([]string{"*"})
	if err := w.Remove(t.Context(), p.Ref); err != nil || len(w.Images()) != 0 {
		t.Errorf("Remove of a pinned image: %v, %d images are left", err, len(w.Images()))
	}
	w.Pin(nil)
	if w.pull(p.Ref); w.Images()[0].Pinned {
		t.Error("pinned by no pattern")
	}
	if !matches("docker.io/library/busybox:latest", "docker.io/library/busybox:latest") {
		t.Error("a pattern does not match itself")
	}
}

func TestShortNamesCanBePinned(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Pin([]string{"busybox"})
	if got := w.show(Image{RepoTags: []string{"docker.io/library/busybox:latest"}}); !got.Pinned {
		t.Error("docker.io/library/busybox:latest is not pinned by busybox")
	}
}
