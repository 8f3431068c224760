package registrytest_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

func start(t *testing.T, opts registrytest.Options) *registrytest.Registry {
	t.Helper()
	reg, err := registrytest.Start(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	return reg
}

func get(t *testing.T, url string, header http.Header) (*http.Response, []byte, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return resp, raw, err
}

func TestPushServesManifestConfigAndLayers(t *testing.T) {
	reg := start(t, registrytest.Options{})
	for _, schema := range []registrytest.Schema{registrytest.OCI, registrytest.Docker} {
		p, err := reg.Push("a/b", "1", registrytest.Image{Schema: schema, Layers: []registrytest.Layer{{
			Files: []registrytest.File{{Name: "d/"}, {Name: "d/f", Body: []byte("x")}},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		resp, raw, err := get(t, reg.URL+"/v2/a/b/manifests/1", nil)
		if err != nil || resp.Header.Get("Content-Type") != p.MediaType || digest.FromBytes(raw) != p.Digest {
			t.Errorf("manifest: %v %v %s", err, resp.Header, raw)
		}
		for _, d := range []digest.Digest{digest.Digest(p.ImageID), p.Layers[0].Digest} {
			_, raw, err := get(t, reg.URL+"/v2/a/b/blobs/"+d.String(), nil)
			if err != nil || digest.FromBytes(raw) != d {
				t.Errorf("blob %s: %v", d, err)
			}
		}
	}
}

func TestFaultsCutTheBodyAtTheByte(t *testing.T) {
	reg := start(t, registrytest.Options{})
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	d := reg.PutBlob(blob)
	url := reg.URL + "/v2/a/blobs/" + d.String()

	reg.AddFault(registrytest.Fault{Path: "/blobs/", Times: 1, Cut: registrytest.Reset, At: 500_000})
	_, raw, err := get(t, url, nil)
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, io.ErrUnexpectedEOF) || len(raw) > 500_000 {
		t.Errorf("reset: %d bytes, %v", len(raw), err)
	}
	resp, raw, err := get(t, url, http.Header{"Range": {"bytes=500000-"}})
	if err != nil || resp.StatusCode != http.StatusPartialContent || !bytes.Equal(raw, blob[500_000:]) {
		t.Errorf("range: %d bytes, %v, %v", len(raw), resp.Status, err)
	}
	reg.AddFault(registrytest.Fault{Path: "/blobs/", Times: 1, Cut: registrytest.Corrupt, At: 7})
	_, raw, err = get(t, url, nil)
	if err != nil || len(raw) != len(blob) || digest.FromBytes(raw) == d {
		t.Errorf("corrupt: %d bytes, %v", len(raw), err)
	}
	if n := reg.Count("GET", "/blobs/"); n != 3 {
		t.Errorf("Count = %d, want 3", n)
	}
}
