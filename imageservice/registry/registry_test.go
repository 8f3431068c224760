package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry/registrytest"
)

// patient waits for a registry as long as a busy machine may need.
var patient = Config{StallTimeout: 30 * time.Second, Patience: 20 * time.Second, Backoff: 5 * time.Millisecond}

// quick is for registries that say nothing: what it asks of others may fail on a busy machine.
var quick = Config{StallTimeout: 400 * time.Millisecond, Patience: 150 * time.Millisecond, Backoff: 5 * time.Millisecond}

func start(t *testing.T, opts registrytest.Options) *registrytest.Registry {
	t.Helper()
	reg, err := registrytest.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	return reg
}

// noise cannot be compressed, so that a blob is as large as it looks.
func noise(n int) []byte {
	raw := make([]byte, n)
	src := rand.NewChaCha8([32]byte{1})
	src.Read(raw)
	return raw
}

func push(t *testing.T, reg *registrytest.Registry, img registrytest.Image) registrytest.Pushed {
	t.Helper()
	if img.Layers == nil {
		img.Layers = []registrytest.Layer{{Files: []registrytest.File{{Name: "f", Body: noise(3 << 20)}}}}
	}
	p, err := reg.Push("a/b", "1", img)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func open(t *testing.T, config Config, ref string, cred Credentials) *Source {
	t.Helper()
	parsed, err := reference.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(config).Open(parsed, cred)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// pullAll gets the manifest, the config and all layers.
func pullAll(ctx context.Context, s *Source) error {
	m, err := s.Manifest(ctx)
	if err != nil {
		return err
	}
	if _, err := s.Fetch(ctx, m.Config); err != nil {
		return err
	}
	for _, l := range m.Layers {
		if _, err := s.Fetch(ctx, l); err != nil {
			return err
		}
	}
	return nil
}

// hostsDir writes a hosts.toml for each host and returns the folder.
func hostsDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPullsEverySchemaAndFollowsIndexes(t *testing.T) {
	reg := start(t, registrytest.Options{})
	for _, schema := range []registrytest.Schema{registrytest.OCI, registrytest.Docker} {
		p := push(t, reg, registrytest.Image{Schema: schema})
		for _, ref := range []string{p.Ref, p.DigestRef} {
			s := open(t, patient, ref, Credentials{})
			m, err := s.Manifest(t.Context())
			if err != nil || m.Digest != p.Digest || m.Named != p.Digest || m.Config.Digest.String() != p.ImageID || len(m.Layers) != 1 {
				t.Errorf("Manifest(%s) = %+v, %v", ref, m, err)
			}
			if err := pullAll(t.Context(), s); err != nil {
				t.Errorf("pull %s: %v", ref, err)
			}
		}
		other := registrytest.Image{}
		other.Platform.OS, other.Platform.Architecture = "linux", "s390x"
		index, images, err := reg.PushIndex("a/i", "1", schema, other, registrytest.Image{}, other)
		if err != nil {
			t.Fatal(err)
		}
		m, err := open(t, patient, index.Ref, Credentials{}).Manifest(t.Context())
		if err != nil || m.Named != index.Digest || m.Digest != images[1].Digest {
			t.Errorf("Manifest of index = %+v, %v", m, err)
		}
		only, _, err := reg.PushIndex("a/i", "2", schema, other)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open(t, patient, only.Ref, Credentials{}).Manifest(t.Context()); !errors.Is(err, ErrNoPlatform) || !strings.Contains(err.Error(), "s390x") {
			t.Errorf("Manifest without our platform: %v", err)
		}
	}
}

func TestErrorsTellWhatIsWrong(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	for _, tc := range []struct {
		name string
		ref  string
		want error
		text string
	}{
		{"unknown tag", reg.Host() + "/a/b:none", ErrNotFound, "MANIFEST_UNKNOWN"},
		{"unknown digest", reg.Host() + "/a/b@" + digest.FromString("x").String(), ErrNotFound, reg.Host()},
		{"down", "127.0.0.1:1/a/b:1", ErrUnavailable, "connection refused"},
		{"good", p.Ref, nil, ""},
	} {
		err := pullAll(t.Context(), open(t, patient, tc.ref, Credentials{}))
		if !errors.Is(err, tc.want) || tc.want != nil && !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %v with %q", tc.name, err, tc.want, tc.text)
		}
	}
}

func TestResumesByRangeAfterResets(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault registrytest.Fault
	}{
		{"reset", registrytest.Fault{Cut: registrytest.Reset}},
		{"stall", registrytest.Fault{Cut: registrytest.Stall}},
		{"reset without range", registrytest.Fault{Cut: registrytest.Reset, Quirks: registrytest.IgnoreRange}},
		{"reset with wrong range", registrytest.Fault{Cut: registrytest.Reset, Quirks: registrytest.WrongRange}},
		{"an early end without length", registrytest.Fault{Cut: registrytest.Truncate, Quirks: registrytest.NoLength}},
		{"reset without length", registrytest.Fault{Cut: registrytest.Reset, Quirks: registrytest.NoLength}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := start(t, registrytest.Options{})
			p := push(t, reg, registrytest.Image{})
			for i := range 3 {
				f := tc.fault
				f.Path, f.Times, f.At = "/blobs/"+p.Layers[0].Digest.String(), 1, int64(i+1)<<20-int64(i)
				if f.Quirks == registrytest.WrongRange {
					f.Times = 2 // the wrong range, and the whole blob that is asked for then
				}
				reg.AddFault(f)
			}
			config := patient
			if tc.fault.Cut == registrytest.Stall {
				config.StallTimeout = 2 * time.Second
			}
			if err := pullAll(t.Context(), open(t, config, p.Ref, Credentials{})); err != nil {
				t.Error(err)
			}
			ranges := 0
			for _, r := range reg.Requests() {
				if r.Header.Get("Range") != "" {
					ranges++
				}
			}
			if ranges < 2 {
				t.Errorf("%d Range requests, want at least 2", ranges)
			}
		})
	}
}

