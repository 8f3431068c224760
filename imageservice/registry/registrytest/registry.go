package registrytest

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Options of a Registry.
type Options struct {
	TLS  bool // serve HTTPS with a certificate of its own: see CertPEM
	Auth Auth

	ClientCertificate bool // with TLS: clients must show a certificate, any
}

// Request is one request that the registry has seen.
type Request struct {
	Time   time.Time
	Method string
	Path   string
	Query  url.Values
	Header http.Header
}

type manifest struct {
	mediaType string
	raw       []byte
}

// Registry serves images on a loopback port. Start makes one.
type Registry struct {
	URL string // http://127.0.0.1:PORT

	server *httptest.Server
	closed chan struct{}

	serving atomic.Int64
	most    atomic.Int64

	mu        sync.Mutex
	manifests map[string]manifest // "repo/digest" and "repo/tag"
	blobs     map[digest.Digest][]byte
	faults    []*scripted
	requests  []Request
	auth      Auth
	tokens    map[string]*grant
}

// Start serves an empty registry until Close.
func Start(opts Options) (*Registry, error) {
	reg := &Registry{
		closed: make(chan struct{}), manifests: map[string]manifest{}, blobs: map[digest.Digest][]byte{},
		auth: opts.Auth, tokens: map[string]*grant{},
	}
	reg.server = httptest.NewUnstartedServer(reg)
	reg.server.Config.ErrorLog = discardLog()
	if opts.TLS {
		if opts.ClientCertificate {
			reg.server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
		}
		reg.server.StartTLS()
	} else {
		reg.server.Start()
	}
	reg.URL = reg.server.URL
	return reg, nil
}

// Close stops serving; requests under way are cut.
func (reg *Registry) Close() {
	close(reg.closed)
	reg.server.CloseClientConnections()
	reg.server.Close()
}

// Host is 127.0.0.1:PORT, the first part of an image reference.
func (reg *Registry) Host() string {
	_, host, _ := strings.Cut(reg.URL, "://")
	return host
}

// CertPEM is the certificate of a TLS registry, as the ca of a hosts.toml file.
func (reg *Registry) CertPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: reg.server.Certificate().Raw})
}

// Push stores an image as repo:tag and under its digest.
func (reg *Registry) Push(repo, tag string, img Image) (Pushed, error) {
	p, layers, err := img.build()
	if err != nil {
		return Pushed{}, err
	}
	for _, l := range layers {
		reg.PutBlobAs(l.desc.Digest, l.blob)
	}
	reg.PutBlob(p.Config)
	reg.PutManifest(repo, p.Digest.String(), p.MediaType, p.Manifest)
	if tag != "" {
		reg.PutManifest(repo, tag, p.MediaType, p.Manifest)
	}
	p.Ref = reg.Host() + "/" + repo + ":" + tag
	p.DigestRef = reg.Host() + "/" + repo + "@" + p.Digest.String()
	return p, nil
}

// PushIndex stores images and, as repo:tag, an index of them in their order. The result's ImageID and Layers are empty.
func (reg *Registry) PushIndex(repo, tag string, schema Schema, images ...Image) (Pushed, []Pushed, error) {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	if schema == Docker {
		index.MediaType = MediaTypeDockerList
	}
	var all []Pushed
	for _, img := range images {
		img.Schema = schema
		p, err := reg.Push(repo, "", img)
		if err != nil {
			return Pushed{}, nil, err
		}
		all = append(all, p)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: p.MediaType, Digest: p.Digest, Size: int64(len(p.Manifest)), Platform: &p.Platform,
		})
	}
	raw, err := json.Marshal(index)
	if err != nil {
		return Pushed{}, nil, fmt.Errorf("encode index: %w", err)
	}
	d := digest.FromBytes(raw)
	reg.PutManifest(repo, d.String(), index.MediaType, raw)
	reg.PutManifest(repo, tag, index.MediaType, raw)
	return Pushed{
		Ref: reg.Host() + "/" + repo + ":" + tag, DigestRef: reg.Host() + "/" + repo + "@" + d.String(),
		Digest: d, MediaType: index.MediaType, Manifest: raw,
	}, all, nil
}

// PutManifest stores raw bytes under a tag or a digest, whether they fit or not.
func (reg *Registry) PutManifest(repo, tagOrDigest, mediaType string, raw []byte) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.manifests[repo+"/"+tagOrDigest] = manifest{mediaType: mediaType, raw: raw}
}

// PutBlob stores a blob under its digest, for every repository.
func (reg *Registry) PutBlob(raw []byte) digest.Digest {
	d := digest.FromBytes(raw)
	reg.PutBlobAs(d, raw)
	return d
}

// PutBlobAs stores a blob under a digest, whether it fits or not.
func (reg *Registry) PutBlobAs(d digest.Digest, raw []byte) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.blobs[d] = raw
}

// DeleteBlob forgets a blob.
func (reg *Registry) DeleteBlob(d digest.Digest) {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	delete(reg.blobs, d)
}

// Requests returns what was asked so far, oldest first.
func (reg *Registry) Requests() []Request {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	return append([]Request(nil), reg.requests...)
}

// Count says how many requests had this method ("" = any) and this part in their path.
func (reg *Registry) Count(method, path string) int {
	n := 0
	for _, r := range reg.Requests() {
		if (method == "" || r.Method == method) && strings.Contains(r.Path, path) {
			n++
		}
	}
	return n
}

// ClearRequests forgets the requests seen so far.
func (reg *Registry) ClearRequests() {
	reg.mu.Lock()
	defer reg.mu.Unlock()
	reg.requests = nil
}

// Serving is how many requests are being answered.
func (reg *Registry) Serving() int { return int(reg.serving.Load()) }

// MostAtOnce is how many requests were being answered at once, at most.
func (reg *Registry) MostAtOnce() int { return int(reg.most.Load()) }
