package integration_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
)

func (d imageCalls) status(ref string) *runtimeapi.Image {
	d.T.Helper()
	r, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		d.T.Fatalf("ImageStatus(%s): %v", ref, err)
	}
	return r.Image
}

func (d imageCalls) list() []*runtimeapi.Image {
	d.T.Helper()
	r, err := d.Images.ListImages(d.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		d.T.Fatalf("ListImages: %v", err)
	}
	return r.Images
}

func (d imageCalls) remove(ref string) {
	d.T.Helper()
	if _, err := d.Images.RemoveImage(d.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		d.T.Fatalf("RemoveImage(%s): %v", ref, err)
	}
}

type imageCalls struct{ *harness.Daemon }

func small(t testing.TB, text string) registrytest.Image {
	return registrytest.Image{Layers: []registrytest.Layer{registrytestLayer(t, func(b *builder) { b.File("text", text, 0o644) })}}
}

func TestImageReferences(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	reg := harness.Registry(t)
	push := func(repo, tag string, img registrytest.Image) registrytest.Pushed {
		p, err := reg.Push(repo, tag, img)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	one := push("refs/one", "1", small(t, "one"))
	push("refs/one", "latest", small(t, "one"))
	two := push("refs/two", "1", small(t, "two"))
	if got := d.Pull(one.Ref); got != one.ImageID {
		t.Errorf("image_ref = %s, want the image's ID %s", got, one.ImageID)
	}
	repo := strings.TrimSuffix(one.Ref, ":1")
	if got := d.Pull(repo); got != one.ImageID { // latest
		t.Errorf("image_ref = %s", got)
	}
	if got := d.Pull(one.DigestRef); got != one.ImageID {
		t.Errorf("image_ref = %s", got)
	}
	d.Pull(two.Ref)
	hex := strings.TrimPrefix(one.ImageID, "sha256:")
	for _, ref := range []string{one.Ref, repo, one.DigestRef, one.ImageID, hex, hex[:12], repo + ":1@" + one.Digest.String()} {
		if img := d.status(ref); img.GetId() != one.ImageID {
			t.Errorf("status of %s = %v", ref, img)
		}
	}
	if img := d.status(repo + ":none"); img != nil {
		t.Errorf("status of an unknown tag = %v", img)
	}
	img := d.status(one.ImageID)
	if want := []string{one.Ref, repo + ":latest"}; !slices.Equal(img.RepoTags, want) || !slices.Equal(img.RepoDigests, []string{one.DigestRef}) {
		t.Errorf("tags %q, digests %q, want %q and %s", img.RepoTags, img.RepoDigests, want, one.DigestRef)
	}
	if img.Size == 0 || img.Pinned {
		t.Errorf("image = %v", img)
	}
	if n := len(d.list()); n != 2 {
		t.Errorf("%d images are listed, want 2", n)
	}
	d.remove(repo + ":latest") // all tags go
	if img := d.status(one.Ref); img != nil {
		t.Errorf("after removal: %v", img)
	}
	if n := len(d.list()); n != 1 {
		t.Errorf("%d images are listed, want 1", n)
	}
	d.remove(one.Ref)
	d.remove(strings.TrimPrefix(two.ImageID, "sha256:")[:20])
	if n := len(d.list()); n != 0 {
		t.Errorf("%d images are listed, want none", n)
	}
	d.Eventually(5*time.Second, "the layers go", func() bool {
		entries, _ := os.ReadDir(filepath.Join(d.Options().Root, "images", "layers"))
		return len(entries) == 0
	})
}

func TestImageUser(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	for user, want := range map[string]string{"": "0:false ", "1002": "1002:true ", "1002:5": "1002:true ", "alice": "0:false alice", "alice:5": "0:false alice"} {
		ref := accounts(t, user)
		d.Pull(ref)
		img := d.status(ref)
		if got := fmt.Sprintf("%d:%t %s", img.GetUid().GetValue(), img.Uid != nil, img.Username); got != want {
			t.Errorf("user %q: %s, want %s", user, got, want)
		}
	}
	r, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: accounts(t, "alice")}, Verbose: true})
	if err != nil || !strings.Contains(r.Info["info"], `"alice"`) {
		t.Errorf("verbose status = %v, %v, want the configuration", r.GetInfo(), err)
	}
}