// shortWriter ends a connection after so many bytes of a body, all of which arrive.
type shortWriter struct {
	http.ResponseWriter
	left int
}

func (w *shortWriter) Write(b []byte) (int, error) {
	n, err := w.ResponseWriter.Write(b[:min(len(b), w.left)])
	if w.left -= n; w.left == 0 {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // the client may have gone
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// TestResumesWhileThereIsProgress: connections that brought next to nothing are no reason to give up, however many they are, when those between
// them bring more.
func TestResumesWhileThereIsProgress(t *testing.T) {
	reg := start(t, registrytest.Options{})
	path := "/blobs/" + push(t, reg, registrytest.Image{}).Layers[0].Digest.String()
	var count atomic.Int64
	short := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, path) {
			left := 3 * progressBytes
			if count.Add(1)%2 == 0 {
				left = 1000
			}
			w = &shortWriter{w, left}
		}
		reg.ServeHTTP(w, r)
	}))
	t.Cleanup(short.Close)
	if err := pullAll(t.Context(), open(t, patient, short.Listener.Addr().String()+"/a/b:1", Credentials{})); err != nil {
		t.Error(err)
	}
	if n := count.Load(); n <= 2*maxIdleAttempts {
		t.Errorf("%d connections, want more than %d", n, 2*maxIdleAttempts)
	}
}

