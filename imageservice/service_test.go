package imageservice

import (
	"bytes"
	stdcmp "cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/imageservice/registry/registrytest"
)

func newWorld(t *testing.T, opts registrytest.Options) *world {
	t.Helper()
	reg, err := registrytest.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	w := &world{t: t, snap: newFakeSnap(), reg: reg, root: t.TempDir()}
	w.open()
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// patient waits for a registry as long as a busy machine may need.
var patient = registry.Config{StallTimeout: 30 * time.Second, Patience: 20 * time.Second, Backoff: 5 * time.Millisecond}

func (w *world) open() {
	w.t.Helper()
	s, err := Open(w.t.Context(), Config{Root: w.root, Snapshot: w.snap, Registry: patient})
	if err != nil {
		w.t.Fatal(err)
	}
	w.Service = s
}

// reopen is what a restart sees.
func (w *world) reopen() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.open()
}

func layerOf(name, body string) registrytest.Layer {
	return registrytest.Layer{Files: []registrytest.File{{Name: name, Body: []byte(body)}}}
}

// noise is a layer that does not compress.
func noise(seed byte, n int) registrytest.Layer {
	raw := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(raw)
	return layerOf(fmt.Sprintf("noise%d", seed), string(raw))
}

func (w *world) push(repo, tag string, img registrytest.Image) registrytest.Pushed {
	w.t.Helper()
	if img.Layers == nil {
		img.Layers = []registrytest.Layer{layerOf("a", "1"), layerOf("b", "2")}
	}
	p, err := w.reg.Push(repo, tag, img)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) pull(ref string) string {
	w.t.Helper()
	id, err := w.Pull(w.t.Context(), ref, Auth{}, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) names(ref string) (tags, digests []string) {
	w.t.Helper()
	img, err := w.Image(ref)
	if err != nil {
		w.t.Fatal(err)
	}
	return img.RepoTags, img.RepoDigests
}

func TestPullEverySchemaAndCompression(t *testing.T) {
	for _, schema := range []registrytest.Schema{registrytest.OCI, registrytest.Docker} {
		for _, c := range []registrytest.Compression{registrytest.Gzip, registrytest.Zstd, registrytest.Plain} {
			w := newWorld(t, registrytest.Options{})
			p := w.push("a/b", "1", registrytest.Image{
				Schema: schema, Compression: c,
				Layers: []registrytest.Layer{layerOf("a", "1"), noise(1, 2<<20), layerOf("c", strings.Repeat("c", 3<<20)), layerOf("a", "1")},
				Config: ocispec.ImageConfig{
					User: "7:8", Env: []string{"A=b"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, WorkingDir: "/w", StopSignal: "SIGINT",
					Labels: map[string]string{"io.kubernetes.x": "y"}, Volumes: map[string]struct{}{"/v": {}, "/a": {}},
				},
			})
			if id := w.pull(p.Ref); id != p.ImageID {
				t.Fatalf("Pull = %s, want %s", id, p.ImageID)
			}
			img, err := w.Image(p.Ref)
			if err != nil {
				t.Fatal(err)
			}
			want := ImageConfig{
				User: "7:8", Env: []string{"A=b"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, WorkingDir: "/w", StopSignal: "SIGINT",
				Labels: map[string]string{"io.kubernetes.x": "y"}, Volumes: []string{"/a", "/v"},
			}
			if d := cmp.Diff(want, img.Config); d != "" {
				t.Errorf("Config: %s", d)
			}
			if img.ID != p.ImageID || img.Size < 5<<20 || img.Size > 6<<20 || !bytes.Equal(img.RawConfig, p.Config) ||
				!bytes.Equal(img.Manifest.Raw, p.Manifest) || len(img.Layers) != 4 || len(img.DiffIDs) != 4 {
				t.Errorf("Image = %+v", img)
			}
			if d := cmp.Diff([]string{p.Ref}, img.RepoTags); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff([]string{p.DigestRef}, img.RepoDigests); d != "" {
				t.Error(d)
			}
			if pub, ing := w.snap.layers(); pub != 3 || ing != 0 {
				t.Errorf("%d layers published, %d left ingested", pub, ing)
			}
			before, _ := w.Image(p.Ref)
			w.reopen()
			after, err := w.Image(p.Ref)
			if d := cmp.Diff(before, after); d != "" || err != nil {
				t.Errorf("after a restart: %v, %s", err, d)
			}
		}
	}
}

func TestPullAgainFetchesNothing(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	w.reg.ClearRequests()
	w.pull(p.Ref)
	if n := w.reg.Count("", "/blobs/"); n != 0 {
		t.Errorf("%d blobs fetched again", n)
	}
	if n := w.reg.Count("", "/manifests/"); n != 1 {
		t.Errorf("registry asked %d times, want once: the tag may have moved, the credentials may be wrong", n)
	}
}

func TestImageIsFoundByEveryKindOfReference(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	q := w.push("a/c", "latest", registrytest.Image{Layers: []registrytest.Layer{layerOf("x", "y")}})
	w.pull(p.Ref)
	w.pull(p.DigestRef)
	w.pull(q.Ref)
	hex := strings.TrimPrefix(p.ImageID, "sha256:")
	for _, ref := range []string{
		p.Ref, p.DigestRef, p.ImageID, hex, hex[:12], "sha256:" + hex[:20], p.Ref + "@" + p.Digest.String(), p.Digest.String(),
	} {
		if img, err := w.Image(ref); err != nil || img.ID != p.ImageID {
			t.Errorf("Image(%s) = %s, %v", ref, img.ID, err)
		}
	}
	if img, err := w.Image(w.reg.Host() + "/a/c"); err != nil || img.ID != q.ImageID {
		t.Errorf("without a tag: %s, %v", img.ID, err)
	}
	for ref, want := range map[string]error{
		"": ErrInvalidReference, "A": ErrInvalidReference, "../x": ErrInvalidReference, "a@sha256:x": ErrInvalidReference,
		"busybox": ErrNotFound, w.reg.Host() + "/a/b:2": ErrNotFound, w.reg.Host() + "/a/b": ErrNotFound,
		"sha256:" + strings.Repeat("0", 64): ErrNotFound, strings.Repeat("0", 64): ErrNotFound, "sha256:00000000": ErrNotFound,
		w.reg.Host() + "/a/b@" + q.Digest.String(): ErrNotFound,
	} {
		if _, err := w.Image(ref); !errors.Is(err, want) {
			t.Errorf("Image(%q): %v, want %v", ref, err, want)
		}
	}
}

func TestPrefixOfTwoIsAmbiguous(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	for i := range 17 { // two of them begin with the same digit
		w.pull(w.push("a/b", fmt.Sprint(i), registrytest.Image{Config: ocispec.ImageConfig{User: fmt.Sprint(i)}}).Ref)
	}
	ambiguous := 0
	for _, c := range "0123456789abcdef" {
		if _, err := w.Image("sha256:" + string(c)); errors.Is(err, ErrAmbiguous) {
			ambiguous++
		}
	}
	if ambiguous == 0 {
		t.Error("no prefix of one digit is ambiguous among 17 images")
	}
	if n := len(w.Images()); n != 17 {
		t.Errorf("%d images", n)
	}
}

func TestTagsMove(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	w.push("a/b", "other", registrytest.Image{})
	w.pull(w.reg.Host() + "/a/b:other")
	q := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("new", "er")}})
	w.pull(p.Ref)
	check := func() {
		t.Helper()
		tags, digests := w.names(p.ImageID)
		if d := cmp.Diff([]string{w.reg.Host() + "/a/b:other"}, tags); d != "" {
			t.Error(d)
		}
		if d := cmp.Diff([]string{p.DigestRef}, digests); d != "" {
			t.Error(d)
		}
		if img, err := w.Image(p.Ref); err != nil || img.ID != q.ImageID {
			t.Errorf("tag names %s, %v, want %s", img.ID, err, q.ImageID)
		}
	}
	check()
	w.reopen()
	check()
	// A crash between the two records leaves the tag in both: the later pull has it.
	w.commit.Lock()
	old := w.catalog.images[p.ImageID].record.clone()
	old.Tags[p.Ref] = 1
	if err := w.records.write(old); err != nil {
		t.Fatal(err)
	}
	w.commit.Unlock()
	w.reopen()
	check()
	w.reopen()
	check()
}

