package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/images"
)

// site is the registry of this test process, with the image that most tests run.
type site struct {
	registry *registrytest.Registry
	shell    registrytest.Layer
	probe    registrytest.Layer
	packed   []registrytest.Layer // both, as blobs: packing takes longer than all the rest of an image
	base     registrytest.Pushed
}

var theSite = sync.OnceValues(func() (*site, error) {
	registry, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		return nil, err
	}
	busybox, err := images.Busybox()
	if err != nil {
		return nil, err
	}
	s := &site{registry: registry}
	if s.shell, err = images.Shell(busybox).Dir("data", 0o755).Layer(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-probe")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	from := dir
	if built := os.Getenv("BERTH_PROBE"); built != "" { // a folder that has it, where there is no compiler
		from = built
	} else if _, err := berthd.Build(dir, "./test/probe"); err != nil {
		return nil, err
	}
	if s.probe, err = images.NewBuilder().Program("bin/probe", filepath.Join(from, "probe")).Layer(); err != nil {
		return nil, err
	}
	for _, layer := range []registrytest.Layer{s.shell, s.probe} {
		packed, err := pack(layer)
		if err != nil {
			return nil, err
		}
		s.packed = append(s.packed, packed)
	}
	s.base, err = registry.Push("test/base", "1", registrytest.Image{Layers: s.packed,
		Config: ocispec.ImageConfig{Env: []string{images.Path}, Cmd: []string{"sh"}}})
	return s, err
})

// pack is a layer that has been packed.
func pack(layer registrytest.Layer) (registrytest.Layer, error) {
	raw, err := registrytest.Tar(layer.Files...)
	if err != nil {
		return layer, err
	}
	blob, err := registrytest.Pack(raw, registrytest.Gzip)
	return registrytest.Layer{Tar: raw, Blob: blob, Compression: registrytest.Gzip, DiffID: digest.FromBytes(raw), Digest: digest.FromBytes(blob)}, err
}

func openSite(t testing.TB) *site {
	t.Helper()
	s, err := theSite()
	if err != nil {
		t.Fatalf("make the test image: %v", err)
	}
	return s
}

// Registry is the loopback registry of this test process.
func Registry(t testing.TB) *registrytest.Registry { return openSite(t).registry }

// Base is the image of a shell, its applets and the probe.
func Base(t testing.TB) registrytest.Pushed { return openSite(t).base }

// PushImage makes an image of the shell, the probe and more layers, with a configuration of its own.
func PushImage(t testing.TB, repo string, config ocispec.ImageConfig, more ...registrytest.Layer) registrytest.Pushed {
	t.Helper()
	s := openSite(t)
	if config.Env == nil {
		config.Env = []string{images.Path}
	}
	pushed, err := s.registry.Push(repo, "1", registrytest.Image{Layers: slices.Concat(s.packed, more), Config: config})
	if err != nil {
		t.Fatalf("make image %s: %v", repo, err)
	}
	return pushed
}

// Pull pulls an image and returns its ID.
func (d *Daemon) Pull(ref string) string {
	d.T.Helper()
	id, err := d.TryPull(ref)
	if err != nil {
		d.T.Fatalf("PullImage(%s): %v", ref, err)
	}
	return id
}

// TryPull is Pull for tests of what does not work.
func (d *Daemon) TryPull(ref string) (string, error) {
	r, err := d.Images.PullImage(d.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return r.GetImageRef(), err
}

// base pulls the base image once for each daemon.
func (d *Daemon) baseImage() *runtimeapi.ImageSpec {
	d.T.Helper()
	ref := Base(d.T).Ref
	d.mu.Lock()
	defer d.mu.Unlock()
	r, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		d.T.Fatalf("ImageStatus(%s): %v", ref, err)
	}
	if r.GetImage() == nil {
		d.Pull(ref)
	}
	return &runtimeapi.ImageSpec{Image: ref}
}

// Mirror sends a registry's host to the test's own registry.
func (d *Daemon) Mirror(host string) {
	d.T.Helper()
	dir := filepath.Join(d.Hosts, host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		d.T.Fatal(err)
	}
	d.Write(filepath.Join(dir, "hosts.toml"), fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n",
		"https://"+host, Registry(d.T).URL))
}

// ShellLayer is the base image's first layer.
func ShellLayer(t testing.TB) registrytest.Layer { return openSite(t).shell }