func TestGivesUpWithoutProgress(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault registrytest.Fault
	}{
		{"reset at once", registrytest.Fault{Cut: registrytest.Reset, At: 10}},
		{"stall after headers", registrytest.Fault{Cut: registrytest.Stall}},
		{"one byte at a time", registrytest.Fault{Pace: registrytest.Pace{Size: 1, Every: 20 * time.Millisecond}}},
		{"no headers", registrytest.Fault{Wait: time.Hour}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := start(t, registrytest.Options{})
			p := push(t, reg, registrytest.Image{})
			f := tc.fault
			f.Path = "/blobs/" + p.Layers[0].Digest.String()
			reg.AddFault(f)
			begin := time.Now()
			err := pullAll(t.Context(), open(t, quick, p.Ref, Credentials{}))
			if !errors.Is(err, ErrUnavailable) || time.Since(begin) > 30*time.Second {
				t.Errorf("after %v: %v, want ErrUnavailable", time.Since(begin), err)
			}
		})
	}
}

func TestWrongBytesAreNeverTaken(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault registrytest.Fault
		want  error
	}{
		{"flipped byte", registrytest.Fault{Cut: registrytest.Corrupt, At: 1000}, ErrDigestMismatch},
		{"short", registrytest.Fault{Cut: registrytest.Truncate, At: 1000}, ErrDigestMismatch},
		{"short and chunked", registrytest.Fault{Cut: registrytest.Truncate, At: 1000, Quirks: registrytest.NoLength}, ErrDigestMismatch},
		{"endless", registrytest.Fault{Quirks: registrytest.Endless}, ErrDigestMismatch},
		{"HTML", registrytest.Fault{Status: 200, Body: []byte("<html>"), Header: http.Header{"Content-Type": {"text/html"}}}, ErrDigestMismatch},
		{"Content-Encoding", registrytest.Fault{Header: http.Header{"Content-Encoding": {"gzip"}}}, ErrUnavailable},
		{"1 MiB of headers", registrytest.Fault{Header: http.Header{"X": {strings.Repeat("x", 1<<20)}}}, ErrUnavailable},
		{"gone", registrytest.Fault{Status: 404}, ErrNotFound},
		{"206 unasked", registrytest.Fault{Status: 206, Body: noise(100)}, ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := start(t, registrytest.Options{})
			p := push(t, reg, registrytest.Image{})
			f := tc.fault
			f.Path = "/blobs/" + p.Layers[0].Digest.String()
			reg.AddFault(f)
			err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{}))
			if !errors.Is(err, tc.want) {
				t.Errorf("%v, want %v", err, tc.want)
			}
			if n := reg.Count("GET", p.Layers[0].Digest.String()); errors.Is(tc.want, ErrDigestMismatch) && n > 3 {
				t.Errorf("asked %d times for the same wrong bytes", n)
			}
		})
	}
}