// TestRemovedWhileInUse: a container keeps its layers, and they go with it.
func TestRemovedWhileInUse(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	layer := registrytestLayer(t, func(b *builder) { b.File("mine", "mine", 0o644) })
	image := harness.PushImage(t, "test/in-use", imageConfig(func(*ocispecConfig) {}), layer)
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("user"))
	c := pod.Run(d.Sleeper("c", harness.Image(image.Ref)))
	created := pod.Create(d.Sleeper("created", harness.Image(image.Ref)))
	d.remove(image.Ref)
	if img := d.status(image.Ref); img != nil {
		t.Errorf("the removed image is listed: %v", img)
	}
	if got := c.Sh("cat /mine"); got != "mine" {
		t.Errorf("file = %q", got)
	}
	d.Restart()
	created.Start()
	if got := created.Sh("cat /mine"); got != "mine" {
		t.Errorf("file = %q", got)
	}
	if s := c.Status(); s.ImageRef != image.ImageID {
		t.Errorf("image_ref = %s", s.ImageRef)
	}
	pod.Remove()
}

func TestImageFsInfo(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	usage := func() (images, containers uint64) {
		t.Helper()
		r, err := d.Images.ImageFsInfo(d.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil || len(r.ImageFilesystems) != 1 || len(r.ContainerFilesystems) != 1 {
			t.Fatalf("ImageFsInfo = %v, %v", r, err)
		}
		i, c := r.ImageFilesystems[0], r.ContainerFilesystems[0]
		if i.Timestamp == 0 || !strings.HasPrefix(i.GetFsId().GetMountpoint(), "/") || i.GetInodesUsed() == nil {
			t.Errorf("file system = %v", i)
		}
		return i.UsedBytes.GetValue(), c.UsedBytes.GetValue()
	}
	empty, _ := usage()
	c := d.RunPod(d.Pod("fs")).Run(d.Sleeper("c"))
	pulled, before := usage()
	if pulled < empty+2<<20 {
		t.Errorf("images took %d bytes, then %d, want some MiB more", empty, pulled)
	}
	c.Sh("dd if=/dev/zero of=/tmp/big bs=1M count=8 conv=fsync 2>/dev/null")
	d.Eventually(15*time.Second, "what a container writes is counted", func() bool {
		_, now := usage()
		return now >= before+8<<20
	})
}

// TestOnePullForAll: fifty callers of one image make one download.
func TestOnePullForAll(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	reg := harness.Registry(t)
	p, err := reg.Push("test/popular", "1", small(t, strings.Repeat("popular", 100000)))
	if err != nil {
		t.Fatal(err)
	}
	blob := p.Layers[0].Digest.String()
	before := reg.Count("GET", blob)
	ids := crowd(t, 50, func() (string, error) { return d.TryPull(p.Ref) })
	if len(ids) != 1 || !ids[p.ImageID] {
		t.Errorf("answers = %v", ids)
	}
	if n := reg.Count("GET", blob) - before; n != 1 {
		t.Errorf("the layer was asked for %d times", n)
	}
	d.remove(p.Ref)
}

func TestMirrors(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	d.Mirror("registry.example.org")
	id := d.Pull("registry.example.org/test/base:1")
	if img := d.status("registry.example.org/test/base:1"); img.GetId() != id || img.RepoTags[0] != "registry.example.org/test/base:1" {
		t.Errorf("image = %v", img)
	}
	// Not to be asked without TLS: anything but loopback that no file allows.
	_, err := d.TryPull("192.0.2.1:5000/x:1")
	if err == nil {
		t.Error("a registry that does not exist answers")
	}
}

func TestRegistryAuthentication(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	for name, auth := range map[string]registrytest.Auth{
		"basic": {Scheme: registrytest.Basic, Username: "u", Password: "p"},
		"token": {Scheme: registrytest.Token, Username: "u", Password: "p", IdentityToken: "i", RegistryToken: "r"},
	} {
		reg, err := registrytest.Start(registrytest.Options{Auth: auth})
		if err != nil {
			t.Fatal(err)
		}
		defer reg.Close()
		p, err := reg.Push("private/x", "1", small(t, name))
		if err != nil {
			t.Fatal(err)
		}
		pull := func(a *runtimeapi.AuthConfig) error {
			_, err := d.Images.PullImage(d.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: p.Ref}, Auth: a})
			return err
		}
		wantCode(t, name+" without credentials", pull(nil), codes.Unauthenticated)
		wantCode(t, name+" with a wrong password", pull(&runtimeapi.AuthConfig{Username: "u", Password: "x"}), codes.Unauthenticated)
		wantCode(t, name+" with credentials", pull(&runtimeapi.AuthConfig{Username: "u", Password: "p"}), codes.OK)
		wantCode(t, name+" without credentials, when the image is there", pull(nil), codes.Unauthenticated)
		if auth.Scheme == registrytest.Token {
			wantCode(t, "identity token", pull(&runtimeapi.AuthConfig{IdentityToken: "i"}), codes.OK)
			wantCode(t, "wrong identity token", pull(&runtimeapi.AuthConfig{IdentityToken: "x"}), codes.Unauthenticated)
			wantCode(t, "registry token", pull(&runtimeapi.AuthConfig{RegistryToken: "r"}), codes.OK)
			wantCode(t, "wrong registry token", pull(&runtimeapi.AuthConfig{RegistryToken: "x"}), codes.Unauthenticated)
		}
	}
}

