package imageservice

import (
	"os"
	"path/filepath"
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

func TestConfigure(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("team/web", "1", registrytest.Image{})
	folder := filepath.Join(t.TempDir(), "certs.d")
	if err := os.MkdirAll(filepath.Join(folder, "registry.example"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "registry.example", "hosts.toml"), []byte("server = \""+w.reg.URL+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.Configure(Config{HostsDir: folder, Pinned: []string{"registry.example/*"}, Parallel: 1, Unpack: 1})
	if id := w.pull("registry.example/team/web:1"); id != p.ImageID || !w.Images()[0].Pinned {
		t.Errorf("the pull with the new configuration brought %s, pinned: %v", id, w.Images()[0].Pinned)
	}
}

func TestShortNamesCanBePinned(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Pin([]string{"busybox"})
	if got := w.show(Image{RepoTags: []string{"docker.io/library/busybox:latest"}}); !got.Pinned {
		t.Error("docker.io/library/busybox:latest is not pinned by busybox")
	}
}