func TestManifestsThatLieAreRefused(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	good := string(p.Manifest)
	layer := `{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"` + digest.FromString("x").String() + `","size":1}`
	index := func(descs string) string {
		return `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[` + descs + `]}`
	}
	const oci, ociIndex = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json"
	for _, tc := range []struct{ name, mediaType, raw string }{
		{"not JSON", oci, "<html>"},
		{"empty", oci, ""},
		{"null", oci, "null"},
		{"number", oci, "7"},
		{"null fields", oci, `{"schemaVersion":2,"config":null,"layers":null}`},
		{"larger than 4 MiB", oci, good[:len(good)-1] + strings.Repeat(" ", 4<<20) + "}"},
		{"manifests and layers", oci, strings.Replace(good, `"layers"`, `"manifests":[],"layers"`, 1)},
		{"index with layers", ociIndex, index("")[:len(index(""))-1] + `,"layers":[]}`},
		{"Content-Type of an index", ociIndex, good},
		{"manifest that says index", ociIndex, strings.Replace(good, oci, ociIndex, 1)},
		{"index that says manifest", oci, strings.Replace(index(""), ociIndex, oci, 1)},
		{"Content-Type of Docker", registrytest.MediaTypeDockerManifest, good},
		{"body of an index", oci, strings.Replace(good, oci, ociIndex, 1)},
		{"key twice", oci, strings.Replace(good, `"layers"`, `"layers":[],"layers"`, 1)},
		{"key in two cases", oci, strings.Replace(good, `"layers"`, `"Layers":[],"layers"`, 1)},
		{"key in another case", oci, strings.Replace(good, `"layers"`, `"Layers"`, 1)},
		{"key in two spellings", oci, strings.Replace(good, `"layers"`, `"layer\u017f":[],"layers"`, 1)},
		{"key in another spelling", oci, strings.Replace(good, `"layers"`, `"layerſ"`, 1)},
		{"digest in another case", oci, strings.Replace(good, `"digest"`, `"Digest"`, 1)},
		{"trailing bytes", oci, good + "{}"},
		{"schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", `{"schemaVersion":1,"fsLayers":[{"blobSum":"sha256:x"}]}`},
		{"schema 3", oci, strings.Replace(good, `"schemaVersion": 2`, `"schemaVersion": 3`, 1)},
		{"digest with ..", oci, strings.Replace(good, p.Layers[0].Digest.String(), "sha256:../../../etc/shadow", 1)},
		{"digest too short", oci, strings.Replace(good, p.Layers[0].Digest.String(), p.Layers[0].Digest.String()[:70], 1)},
		{"digest in upper case", oci, strings.Replace(good, p.Layers[0].Digest.Encoded(), strings.ToUpper(p.Layers[0].Digest.Encoded()), 1)},
		{"digest of unknown algorithm", oci, strings.Replace(good, p.Layers[0].Digest.String(), "md5:"+strings.Repeat("0", 32), 1)},
		{"negative size", oci, strings.Replace(good, fmt.Sprint(p.Layers[0].Size), "-1", 1)},
		{"no size", oci, strings.Replace(good, `"size": `+fmt.Sprint(p.Layers[0].Size), `"x":1`, 1)},
		{"huge config", oci, strings.Replace(good, fmt.Sprintf(`"size": %d`, len(p.Config)), `"size": 999999999`, 1)},
		{"10000 layers", oci, strings.Replace(good, `"layers": [`, `"layers": [`+strings.Repeat(layer+",", 10_000), 1)},
		{"plugin of Docker", registrytest.MediaTypeDockerManifest, strings.NewReplacer("application/vnd.oci.image.config.v1+json", "application/vnd.docker.plugin.v1+json",
			oci, registrytest.MediaTypeDockerManifest).Replace(good)},
		{"encrypted layer", oci, strings.Replace(good, "tar+gzip", "tar+gzip+encrypted", 1)},
		{"deep", oci, strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)},
		{"deeper than is followed", oci, good[:len(good)-1] + `,"x":` + strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1) + "}"},
		{"media type of nobody", "application/octet-stream", strings.Replace(good, `"mediaType": "`+oci+`"`, `"mediaType": "application/vnd.x+json"`, 1)},
		{"nothing that tells the kind", "text/plain", fmt.Sprintf(`{"schemaVersion":2,"config":{"digest":%q,"size":%d}}`, p.ImageID, len(p.Config))},
		{"file system for the kernel to read", oci, strings.Replace(good, "layer.v1.tar+gzip", "layer.v1.erofs", 1)},
		{"index of 30000", ociIndex, index(strings.Repeat(`{"digest":"","size":1},`, 30_000) + `{}`)},
	} {
		reg.PutManifest("a/b", "bad", tc.mediaType, []byte(tc.raw))
		m, err := open(t, patient, reg.Host()+"/a/b:bad", Credentials{}).Manifest(t.Context())
		if !errors.Is(err, ErrInvalidManifest) {
			t.Errorf("%s: Manifest = %v, %v, want ErrInvalidManifest", tc.name, m.Digest, err)
		}
	}
	// An index in an index is fine once, not without end.
	raw, media := p.Manifest, p.MediaType
	for depth := range 4 {
		d := digest.FromBytes(raw)
		reg.PutManifest("a/b", d.String(), media, raw)
		raw = []byte(index(fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{"a":"1","A":"2"}}`, media, d, len(raw))))
		media = ociIndex
		reg.PutManifest("a/b", "nested", media, raw)
		_, err := open(t, patient, reg.Host()+"/a/b:nested", Credentials{}).Manifest(t.Context())
		if ok := err == nil; ok != (depth+1 <= maxIndexDepth) {
			t.Errorf("index of depth %d: %v", depth+1, err)
		}
	}
}

func TestManifestByDigestIsHeldAgainstIt(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	q, err := reg.Push("a/b", "2", registrytest.Image{})
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`,
		q.MediaType, q.Digest, len(q.Manifest)+1)
	reg.PutManifest("a/b", "long", "application/vnd.oci.image.index.v1+json", []byte(index))
	if _, err := open(t, patient, reg.Host()+"/a/b:long", Credentials{}).Manifest(t.Context()); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("other size than the index says: %v, want ErrDigestMismatch", err)
	}
	reg.PutManifest("a/b", p.Digest.String(), q.MediaType, q.Manifest)
	if _, err := open(t, patient, p.DigestRef, Credentials{}).Manifest(t.Context()); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("other bytes: %v, want ErrDigestMismatch", err)
	}
	reg.AddFault(registrytest.Fault{Path: "/manifests/2", Header: http.Header{"Docker-Content-Digest": {p.Digest.String()}}})
	if _, err := open(t, patient, q.Ref, Credentials{}).Manifest(t.Context()); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("other digest in the header: %v, want ErrDigestMismatch", err)
	}
	reg.ClearFaults()
	reg.AddFault(registrytest.Fault{Path: "/manifests/2", Status: 206, Header: http.Header{"Content-Type": {q.MediaType}}, Body: q.Manifest})
	if _, err := open(t, patient, q.Ref, Credentials{}).Manifest(t.Context()); !errors.Is(err, ErrUnavailable) {
		t.Errorf("206 to a request for everything: %v, want ErrUnavailable", err)
	}
}