// stackLayers are the layers that a stack must get right; everything is below /tree, since other folders are mounted over.
func stackLayers() [][]registrytest.File {
	long := "tree/" + strings.Repeat("long-name-", 22) + "/" + strings.Repeat("n", 200)
	at := time.Date(2001, 2, 3, 4, 5, 6, 789000000, time.UTC)
	file := func(name, body string) registrytest.File { return registrytest.File{Name: name, Body: []byte(body)} }
	return [][]registrytest.File{
		{
			{Name: "tree/", Mode: 0o751, UID: 3, GID: 4, ModTime: at},
			file("tree/implicit/parents/of/this", "1"),
			{Name: "tree/real/", Mode: 0o1777}, {Name: "tree/link", Type: tar.TypeSymlink, Linkname: "/tree/real"}, {Name: "tree/rel", Type: tar.TypeSymlink, Linkname: "real"},
			file("tree/target", "hard"), {Name: "tree/hard", Type: tar.TypeLink, Linkname: "tree/target"},
			file("tree/gone/a", "a"), file("tree/gone/b/c", "c"), file("tree/opaque/x", "x"), file("tree/opaque/sub/y", "y"), file("tree/removed", "r"),
			file("tree/becomes-dir", "f"), file("tree/becomes-file/z", "z"),
			{Name: "tree/modes", Mode: 0o6755, UID: 1000, GID: 1000, ModTime: at, Body: []byte("suid")},
			{Name: "tree/cap", Mode: 0o755, Body: []byte("cap"), PAX: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
			{Name: "tree/xattr", Body: []byte("x"), PAX: map[string]string{"SCHILY.xattr.user.key": "value\x00binary"}},
			{Name: "tree/fifo", Type: tar.TypeFifo, Mode: 0o622}, {Name: "tree/null", Type: tar.TypeChar, Major: 1, Minor: 3, Mode: 0o666},
			{Name: "tree/block", Type: tar.TypeBlock, Major: 7, Minor: 200, Mode: 0o660},
			file(long, "long"), file("tree/empty", ""), file("tree/sp ace\nand ü", "odd"),
			{Name: "tree/zeros", Body: make([]byte, 1<<20)},
		},
		{
			file("tree/link/through-absolute", "2"), file("tree/rel/through-relative", "2"), file("tree/implicit/parents/more", "2"),
			{Name: "tree/across", Type: tar.TypeLink, Linkname: "tree/target"}, {Name: "tree/deep/across", Type: tar.TypeLink, Linkname: "tree/implicit/parents/of/this"},
			{Name: "tree/.wh.removed"}, {Name: "tree/gone/.wh.a"}, {Name: "tree/gone/.wh.b"},
			{Name: "tree/opaque/.wh..wh..opq"}, file("tree/opaque/new", "n"),
			{Name: "tree/.wh.becomes-dir"}, file("tree/becomes-dir/inner", "i"), {Name: "tree/.wh.becomes-file"}, file("tree/becomes-file", "now a file"),
			{Name: "tree/target", Mode: 0o600, Body: []byte("rewritten: the old one lives on in its links")},
		},
		{
			{Name: "tree/real/", Mode: 0o700, UID: 9, GID: 9, ModTime: at}, {Name: "tree/.wh.gone"}, file("tree/gone/again", "3"),
			{Name: "tree/opaque/", Mode: 0o711}, {Name: "tree/cap", Mode: 0o700, Body: []byte("no longer")}, {Name: "tree/.wh.never-was"},
			{Name: "tree/across2", Type: tar.TypeLink, Linkname: "tree/across"},
		},
	}
}

// TestProgressOfAPull: how far a pull is can be read while it is under way, in the words that the command line reads.
func TestProgressOfAPull(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	reg, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	raw := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{}).Read(raw)
	p, err := reg.Push("test/slow", "1", small(t, string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	reg.AddFault(registrytest.Fault{Path: p.Layers[0].Digest.String(), Cut: registrytest.Stall, At: 300_000})
	ctx, cancel := context.WithCancel(d.Context())
	defer cancel()
	pulled := make(chan error, 1)
	go func() {
		_, err := d.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: p.Ref}})
		pulled <- err
	}()
	d.Eventually(harness.Timeout, "a part of the layer is told of", func() bool {
		r, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: p.Ref}, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var pull struct {
			State  string
			Layers []struct {
				Digest, State string
				Bytes, Size   int64
			}
		}
		if text := r.Info["pull"]; text == "" || json.Unmarshal([]byte(text), &pull) != nil || len(pull.Layers) != 1 {
			return false
		}
		l := pull.Layers[0]
		return pull.State == "downloading" && l.State == "downloading" && l.Digest == p.Layers[0].Digest.String() &&
			l.Size == p.Layers[0].Size && 0 < l.Bytes && l.Bytes < l.Size
	})
	cancel()
	if err := <-pulled; err == nil {
		t.Error("a pull that was given up is answered with an image")
	}
}