func TestImageOfAnIndexHasTheIndexesDigest(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	index, images, err := w.reg.PushIndex("a/i", "1", registrytest.OCI, registrytest.Image{Layers: []registrytest.Layer{layerOf("x", "y")}})
	if err != nil {
		t.Fatal(err)
	}
	if id := w.pull(index.Ref); id != images[0].ImageID {
		t.Errorf("Pull = %s", id)
	}
	w.pull(index.DigestRef)
	w.pull(images[0].DigestRef)
	_, digests := w.names(index.Ref)
	if len(digests) != 2 || !strings.Contains(strings.Join(digests, " "), index.DigestRef) {
		t.Errorf("digests %v", digests)
	}
}

func TestRemoveTakesAllReferencesAndLeavesSharedLayers(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	shared := layerOf("shared", "s")
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{shared, layerOf("p", "p")}})
	q := w.push("a/c", "1", registrytest.Image{Layers: []registrytest.Layer{shared, layerOf("q", "q")}})
	w.push("a/b", "2", registrytest.Image{Layers: []registrytest.Layer{shared, layerOf("p", "p")}})
	w.pull(p.Ref)
	w.pull(w.reg.Host() + "/a/b:2")
	w.pull(q.Ref)
	if err := w.Remove(t.Context(), p.Ref); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{p.Ref, p.ImageID, p.DigestRef, w.reg.Host() + "/a/b:2"} {
		if _, err := w.Image(ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("Image(%s) after Remove: %v", ref, err)
		}
	}
	if pub, _ := w.snap.layers(); pub != 2 || !w.snap.has(q.Layers[0].DiffID) {
		t.Errorf("%d layers left, want the 2 of the other image", pub)
	}
	if err := w.Remove(t.Context(), p.Ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("second Remove: %v", err)
	}
	w.reopen()
	if _, err := w.Image(p.Ref); !errors.Is(err, ErrNotFound) {
		t.Errorf("after a restart: %v", err)
	}
	if err := w.Remove(t.Context(), q.ImageID[:20]); err != nil {
		t.Fatal(err)
	}
	if pub, _ := w.snap.layers(); pub != 0 {
		t.Errorf("%d layers left", pub)
	}
}

