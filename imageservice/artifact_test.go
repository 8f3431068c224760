package imageservice

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/imageservice/snapshot"
)

func TestArtifactIsAFolderOfItsFiles(t *testing.T) {
	needRoot(t)
	reg := startReal(t)
	packed, err := registrytest.Pack([]byte("not unpacked"), registrytest.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("ü", 100)
	want := map[string][]byte{
		"a.gz": packed, "models/deep/b": bytes.Repeat([]byte("0123456789"), 300_000), "models/" + long: []byte("l"), "BZh": []byte("B"), "empty": {},
		"sha256-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08": []byte("test"),
	}
	var files []registrytest.File
	for name, body := range want {
		if body := string(body); body == "test" {
			name = ""
		}
		files = append(files, registrytest.File{Name: name, Body: body})
	}
	p, err := reg.Push("a/b", "1", registrytest.Artifact{Files: files}.Image())
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "images")
	s := openReal(t, root)
	id, err := s.Pull(t.Context(), p.Ref, Auth{}, nil)
	if err != nil || id != p.Digest.String() {
		t.Fatalf("Pull = %s, %v, want %s", id, err, p.Digest)
	}
	check := func() {
		t.Helper()
		img, err := s.Image(p.Ref)
		if err != nil || img.ID != id || img.ArtifactType != "application/vnd.example.thing" || img.Size < 3_000_000 || img.RawConfig != nil || len(img.DiffIDs) != 1 {
			t.Fatalf("Image = %+v, %v", img, err)
		}
		for name, body := range want {
			got, err := s.ReadFile(t.Context(), id, name, 4_000_000)
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("ReadFile(%s) = %d bytes, %v, want %d", name, len(got), err, len(body))
			}
			var st unix.Stat_t
			file := filepath.Join(root, "layers", img.DiffIDs[0].Encoded(), "fs", name)
			if err := unix.Lstat(file, &st); err != nil || st.Mode != unix.S_IFREG|0o444 || st.Uid != 0 || st.Gid != 0 {
				t.Errorf("%s: mode %o of %d:%d, %v", name, st.Mode, st.Uid, st.Gid, err)
			}
		}
		for _, path := range []string{"", "models", "models/deep/b"} {
			if err := s.CheckVolume(t.Context(), id, path); err != nil {
				t.Errorf("CheckVolume(%s): %v", path, err)
			}
		}
	}
	check()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openReal(t, root)
	check()
	reg.ClearRequests()
	if again, err := s.Pull(t.Context(), p.DigestRef, Auth{}, nil); err != nil || again != id || reg.Count("", "/blobs/") != 0 {
		t.Errorf("Pull again = %s, %v, with %d blobs", again, err, reg.Count("", "/blobs/"))
	}
	if err := s.snap.(*snapshot.Store).Verify(t.Context(), mustImage(t, s, id).DiffIDs[0]); err != nil {
		t.Errorf("Verify: %v", err)
	}
	if err := s.Remove(t.Context(), p.Ref); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"layers", "chains", "ingest", "records"} {
		if left := list(t, filepath.Join(root, name)); len(left) != 0 {
			t.Errorf("%s: %v left", name, left)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// All artifacts may have the same config, and some the same files.
func TestArtifactsAreToldApart(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	one := w.push("a/one", "1", registrytest.Artifact{Files: []registrytest.File{{Name: "x", Body: []byte("1")}}}.Image())
	two := w.push("a/two", "1", registrytest.Artifact{Files: []registrytest.File{{Name: "y", Body: []byte("1")}}}.Image())
	same := w.push("a/same", "1", registrytest.Artifact{Type: "application/vnd.example.other", Files: []registrytest.File{{Name: "x", Body: []byte("1")}}}.Image())
	image := w.push("a/image", "1", registrytest.Image{Layers: []registrytest.Layer{layerOf("a", "1")}})
	for _, p := range []registrytest.Pushed{one, two, same} {
		if id := w.pull(p.Ref); id != p.Digest.String() {
			t.Errorf("ID %s, want %s", id, p.Digest)
		}
	}
	w.pull(image.Ref)
	if n := len(w.Images()); n != 4 {
		t.Errorf("%d images, want 4", n)
	}
	diffID := func(ref string) string { return mustImage(t, w.Service, ref).DiffIDs[0].String() }
	if diffID(one.Ref) != diffID(same.Ref) || diffID(one.Ref) == diffID(two.Ref) {
		t.Error("layers are shared by what is not the same, or not by what is")
	}
	w.Pin([]string{"127.0.0.1*/a/one*"})
	w.reopen()
	if w.Images()[0].ID == w.Images()[1].ID || len(w.Images()) != 4 || len(w.Problems()) != 0 {
		t.Errorf("after a restart: %d images, %v", len(w.Images()), w.Problems())
	}
	if err := w.Remove(t.Context(), one.Ref); err != nil {
		t.Fatal(err)
	}
	if published, ingested := w.snap.layers(); published != 3 || ingested != 0 {
		t.Errorf("%d and %d layers, want 3", published, ingested)
	}
	// A tag moves from an artifact to an image and back.
	for _, img := range []registrytest.Image{{}, registrytest.Artifact{Files: []registrytest.File{{Name: "z"}}}.Image()} {
		w.push("a/two", "1", img)
		if id := w.pull(two.Ref); id == two.Digest.String() || mustImage(t, w.Service, two.Ref).ID != id {
			t.Errorf("the tag did not move: %s", id)
		}
	}
}

// TestImageCannotHaveAnArtifactsLayer: an image that names the layer of an artifact that is here would get it unseen.
func TestImageCannotHaveAnArtifactsLayer(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	one := w.push("a/one", "1", registrytest.Artifact{Files: []registrytest.File{{Name: "x", Body: []byte("1")}}}.Image())
	w.pull(one.Ref)
	thief := layerOf("a", "1")
	thief.DiffID = mustImage(t, w.Service, one.Ref).DiffIDs[0]
	p := w.push("a/thief", "1", registrytest.Image{Layers: []registrytest.Layer{thief}})
	if id, err := w.Pull(t.Context(), p.Ref, Auth{}, nil); !errors.Is(err, ErrInvalidImage) {
		t.Errorf("Pull = %s, %v, want ErrInvalidImage", id, err)
	}
}

func mustImage(t *testing.T, s *Service, ref string) Image {
	t.Helper()
	img, err := s.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestArtifactsOfAnIndex(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	artifact := func(body string) registrytest.Image {
		return registrytest.Artifact{Files: []registrytest.File{{Name: "x", Body: []byte(body)}}}.Image()
	}
	other := artifact("other")
	other.Platform = ocispec.Platform{OS: "plan9", Architecture: "mips"}
	index, all, err := w.reg.PushIndex("a/b", "1", registrytest.OCI, other, artifact("mine"))
	if err != nil {
		t.Fatal(err)
	}
	if id := w.pull(index.Ref); id != all[1].Digest.String() {
		t.Errorf("ID %s, want that for this platform, %s", id, all[1].Digest)
	}
	raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		ocispec.MediaTypeImageIndex, all[0].MediaType, all[0].Digest, len(all[0].Manifest))
	w.reg.PutManifest("a/b", "only", ocispec.MediaTypeImageIndex, raw)
	if id := w.pull(w.reg.Host() + "/a/b:only"); id != all[0].Digest.String() {
		t.Errorf("ID %s, want the only one, %s", id, all[0].Digest)
	}
}

func TestBadArtifactsAreRefused(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	before, err := filepath.Glob(filepath.Join(w.root, "records", "*"))
	if err != nil {
		t.Fatal(err)
	}
	titles := map[string][]string{
		"dots": {".."}, "dots above": {"../x"}, "dots below": {"a/../../x"}, "dots that lead nowhere": {"a/../b"}, "dot": {"."}, "dot before": {"./a"},
		"absolute": {"/etc/passwd"}, "slashes": {"a//b"}, "folder": {"a/"}, "NUL": {"a\x00b"}, "line": {"a\nb"}, "backslash": {`..\x`}, "not UTF-8": {"a\xff"},
		"whiteout": {".wh.a"}, "opaque": {"a/.wh..wh..opq"}, "long name": {strings.Repeat("a", 256)}, "long": {strings.Repeat("a/", 600) + "a"},
		"twice": {"a", "a"}, "file as folder": {"a", "a/b"}, "folder as file": {"a/b/c", "a"}, "digest twice": {"", ""},
		"digest as title": {"", "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}, "none": {},
	}
	for what, names := range titles {
		a := registrytest.Artifact{}
		for _, name := range names {
			a.Files = append(a.Files, registrytest.File{Name: name})
		}
		img := a.Image()
		if len(names) == 0 {
			img.Layers = []registrytest.Layer{}
		}
		p := w.push("a/b", "bad", img)
		w.reg.ClearRequests()
		if id, err := w.Pull(t.Context(), p.Ref, Auth{}, nil); !errors.Is(err, ErrInvalidImage) {
			t.Errorf("%s: Pull = %s, %v, want ErrInvalidImage", what, id, err)
		}
		if n := w.reg.Count("", "/blobs/"); n != 0 {
			t.Errorf("%s: %d blobs were fetched", what, n)
		}
	}
	for what, mutate := range map[string]func(m *ocispec.Manifest){
		"empty title": func(m *ocispec.Manifest) { m.Layers[0].Annotations = map[string]string{ocispec.AnnotationTitle: ""} },
		"other bytes": nil,
		"other size":  func(m *ocispec.Manifest) { m.Layers[1].Size++ },
		"gone":        nil,
	} {
		files := []registrytest.File{{Name: "first", Body: []byte(what)}, {Name: "second", Body: []byte("right")}, {Name: "third", Body: []byte("3")}}
		img := registrytest.Artifact{Files: files, Mutate: mutate}.Image()
		pushed, err := w.reg.Push("a/b", "bad", img)
		if err != nil {
			t.Fatal(err)
		}
		switch what {
		case "other bytes":
			w.reg.PutBlobAs(pushed.Layers[1].Digest, []byte("evil."))
		case "gone":
			w.reg.DeleteBlob(pushed.Layers[1].Digest)
		}
		want := map[string]error{"empty title": ErrInvalidImage, "other bytes": ErrDigestMismatch, "other size": ErrDigestMismatch, "gone": ErrNotFound}[what]
		if id, err := w.Pull(t.Context(), pushed.Ref, Auth{}, nil); !errors.Is(err, want) {
			t.Errorf("%s: Pull = %s, %v, want %v", what, id, err, want)
		}
	}
	after, err := filepath.Glob(filepath.Join(w.root, "records", "*"))
	if diff := cmp.Diff(before, after); diff != "" || err != nil {
		t.Errorf("records: %s, %v", diff, err)
	}
	if published, ingested := w.snap.layers(); published+ingested != 0 {
		t.Errorf("%d and %d layers are left", published, ingested)
	}
}

func TestBrokenRecordOfAnArtifactIsSetAside(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Artifact{Files: []registrytest.File{{Name: "x", Body: []byte("1")}}}.Image())
	w.pull(p.Ref)
	file := filepath.Join(w.root, "records", p.Digest.Encoded())
	r, err := readRecord(file)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*record){
		"no layer": func(r *record) { r.Layers = nil }, "path": func(r *record) { r.Layers = []recordLayer{{DiffID: "sha256:../.."}} },
		"image": func(r *record) { r.ArtifactType = "" }, "manifest": func(r *record) { r.Manifest = append(r.Manifest, ' ') },
	} {
		bad := r.clone()
		change(bad)
		raw, err := bad.encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		w.reopen()
		if len(w.Problems()) != 1 || len(w.Images()) != 0 {
			t.Errorf("%s: %v, %d images", what, w.Problems(), len(w.Images()))
		}
	}
}