// TestStackEqualsSequentialUnpack compares what a container sees with layers unpacked one over the other, entry by entry.
func TestStackEqualsSequentialUnpack(t *testing.T) {
	d := harness.Start(t)
	want := filepath.Join(d.Dir, "sequential")
	if err := os.Mkdir(want, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, files := range stackLayers() {
		raw, err := registrytest.Tar(files...)
		if err != nil {
			t.Fatal(err)
		}
		if err := unpack(want, raw); err != nil {
			t.Fatal(err)
		}
	}
	wantTree := treeOf(t, filepath.Join(want, "tree"))
	pod := d.RunPod(d.Pod("stack"))
	for _, schema := range []registrytest.Schema{registrytest.OCI, registrytest.Docker} {
		for _, pack := range []registrytest.Compression{registrytest.Gzip, registrytest.Zstd, registrytest.Plain} {
			t.Run(fmt.Sprintf("schema %d, compression %d", schema, pack), func(t *testing.T) {
				img := registrytest.Image{Schema: schema, Compression: pack}
				shell := harness.ShellLayer(t)
				shell.Compression = registrytest.Inherit
				img.Layers = append(img.Layers, shell)
				for _, files := range stackLayers() {
					img.Layers = append(img.Layers, registrytest.Layer{Files: files})
				}
				p, err := harness.Registry(t).Push(fmt.Sprintf("test/stack-%d-%d", schema, pack), "1", img)
				if err != nil {
					t.Fatal(err)
				}
				d.Pull(p.Ref)
				c := pod.Run(d.Sleeper(fmt.Sprintf("c%d%d", schema, pack), harness.Image(p.Ref)))
				got := treeOf(t, fmt.Sprintf("/proc/%d/root/tree", c.PID()))
				if diff := cmp.Diff(wantTree, got); diff != "" {
					t.Errorf("the tree differs (-sequential +berth):\n%s", diff)
				}
			})
		}
	}
}

// TestProxy: registries are asked by way of the proxy that berthd's environment names; one that wants credentials is told of with its registry.
func TestProxy(t *testing.T) {
	closed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusProxyAuthRequired) }))
	defer closed.Close()
	open := harness.Registry(t).URL
	d := harness.Start(t, harness.WithEnv(
		"HTTP_PROXY="+open, "http_proxy="+open, "HTTPS_PROXY="+closed.URL, "https_proxy="+closed.URL, "NO_PROXY=", "no_proxy="))
	for _, scheme := range []string{"http", "https"} {
		host := scheme + ".invalid"
		if err := os.Mkdir(filepath.Join(d.Hosts, host), 0o755); err != nil {
			t.Fatal(err)
		}
		d.Write(filepath.Join(d.Hosts, host, "hosts.toml"), fmt.Sprintf("server = %q\n", scheme+"://"+host))
	}
	harness.PushImage(t, "test/proxy", imageConfig(func(*ocispecConfig) {}))
	d.Pull("http.invalid/test/proxy:1")
	if _, err := d.TryPull("https.invalid/test/proxy:1"); err == nil || !strings.Contains(err.Error(), "https.invalid") ||
		!strings.Contains(err.Error(), "Proxy Authentication Required") {
		t.Errorf("PullImage by way of a proxy that wants credentials = %v", err)
	}
}