func TestWritableLayerKeepsTheLayersOfARemovedImage(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	size := mustImage(t, w.Service, p.Ref).Size
	if _, err := w.Prepare(t.Context(), "k1", p.ImageID); err != nil {
		t.Fatal(err)
	}
	if err := w.Remove(t.Context(), p.ImageID); err != nil {
		t.Fatal(err)
	}
	if pub, _ := w.snap.layers(); pub != 2 {
		t.Errorf("%d layers, want 2", pub)
	}
	w.reopen()
	if pub, _ := w.snap.layers(); pub != 2 {
		t.Errorf("%d layers after a restart, want 2", pub)
	}
	if mounts, err := w.Prepare(t.Context(), "k1", p.ImageID); err != nil || len(mounts) != 1 {
		t.Errorf("Prepare again: %v, %v, want what it was", mounts, err)
	}
	if _, err := w.Prepare(t.Context(), "k2", p.ImageID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Prepare of a removed image: %v", err)
	}
	if keys, err := w.Keys(); err != nil || len(keys) != 1 {
		t.Errorf("Keys = %v, %v", keys, err)
	}
	w.reg.ClearRequests()
	if w.pull(p.Ref); mustImage(t, w.Service, p.Ref).Size != size || w.reg.Count("", "/blobs/"+p.Layers[0].Digest.String()) != 0 {
		t.Errorf("pulled again: size %d, want %d from the layers that are here", mustImage(t, w.Service, p.Ref).Size, size)
	}
	if err := w.Remove(t.Context(), p.ImageID); err != nil {
		t.Fatal(err)
	}
	if err := w.Release(t.Context(), "k1"); err != nil {
		t.Fatal(err)
	}
	w.eventually("the layers to go", func() bool { pub, _ := w.snap.layers(); return pub == 0 })
	if err := w.Release(t.Context(), "k1"); err != nil {
		t.Errorf("second Release: %v", err)
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for range 3000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Errorf("waited in vain for %s", what)
}

func TestFailedPullsLeaveNothing(t *testing.T) {
	good := func() registrytest.Image {
		return registrytest.Image{Layers: []registrytest.Layer{layerOf("a", "1"), noise(2, 1<<20)}}
	}
	tarOf := func(l registrytest.Layer) []byte {
		raw, err := registrytest.Tar(l.Files...)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	pack := func(files ...registrytest.File) []byte {
		raw := tarOf(registrytest.Layer{Files: files})
		blob, err := registrytest.Pack(raw, registrytest.Gzip)
		if err != nil {
			t.Fatal(err)
		}
		return blob
	}
	zeros := pack(registrytest.File{Name: "z", Body: make([]byte, 16<<20)})
	other := digest.FromString("x")
	for _, tc := range []struct {
		name  string
		image func(*registrytest.Image)
		fault registrytest.Fault // on the second layer
		fail  map[string]error
		ref   string
		want  error
	}{
		{name: "unknown image", ref: "a/none:1", want: ErrNotFound},
		{name: "malformed reference", ref: "a/B:1", want: ErrInvalidReference},
		{name: "flipped byte", fault: registrytest.Fault{Cut: registrytest.Corrupt, At: 700_000}, want: ErrDigestMismatch},
		{name: "flipped first byte", fault: registrytest.Fault{Cut: registrytest.Corrupt}, want: ErrDigestMismatch},
		{name: "short blob", fault: registrytest.Fault{Cut: registrytest.Truncate, At: 700_000}, want: ErrDigestMismatch},
		{name: "stall", fault: registrytest.Fault{Cut: registrytest.Stall, At: 1000}, want: ErrRegistryUnavailable},
		{name: "layer gone", fault: registrytest.Fault{Status: 404}, want: ErrNotFound},
		{name: "wrong diffID", image: func(i *registrytest.Image) { i.Layers[1].DiffID = other }, want: ErrDigestMismatch},
		{name: "wrong digest", image: func(i *registrytest.Image) { i.Layers[1].Digest = other }, want: ErrDigestMismatch},
		{name: "wrong size", image: func(i *registrytest.Image) { i.Layers[1].Size = 5 }, want: ErrDigestMismatch},
		{name: "truncated gzip", image: func(i *registrytest.Image) { i.Layers[1].Blob = zeros[:len(zeros)/2] }, want: ErrInvalidImage},
		{name: "gzip with a wrong checksum", image: func(i *registrytest.Image) {
			b := bytes.Clone(zeros)
			b[len(b)-8] ^= 1
			i.Layers[1].Blob = b
		}, want: ErrInvalidImage},
		{name: "gzip with a tail", image: func(i *registrytest.Image) { i.Layers[1].Blob = append(bytes.Clone(zeros), "tail"...) }, want: ErrInvalidImage},
		{name: "xz", image: func(i *registrytest.Image) { i.Layers[1].Blob = []byte("\xfd7zXZ\x00xxxxxxxx") }, want: ErrInvalidImage},
		{name: "zstd with a window of 128 MiB", image: func(i *registrytest.Image) {
			i.Layers[1] = layerOf("z", "z")
			raw := tarOf(i.Layers[1])
			block := len(raw)<<3 | 1 // the last one, not compressed: all but the window is right
			i.Layers[1].Blob = append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, byte(block), byte(block >> 8), byte(block >> 16)}, raw...)
		}, want: ErrInvalidImage},
		{name: "disk full", fail: map[string]error{"Ingest": unix.ENOSPC}, want: unix.ENOSPC},
		{name: "publish fails", fail: map[string]error{"Publish": errTest}, want: errTest},
		{name: "config is not JSON", image: func(i *registrytest.Image) { i.RawConfig = []byte("{") }, want: ErrInvalidImage},
		{name: "config is empty", image: func(i *registrytest.Image) { i.RawConfig = []byte("{}") }, want: ErrInvalidImage},
		{name: "config is null", image: func(i *registrytest.Image) { i.RawConfig = []byte("null") }, want: ErrInvalidImage},
		{name: "config has null fields", image: func(i *registrytest.Image) {
			i.RawConfig = []byte(`{"config":null,"rootfs":{"type":"layers","diff_ids":null},"history":null}`)
		}, want: ErrInvalidImage},
		{name: "history of more layers", image: func(i *registrytest.Image) {
			i.RawConfig = fmt.Appendf(nil, `{"rootfs":{"type":"layers","diff_ids":[%q,%q]},"history":[{},{"empty_layer":true},{},{}]}`,
				digest.FromBytes(tarOf(i.Layers[0])), digest.FromBytes(tarOf(i.Layers[1])))
		}, want: ErrInvalidImage},
		{name: "too many labels", image: func(i *registrytest.Image) {
			i.Config.Labels = map[string]string{}
			for n := range maxConfigEntries + 1 {
				i.Config.Labels[fmt.Sprint(n)] = ""
			}
		}, want: ErrInvalidImage},
		{name: "too large an environment", image: func(i *registrytest.Image) {
			i.Config.Env = []string{"A=" + strings.Repeat("a", maxConfigString)}
		}, want: ErrInvalidImage},
		{name: "fewer diff_ids than layers", image: func(i *registrytest.Image) {
			i.RawConfig = []byte(`{"rootfs":{"type":"layers","diff_ids":["` + other.String() + `"]}}`)
		}, want: ErrInvalidImage},
		{name: "diff_ids with ..", image: func(i *registrytest.Image) {
			i.RawConfig = []byte(`{"rootfs":{"type":"layers","diff_ids":["sha256:../../x","sha256:../../y"]}}`)
		}, want: ErrInvalidImage},
		{name: "other rootfs type", image: func(i *registrytest.Image) {
			i.RawConfig = fmt.Appendf(nil, `{"os":"linux","architecture":%q,"rootfs":{"type":"x","diff_ids":[%q,%q]}}`, runtime.GOARCH,
				digest.FromBytes(tarOf(i.Layers[0])), digest.FromBytes(tarOf(i.Layers[1])))
		}, want: ErrInvalidImage},
		{name: "other platform", image: func(i *registrytest.Image) { i.Platform = ocispec.Platform{OS: "windows", Architecture: "amd64"} }, want: ErrNoPlatform},
		{name: "no layers", image: func(i *registrytest.Image) { i.Layers = []registrytest.Layer{} }, want: ErrInvalidImage},
		{name: "layer larger than the disk", image: func(i *registrytest.Image) { i.Layers[1].Size = 1 << 43 }, want: unix.ENOSPC},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, registrytest.Options{})
			img := good()
			if tc.image != nil {
				tc.image(&img)
			}
			p := w.push("a/b", "1", img)
			if f := tc.fault; f.Cut != registrytest.NoCut || f.Status != 0 {
				if f.Cut == registrytest.Stall {
					w.Configure(Config{Registry: registry.Config{StallTimeout: 500 * time.Millisecond, Backoff: 5 * time.Millisecond}})
				}
				f.Path = "/blobs/" + p.Layers[1].Digest.String()
				w.reg.AddFault(f)
			}
			for method, err := range tc.fail {
				w.snap.set(method, err)
			}
			ref := p.Ref
			if tc.ref != "" {
				ref = w.reg.Host() + "/" + tc.ref
			}
			_, err := w.Pull(t.Context(), ref, Auth{}, nil)
			if !errors.Is(err, tc.want) {
				t.Errorf("Pull: %v, want %v", err, tc.want)
			}
			if tc.want == unix.ENOSPC && errors.Is(err, ErrRegistryUnavailable) {
				t.Errorf("a full disk is not the registry's fault: %v", err)
			}
			if pub, ing := w.snap.layers(); pub+ing != 0 {
				t.Errorf("%d layers published, %d ingested after the failure", pub, ing)
			}
			if len(w.Images())+len(w.Pulls("")) != 0 {
				t.Error("something is listed")
			}
			if entries, err := os.ReadDir(filepath.Join(w.root, "records")); err != nil || len(entries) != 0 {
				t.Errorf("records: %v, %v", entries, err)
			}
			w.reg.ClearFaults()
			w.Configure(Config{Registry: patient})
			w.snap.set("Ingest", nil)
			w.snap.set("Publish", nil)
			again := good()
			w.pull(w.push("a/b", "good", again).Ref)
		})
	}
}