func TestForeignURLsAreIgnored(t *testing.T) {
	reg, evil := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{Schema: registrytest.Docker, Layers: []registrytest.Layer{{
		Files: []registrytest.File{{Name: "f"}}, URLs: []string{evil.URL + "/x", "file:///etc/shadow", "http://169.254.169.254/"},
		MediaType: "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
	}}})
	if err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{})); err != nil {
		t.Error(err)
	}
	if n := len(evil.Requests()); n != 0 {
		t.Errorf("%d requests to a descriptor's urls", n)
	}
}

func TestStatusesAreRetriedAsTheySay(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	for _, tc := range []struct {
		name     string
		status   int
		header   http.Header
		times    int
		ok       bool
		min, max time.Duration
	}{
		{"429 with seconds", 429, http.Header{"Retry-After": {"1"}}, 1, true, time.Second, 20 * time.Second},
		{"503 with a date", 503, http.Header{}, 1, true, time.Second, 20 * time.Second}, // two to three seconds from then
		{"503 with a date that is over", 503, http.Header{"Retry-After": {time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)}}, 1, true, 0, 20 * time.Second},
		{"500 twice", 500, nil, 2, true, 10 * time.Millisecond, 20 * time.Second},
		{"500 for ever", 500, nil, 0, false, 0, 20 * time.Second},
		{"400", 400, nil, 1, false, 0, 20 * time.Second},
	} {
		reg.ClearFaults()
		begin := time.Now()
		if tc.name == "503 with a date" {
			tc.header.Set("Retry-After", begin.Add(3*time.Second).UTC().Format(http.TimeFormat))
		}
		reg.AddFault(registrytest.Fault{Path: "/manifests/", Status: tc.status, Header: tc.header, Times: tc.times})
		_, err := open(t, patient, p.Ref, Credentials{}).Manifest(t.Context())
		if took := time.Since(begin); (err == nil) != tc.ok || took < tc.min || took > tc.max {
			t.Errorf("%s: %v after %v", tc.name, err, took)
		}
	}
	reg.ClearFaults()
	reg.AddFault(registrytest.Fault{Path: "/manifests/", Status: 429, Header: http.Header{"Retry-After": {"1000000000"}}})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := open(t, patient, p.Ref, Credentials{}).Manifest(ctx); err == nil || time.Since(begin) > 20*time.Second {
		t.Errorf("cancelled wait: %v after %v", err, time.Since(begin))
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "1000000000": time.Minute, "99999999999999999999999": time.Minute, "-5": 0, "x": 0,
		"Fri, 02 Jan 2026 03:04:12 GMT": 7 * time.Second, "Fri, 02 Jan 2026 03:04:01 GMT": 0, "Fri, 02 Jan 2126 03:04:01 GMT": time.Minute,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("retryAfter(%q) = %v, want %v", in, got, want)
		}
	}
}