// unpack is the plain way: one entry after the other, whiteouts at once, paths followed inside root.
func unpack(root string, raw []byte) error {
	tr := tar.NewReader(bytes.NewReader(raw))
	type later struct {
		path string
		at   time.Time
	}
	var dirs []later
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Clean("/" + h.Name)
		parent, err := securejoin.SecureJoin(root, path.Dir(name))
		if err != nil {
			return err
		}
		if err := os.MkdirAll(parent, 0o755); err != nil {
			return err
		}
		base := path.Base(name)
		if base == ".wh..wh..opq" {
			entries, err := os.ReadDir(parent)
			if err != nil {
				return err
			}
			for _, e := range entries {
				os.RemoveAll(filepath.Join(parent, e.Name()))
			}
			continue
		}
		if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			os.RemoveAll(filepath.Join(parent, hidden))
			continue
		}
		p := filepath.Join(parent, base)
		if err := place(root, p, h, tr); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, later{p, h.ModTime})
		}
	}
	for _, d := range dirs {
		ts := []unix.Timespec{unix.NsecToTimespec(d.at.UnixNano()), unix.NsecToTimespec(d.at.UnixNano())}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, d.path, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return nil
}

func place(root, p string, h *tar.Header, body io.Reader) error {
	if st, err := os.Lstat(p); err == nil && !(st.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if err = os.Mkdir(p, 0o700); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	case tar.TypeSymlink:
		err = os.Symlink(h.Linkname, p)
	case tar.TypeLink:
		target, joinErr := securejoin.SecureJoin(root, path.Dir("/"+h.Linkname))
		if joinErr != nil {
			return joinErr
		}
		return os.Link(filepath.Join(target, path.Base(h.Linkname)), p)
	case tar.TypeFifo:
		err = unix.Mkfifo(p, 0o600)
	case tar.TypeChar:
		err = unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknod(p, unix.S_IFBLK|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		var b []byte
		if b, err = io.ReadAll(body); err == nil {
			err = os.WriteFile(p, b, 0o600)
		}
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(p, h.Uid, h.Gid); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(p, uint32(h.Mode)); err != nil {
			return err
		}
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
			if err := unix.Lsetxattr(p, name, []byte(v), 0); err != nil {
				return err
			}
		}
	}
	ts := []unix.Timespec{unix.NsecToTimespec(h.ModTime.UnixNano()), unix.NsecToTimespec(h.ModTime.UnixNano())}
	return unix.UtimesNanoAt(unix.AT_FDCWD, p, ts, unix.AT_SYMLINK_NOFOLLOW)
}