// What fails here does not wait for what the registry still has to send.
func TestFailureDoesNotWaitForTheRegistry(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Configure(Config{Registry: registry.Config{StallTimeout: time.Hour}})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{noise(1, 1<<20)}})
	w.reg.AddFault(registrytest.Fault{Path: "/blobs/" + p.Layers[0].Digest.String(), Cut: registrytest.Stall, At: 1000})
	w.snap.set("Ingest, unread", unix.ENOSPC)
	failed := make(chan error, 1)
	go func() {
		_, err := w.Pull(t.Context(), p.Ref, Auth{}, nil)
		failed <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("Pull: %v, want ENOSPC", err)
		}
	case <-time.After(time.Minute):
		t.Error("Pull waits for the registry")
	}
}

func TestZipBombIsStopped(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Configure(Config{MinUnpacked: 1 << 20})
	for _, c := range []registrytest.Compression{registrytest.Gzip, registrytest.Zstd} {
		p := w.push("a/b", "1", registrytest.Image{Compression: c, Layers: []registrytest.Layer{layerOf("z", string(make([]byte, 64<<20)))}})
		if _, err := w.Pull(t.Context(), p.Ref, Auth{}, nil); !errors.Is(err, ErrTooLarge) {
			t.Errorf("Pull: %v, want ErrTooLarge", err)
		}
	}
}