func TestCancelEndsAReadAtOnce(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	reg.AddFault(registrytest.Fault{Path: "/blobs/" + p.Layers[0].Digest.String(), Cut: registrytest.Stall, At: 1 << 20})
	ctx, cancel := context.WithCancel(t.Context())
	s := open(t, Config{}, p.Ref, Credentials{})
	m, err := s.Manifest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r := s.Blob(ctx, m.Layers[0])
	defer r.Close()
	time.AfterFunc(100*time.Millisecond, cancel)
	begin := time.Now()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) || time.Since(begin) > 20*time.Second {
		t.Errorf("after %v: %v, want context.Canceled", time.Since(begin), err)
	}
}

func TestLoopbackSpeaksHTTPAndFallsBackToTLS(t *testing.T) {
	reg := start(t, registrytest.Options{TLS: true})
	p := push(t, reg, registrytest.Image{})
	err := pullAll(t.Context(), open(t, patient, p.Ref, Credentials{}))
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown certificate: %v", err)
	}
	for name, toml := range map[string]string{
		"ca":          `ca = "ca.pem"`,
		"ca list":     `ca = ["ca.pem"]`,
		"server":      `server = "` + reg.URL + `"` + "\nca = \"ca.pem\"",
		"skip_verify": `skip_verify = true`,
	} {
		folder := strings.Replace(reg.Host(), ":", "_", 1) + "_"
		dir := hostsDir(t, map[string]string{folder + "/hosts.toml": toml, folder + "/ca.pem": string(reg.CertPEM())})
		if err := pullAll(t.Context(), open(t, Config{HostsDir: dir}, p.Ref, Credentials{})); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := hostsDir(t, map[string]string{reg.Host() + "/ca.crt": string(reg.CertPEM())})
	if err := pullAll(t.Context(), open(t, Config{HostsDir: dir}, p.Ref, Credentials{})); err != nil {
		t.Errorf("Docker's files: %v", err)
	}
}

// TestEndpointsAreToldAtAnyTime: who asks how a pull is getting on does not wait for a registry that says nothing.
func TestEndpointsAreToldAtAnyTime(t *testing.T) {
	reg := start(t, registrytest.Options{})
	reg.AddFault(registrytest.Fault{Wait: time.Hour})
	s := open(t, Config{StallTimeout: time.Hour}, reg.Host()+"/a/b:1", Credentials{})
	ctx, cancel := context.WithCancel(t.Context())
	asked, told := make(chan struct{}), make(chan []Endpoint, 1)
	go func() {
		defer close(asked)
		_, _ = s.Manifest(ctx)
	}()
	for reg.Serving() == 0 {
		time.Sleep(time.Millisecond)
	}
	go func() { told <- s.Endpoints() }()
	select {
	case all := <-told:
		if len(all) != 1 {
			t.Errorf("endpoints = %+v", all)
		}
	case <-time.After(time.Minute):
		t.Error("Endpoints waits for the registry")
	}
	cancel()
	<-asked
}