// treeOf describes every entry of a tree: type, mode, owner, time, device, xattrs, content, target, and the first name of its link group.
// The time of a folder that no layer names is not compared: nothing defines it.
func treeOf(t testing.TB, root string) map[string]string {
	t.Helper()
	tree := map[string]string{}
	named := map[string]bool{}
	for _, files := range stackLayers() {
		for _, f := range files {
			named["/"+strings.TrimSuffix(strings.TrimPrefix(f.Name, "tree"), "/")] = strings.HasSuffix(f.Name, "/")
		}
	}
	groups := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name := "/" + strings.TrimPrefix(p, root)
		text := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
		case unix.S_IFLNK:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text += " " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			text += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
			if st.Nlink > 1 {
				if groups[st.Ino] == "" {
					groups[st.Ino] = name
				}
				text += fmt.Sprintf(" link %d of %s", st.Nlink, groups[st.Ino])
			}
		} else if named[strings.Replace(name, "//", "/", 1)] && !changedLater(name) {
			text += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		tree[name] = text + xattrs(t, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

// changedLater tells of folders whose time a later layer changes by what it puts there, which unpackers do differently.
func changedLater(name string) bool { return name == "/" || name == "//opaque" || name == "//real" }

func xattrs(t testing.TB, p string) string {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(p, buf)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprintf(" %s=%x", name, value[:n]))
	}
	slices.Sort(all)
	return strings.Join(all, "")
}

// TestPinnedImages: what a pattern pins is told to the kubelet, whose garbage collection spares it; a client that wants it gone gets
// its way (cri-api, Image.pinned).
func TestPinnedImages(t *testing.T) {
	d := imageCalls{harness.Start(t, harness.WithConfig("[images]\npinned = [\"*/test/keep*\"]"))}
	reg := harness.Registry(t)
	pinned := map[string]bool{}
	for _, repo := range []string{"test/keep/this", "test/other"} {
		p, err := reg.Push(repo, "1", small(t, repo))
		if err != nil {
			t.Fatal(err)
		}
		pinned[d.Pull(p.Ref)] = repo == "test/keep/this"
		if got := d.status(p.Ref); got.Pinned != pinned[got.Id] {
			t.Errorf("ImageStatus(%s).Pinned = %v", p.Ref, got.Pinned)
		}
	}
	for _, img := range d.list() {
		if want, mine := pinned[img.Id]; mine && img.Pinned != want {
			t.Errorf("%s is pinned: %v, want %v", img.RepoTags, img.Pinned, want)
		}
	}
	for id := range pinned {
		d.remove(id)
		if d.status(id) != nil {
			t.Errorf("%s is still there", id)
		}
	}
}

// TestPullIsExplained: which hosts a pull asked, in which order and why, is told after it, also when it has failed.
func TestPullIsExplained(t *testing.T) {
	d := imageCalls{harness.Start(t)}
	d.Mirror("registry.example.org")
	d.Pull("registry.example.org/test/base:1")
	for ref, want := range map[string][]string{
		"registry.example.org/test/base:1": {`"state":"done"`, "registry.example.org/hosts.toml, host 1", `"answers":`},
		"127.0.0.1:1/x:1":                  {`"state":"failed"`, "has no folder 127.0.0.1:1", "connection refused"},
	} {
		_, _ = d.TryPull(ref)
		s, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(s.Info["lastPull"], w) {
				t.Errorf("%s: no %q in %s", ref, w, s.Info["lastPull"])
			}
		}
	}
}