func TestRecordThatCannotBeWrittenIsAnError(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	if err := os.Mkdir(w.records.file(p.ImageID)+".tmp", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pull(t.Context(), p.Ref, Auth{}, nil); err == nil {
		t.Error("Pull succeeded")
	}
	if pub, ing := w.snap.layers(); pub+ing != 0 || len(w.Images()) != 0 {
		t.Errorf("%d layers published, %d ingested after the failure", pub, ing)
	}
}

func TestConcurrentPullsShareTheDownload(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	shared := noise(3, 1<<20)
	var refs []string
	for i := range 10 {
		refs = append(refs, w.push("a/b", fmt.Sprint(i), registrytest.Image{Layers: []registrytest.Layer{shared, layerOf("i", fmt.Sprint(i))}}).Ref)
	}
	w.snap.hold = make(chan struct{})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if _, err := w.Pull(t.Context(), refs[i%len(refs)], Auth{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	for range 11 { // the shared layer, and one of each image
		<-w.snap.holding
	}
	if n := len(w.Pulls("")); n != 10 {
		t.Errorf("%d pulls under way, want 10", n)
	}
	close(w.snap.hold)
	wg.Wait()
	d := w.push("a/b", "0", registrytest.Image{Layers: []registrytest.Layer{shared}}).Layers[0].Digest
	if n := w.reg.Count("GET", d.String()); n != 1 {
		t.Errorf("the shared layer was fetched %d times", n)
	}
	if n := w.reg.Count("GET", "/manifests/"); n > 50 {
		t.Errorf("%d manifests", n)
	}
	if len(w.Images()) != 10 {
		t.Errorf("%d images, want 10", len(w.Images()))
	}
}

func TestCancelOfOneWaiterLeavesTheOthers(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{noise(4, 1<<20)}})
	q := w.push("a/c", "1", registrytest.Image{Layers: []registrytest.Layer{noise(4, 1<<20), layerOf("q", "q")}})
	w.snap.hold = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	type result struct {
		ref string
		err error
	}
	results := make(chan result, 3)
	pull := func(ctx context.Context, ref string) {
		_, err := w.Pull(ctx, ref, Auth{}, nil)
		results <- result{ref, err}
	}
	go pull(ctx, p.Ref) // leads
	<-w.snap.holding
	go pull(t.Context(), p.Ref)
	go pull(t.Context(), q.Ref)
	<-w.snap.holding // q's own layer
	w.eventually("the others to join", func() bool {
		w.pulls.images.mu.Lock()
		defer w.pulls.images.mu.Unlock()
		w.pulls.layers.mu.Lock()
		defer w.pulls.layers.mu.Unlock()
		pulls, layers := 0, 0
		for _, f := range w.pulls.images.running {
			pulls += f.waiters
		}
		for _, f := range w.pulls.layers.running {
			layers += f.waiters
		}
		return pulls == 3 && layers == 3
	})
	cancel()
	if r := <-results; r.ref != p.Ref || !errors.Is(r.err, context.Canceled) {
		t.Errorf("first to end: %+v, want the cancelled one", r)
	}
	close(w.snap.hold)
	for range 2 {
		if r := <-results; r.err != nil {
			t.Error(r.err)
		}
	}
	if n := w.reg.Count("GET", p.Layers[0].Digest.String()); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
}

func TestCancelOfTheLastWaiterEndsThePull(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("a", "1"), noise(5, 4<<20), noise(6, 4<<20)}})
	w.reg.AddFault(registrytest.Fault{Path: "/blobs/" + p.Layers[1].Digest.String(), Pace: registrytest.Pace{Size: 64 << 10, Every: 20 * time.Millisecond}})
	before := runtime.NumGoroutine()
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		begin := time.Now()
		_, err := w.Pull(ctx, p.Ref, Auth{}, nil)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrRegistryUnavailable) || time.Since(begin) > 30*time.Second {
			t.Errorf("Pull after %v: %v", time.Since(begin), err)
		}
		if pub, ing := w.snap.layers(); pub+ing != 0 {
			t.Errorf("%d layers published, %d ingested after the cancel", pub, ing)
		}
	}
	w.eventually("goroutines to end", func() bool { return runtime.NumGoroutine() <= before+5 })
	w.reg.ClearFaults()
	w.pull(p.Ref)
}