func TestPlainHTTPOnlyWhereAllowed(t *testing.T) {
	for _, host := range []string{"reg.example", "10.1.2.3:5000", "localhost.example:5000"} {
		if spec := defaultSpec(host); spec.base.Scheme != "https" || spec.guess {
			t.Errorf("defaultSpec(%s) = %+v", host, spec)
		}
	}
	specs, err := parseHosts([]byte(`server = "http://10.1.2.3:5000"`), "/", "reg.example")
	if err != nil || specs[0].base.Scheme != "http" {
		t.Errorf("hosts.toml: %+v, %v", specs, err)
	}
}

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"x","size":1,"platform":{}}]}`), "application/vnd.oci.image.index.v1+json")
	f.Add([]byte(`{"schemaVersion":2,"config":{},"layers":[{}]}`), "")
	f.Fuzz(func(t *testing.T, raw []byte, contentType string) {
		m, k, err := parse(raw, contentType)
		if err != nil {
			return
		}
		if k == kindIndex {
			_, _ = HostPlatform().choose(m.Manifests)
			return
		}
		image, err := m.image(raw, contentType)
		if err != nil {
			return
		}
		for _, d := range append(image.Layers, image.Config) {
			if d.Digest.Validate() != nil || d.Size < 0 || strings.ContainsAny(d.Digest.String(), "/.") {
				t.Errorf("descriptor %+v", d)
			}
		}
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/b?c=d",service="x\"y",scope="repository:a:pull,push", Basic realm=x`)
	f.Fuzz(func(t *testing.T, h string) {
		for _, c := range parseChallenges([]string{h}) {
			if c.scheme == "" || c.scheme != strings.ToLower(c.scheme) {
				t.Errorf("%q: %+v", h, c)
			}
		}
	})
}

func TestParseChallenges(t *testing.T) {
	all := parseChallenges([]string{`Basic realm="x", Bearer realm="https://a/b?c=d,e",Service="s\"t", scope="repository:a/b:pull,push"`, `Negotiate`})
	bearer, ok := find(all, "bearer")
	if len(all) != 3 || !ok || bearer.params["realm"] != "https://a/b?c=d,e" || bearer.params["service"] != `s"t` || bearer.params["scope"] != "repository:a/b:pull,push" {
		t.Errorf("%+v", all)
	}
}

func TestBlobIsReadInAnyPieces(t *testing.T) {
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{Layers: []registrytest.Layer{}})
	for _, raw := range [][]byte{{}, {1}, noise(70_001)} {
		d := reg.PutBlob(raw)
		s := open(t, patient, p.Ref, Credentials{})
		r := s.Blob(t.Context(), Descriptor{Digest: d, Size: int64(len(raw))})
		var got bytes.Buffer
		if _, err := io.CopyBuffer(&got, struct{ io.Reader }{r}, make([]byte, 7)); err != nil || !bytes.Equal(got.Bytes(), raw) {
			t.Errorf("%d bytes: %v", len(raw), err)
		}
		if n, err := r.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the end: %d, %v", n, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	sha512 := digest.SHA512.FromBytes([]byte("x"))
	reg.PutBlobAs(sha512, []byte("x"))
	if raw, err := open(t, patient, p.Ref, Credentials{}).Fetch(t.Context(), Descriptor{Digest: sha512, Size: 1}); err != nil || string(raw) != "x" {
		t.Errorf("sha512: %q, %v", raw, err)
	}
}

func TestSlowAndSteadyIsNoStall(t *testing.T) {
	t.Parallel()
	reg := start(t, registrytest.Options{})
	p := push(t, reg, registrytest.Image{})
	path := "/blobs/" + p.Layers[0].Digest.String()
	reg.AddFault(registrytest.Fault{Path: path, Pace: registrytest.Pace{Size: 128 << 10, Every: 250 * time.Millisecond}})
	config := patient
	config.StallTimeout = 5 * time.Second // less than all takes, and far more than a piece does
	if err := pullAll(t.Context(), open(t, config, p.Ref, Credentials{})); err != nil {
		t.Error(err)
	}
	if n := reg.Count("GET", path); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
}