func TestAFailedLeaderDoesNotFailTheOthers(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("x", strings.Repeat("x", 100_000))}})
	bad := w.push("evil/b", "1", registrytest.Image{Compression: registrytest.Plain, Layers: []registrytest.Layer{{
		Files: []registrytest.File{{Name: "evil"}}, DiffID: p.Layers[0].DiffID,
	}}})
	w.snap.hold = make(chan struct{})
	errs := make(chan error, 1)
	go func() {
		_, err := w.Pull(t.Context(), bad.Ref, Auth{}, nil)
		errs <- err
	}()
	<-w.snap.holding
	ok := make(chan error, 1)
	go func() {
		_, err := w.Pull(t.Context(), p.Ref, Auth{}, nil)
		ok <- err
	}()
	w.eventually("the good pull to join", func() bool { return w.reg.Count("GET", "a/b/manifests/") > 0 && len(w.Pulls("")) == 2 })
	time.Sleep(20 * time.Millisecond)
	close(w.snap.hold)
	if err := <-errs; !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("bad pull: %v", err)
	}
	if err := <-ok; err != nil {
		t.Errorf("good pull: %v", err)
	}
}

func TestPullWithWrongCredentialsIsRefusedAlthoughTheImageIsHere(t *testing.T) {
	w := newWorld(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: "SECRET"}})
	p := w.push("a/b", "1", registrytest.Image{})
	good := Auth{Auth: base64.StdEncoding.EncodeToString([]byte("u:SECRET"))}
	if _, err := w.Pull(t.Context(), p.Ref, good, nil); err != nil {
		t.Fatal(err)
	}
	for _, a := range []Auth{{}, {Username: "u", Password: "wrong"}, {Auth: "%%%"}, {Auth: "dQ=="}} {
		if _, err := w.Pull(t.Context(), p.Ref, a, nil); !errors.Is(err, ErrUnauthorized) || strings.Contains(err.Error(), "SECRET") {
			t.Errorf("Pull with wrong credentials: %v", err)
		}
	}
	raw, err := json.Marshal(good)
	if s := fmt.Sprintf("%v %+v %#v %s %s", good, good, good, raw, &good); err != nil || strings.Contains(s, good.Auth) {
		t.Errorf("Auth prints as %s", s)
	}
	err = filepath.WalkDir(w.root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if bytes.Contains(raw, []byte("SECRET")) || bytes.Contains(raw, []byte(good.Auth)) {
			t.Errorf("%s has the credentials", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestProgress(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("a", "1"), noise(7, 4<<20)}})
	w.reg.AddFault(registrytest.Fault{Path: p.Layers[1].Digest.String(), Pace: registrytest.Pace{Size: 256 << 10, Every: 100 * time.Millisecond}})
	var mu sync.Mutex
	var seen []Progress
	id, err := w.Pull(t.Context(), p.Ref, Auth{}, func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, p)
	})
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	partial := false
	for _, s := range seen {
		if s.Ref != p.Ref || s.ImageID != "" && s.ImageID != id {
			t.Errorf("%+v", s)
		}
		for _, l := range s.Layers {
			partial = partial || l.State == StateDownloading && l.Bytes > 0 && l.Bytes < l.Size
		}
	}
	if !partial {
		t.Errorf("no progress seen in %d reports", len(seen))
	}
	if len(w.Pulls("")) != 0 {
		t.Error("a pull is left over")
	}
}

func TestBadRecordsAreSetAside(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, file string){
		"empty":     func(t *testing.T, file string) { write(t, file, nil) },
		"zeros":     func(t *testing.T, file string) { write(t, file, make([]byte, 1000)) },
		"truncated": func(t *testing.T, file string) { write(t, file, read(t, file)[:300]) },
		"one bit":   func(t *testing.T, file string) { raw := read(t, file); raw[len(raw)/2] ^= 1; write(t, file, raw) },
		"another tag": func(t *testing.T, file string) {
			write(t, file, bytes.Replace(read(t, file), []byte("/a/b:1"), []byte("/a/b:7"), 1))
		},
		"another config": func(t *testing.T, file string) {
			r, err := readRecord(file)
			if err != nil {
				t.Fatal(err)
			}
			r.Config = append(r.Config, ' ')
			raw, err := r.encode()
			if err != nil {
				t.Fatal(err)
			}
			write(t, file, raw)
		},
		"a folder": func(t *testing.T, file string) {
			if err := errors.Join(os.Remove(file), os.MkdirAll(file+"/x", 0o700)); err != nil {
				t.Fatal(err)
			}
		},
		"future version": func(t *testing.T, file string) {
			write(t, file, bytes.Replace(read(t, file), []byte("berth-image 1 "), []byte("berth-image 2 "), 1))
		},
		"other name": func(t *testing.T, file string) {
			if err := os.Rename(file, filepath.Join(filepath.Dir(file), strings.Repeat("0", 64))); err != nil {
				t.Fatal(err)
			}
		},
		"a link": func(t *testing.T, file string) {
			if err := errors.Join(os.Rename(file, file+"x"), os.Symlink(file+"x", file)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, registrytest.Options{})
			p := w.push("a/b", "1", registrytest.Image{})
			q := w.push("a/c", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("q", "q")}})
			w.pull(p.Ref)
			w.pull(q.Ref)
			damage(t, w.records.file(p.ImageID))
			write(t, filepath.Join(w.root, "records", "x.tmp"), []byte("half"))
			w.reopen()
			if _, err := w.Image(p.Ref); !errors.Is(err, ErrNotFound) {
				t.Errorf("damaged image: %v", err)
			}
			if _, err := w.Image(q.Ref); err != nil {
				t.Errorf("other image: %v", err)
			}
			if len(w.Problems()) == 0 {
				t.Error("no problem told")
			}
			if entries, err := os.ReadDir(filepath.Join(w.root, "quarantine")); err != nil || len(entries) == 0 {
				t.Errorf("quarantine: %v, %v", entries, err)
			}
			if pub, _ := w.snap.layers(); pub != 1 {
				t.Errorf("%d layers, want that of the other image", pub)
			}
			w.pull(p.Ref)
			w.reopen()
			if _, err := w.Image(p.Ref); err != nil || len(w.Problems()) != 0 {
				t.Errorf("after pulling it again: %v, %v", err, w.Problems())
			}
		})
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func write(t *testing.T, file string, raw []byte) {
	t.Helper()
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestRecordWithoutItsLayersIsSetAside(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	clear(w.snap.published)
	w.reopen()
	if _, err := w.Image(p.Ref); !errors.Is(err, ErrNotFound) || len(w.Problems()) != 1 {
		t.Errorf("%v, %v", err, w.Problems())
	}
	w.pull(p.Ref)
}

// A daemon that ends while it starts knows nothing of its images: none is put aside, and no layer goes.
func TestEndWhileImagesAreLoaded(t *testing.T) {
	reg, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	p, err := reg.Push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("a", "1"), layerOf("b", "2")}})
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	s, err := Open(t.Context(), Config{Root: root})
	if err == nil {
		_, err = s.Pull(t.Context(), p.Ref, Auth{}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 10 { // whether a lock or the end of the context is seen first is a matter of luck
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		ended, end := context.WithCancel(t.Context())
		end()
		if s, err := Open(ended, Config{Root: root}); !errors.Is(err, context.Canceled) {
			t.Errorf("Open with a context that has ended = %v, %v", s, err)
		}
		if s, err = Open(t.Context(), Config{Root: root}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Image(p.Ref); err != nil || len(s.Problems()) > 0 {
			t.Fatalf("after an end while images were loaded: %v, %v", err, s.Problems())
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A shortage while images are loaded says nothing of them: none is put aside, no layer goes, and the service does not open.
func TestShortageWhileImagesAreLoaded(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	layers, _ := w.snap.layers()
	t.Cleanup(func() { openFile = os.Open })
	for _, tc := range []struct {
		name          string
		read, publish error
	}{
		{"no descriptors for its record", unix.EMFILE, nil},
		{"no memory for its record", unix.ENOMEM, nil},
		{"no descriptors to stack its layers", nil, unix.EMFILE},
	} {
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		openFile = func(path string) (*os.File, error) {
			if tc.read != nil {
				return nil, &fs.PathError{Op: "open", Path: path, Err: tc.read}
			}
			return os.Open(path)
		}
		w.snap.fail["Publish"] = tc.publish
		s, err := Open(t.Context(), Config{Root: w.root, Snapshot: w.snap, Registry: patient})
		if want := stdcmp.Or(tc.read, tc.publish); !errors.Is(err, want) || !strings.Contains(err.Error(), p.ImageID[len("sha256:"):]) {
			t.Errorf("%s: Open = %v, want %v of image %s", tc.name, err, want, p.ImageID)
		}
		if err == nil {
			s.Close()
		}
		openFile, w.snap.fail["Publish"] = os.Open, nil
		w.open()
		if _, err := w.Image(p.Ref); err != nil || len(w.Problems()) > 0 {
			t.Errorf("%s: afterwards: %v, %v", tc.name, err, w.Problems())
		}
		if n, _ := w.snap.layers(); n != layers {
			t.Errorf("%s: %d layers, had %d", tc.name, n, layers)
		}
	}
}

func TestReadFile(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	w.snap.files = map[string]string{"/etc/passwd": "root:x:0:0", "/other": "o"}
	for range 3 {
		for _, name := range []string{"etc/passwd", "/etc/passwd", "/x/../etc/passwd"} {
			got, err := w.ReadFile(t.Context(), p.ImageID, name, 100)
			if err != nil || string(got) != "root:x:0:0" {
				t.Errorf("ReadFile(%s) = %q, %v", name, got, err)
			}
			if len(got) > 0 {
				got[0] = 'X' // the caller's own
			}
		}
		if _, err := w.ReadFile(t.Context(), p.ImageID, "etc/group", 100); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing: %v", err)
		}
	}
	if w.snap.reads != 2 {
		t.Errorf("read %d times, want 2", w.snap.reads)
	}
	if _, err := w.ReadFile(t.Context(), p.ImageID, "etc/passwd", 3); err == nil {
		t.Error("a file larger than max was read")
	}
	if err := w.Remove(t.Context(), p.ImageID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFile(t.Context(), p.ImageID, "etc/passwd", 100); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a removed image: %v", err)
	}
}

func TestFsUsage(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	if _, err := w.Prepare(t.Context(), "k", p.ImageID); err != nil {
		t.Fatal(err)
	}
	images, containers, err := w.FsUsage(t.Context())
	if err != nil || images.Bytes == 0 || images.Inodes != 2 || containers.Bytes != 100 || containers.Inodes != 2 || images.Mountpoint != w.root || containers.Mountpoint != w.root {
		t.Errorf("FsUsage = %+v, %+v, %v", images, containers, err)
	}
}

func TestPullAndRemoveRace(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	q := w.push("a/c", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("a", "1"), layerOf("c", "3")}})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 40 {
				ref := p.Ref
				if i%2 == 0 {
					ref = q.Ref
				}
				if i < 6 {
					id, err := w.Pull(t.Context(), ref, Auth{}, nil)
					if err != nil {
						t.Error(err)
						return
					}
					key := fmt.Sprintf("k%d", i)
					if _, err := w.Prepare(t.Context(), key, id); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
					if err := w.Release(t.Context(), key); err != nil {
						t.Error(err)
					}
				} else if err := w.Remove(t.Context(), ref); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, img := range w.Images() {
		for _, d := range img.DiffIDs {
			if !w.snap.has(d) {
				t.Errorf("image %s lacks layer %s", img.ID, d)
			}
		}
		if err := w.Remove(t.Context(), img.ID); err != nil {
			t.Error(err)
		}
	}
	w.eventually("all layers to go", func() bool { pub, ing := w.snap.layers(); return pub+ing == 0 })
	if len(w.leases.count) != 0 {
		t.Errorf("leases left: %v", w.leases.count)
	}
}

func TestCloseEndsPulls(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.reg.AddFault(registrytest.Fault{Path: "/blobs/", Cut: registrytest.Stall})
	w.Configure(Config{Registry: registry.Config{StallTimeout: time.Hour}})
	done := make(chan error, 1)
	go func() {
		_, err := w.Pull(context.WithoutCancel(t.Context()), p.Ref, Auth{}, nil)
		done <- err
	}()
	w.eventually("the pull to begin", func() bool { return len(w.Pulls("")) == 1 })
	begin := time.Now()
	w.reopen()
	if err := <-done; !errors.Is(err, ErrClosed) || time.Since(begin) > 30*time.Second {
		t.Errorf("after %v: %v, want ErrClosed", time.Since(begin), err)
	}
}

func TestFoldersAreClosedToOthers(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	dir := filepath.Join(w.root, "records")
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	w.reopen()
	for path, want := range map[string]fs.FileMode{w.root: 0o700, dir: 0o700, filepath.Join(w.root, "quarantine"): 0o700, w.records.file(p.ImageID): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","config":{"User":"1","Env":null,"Labels":{"a":"b"},"Volumes":{"/x":{}}},"rootfs":{"type":"layers","diff_ids":["sha256:x"]},"history":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _, diffIDs, err := parseConfig(raw)
		for _, d := range diffIDs {
			if err != nil || d.Validate() != nil {
				t.Errorf("%q: %v, %v", raw, d, err)
			}
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	raw, err := (&record{ImageID: "x"}).encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := decodeRecord(raw); err == nil {
			_, _ = r.image()
		}
	})
}
