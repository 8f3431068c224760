package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
)

// Config is the operator's. Zero fields mean the defaults.
type Config struct {
	HostsDir     string        // folder of HOST/hosts.toml; "" = none
	DialTimeout  time.Duration // 30 s
	StallTimeout time.Duration // 1 min: a connection that brings fewer than StallBytes in it is dead
	StallBytes   int64         // 64 KiB
	Patience     time.Duration // 2 s: how long a mirror may think before the next is asked
	Backoff      time.Duration // 200 ms: first pause before asking again
	Platform     Platform      // HostPlatform()

	ChunkSize      int64 // 8 MiB: blobs of more than two chunks are fetched by chunks
	Connections    int   // 4: of one such blob at a time; 1 = no chunks
	MaxConnections int   // 16: of all pulls together, besides one that each pull has
	MaxBuffered    int64 // 32 MiB: chunks in memory ahead of their readers, of all pulls together
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&c.DialTimeout, 30*time.Second)
	set(&c.StallTimeout, time.Minute)
	set(&c.Patience, 2*time.Second)
	set(&c.Backoff, 200*time.Millisecond)
	number := func(n *int64, v int64) {
		if *n <= 0 {
			*n = v
		}
	}
	number(&c.StallBytes, progressBytes)
	number(&c.ChunkSize, 8<<20)
	number(&c.MaxBuffered, 32<<20)
	if c.Connections <= 0 {
		c.Connections = 4
	}
	if c.MaxConnections <= 0 {
		c.MaxConnections = 16
	}
	if c.Platform == nil {
		c.Platform = HostPlatform()
	}
	return c
}

// Client opens Sources. It can be used by many goroutines.
type Client struct {
	config Config
	budget *budget
}

// New makes a Client; nothing is read yet.
func New(config Config) *Client {
	config = config.withDefaults()
	return &Client{config: config, budget: newBudget(config)}
}

// Source is one repository for the time of one pull. Close it.
type Source struct {
	ref       reference.Reference
	config    Config
	endpoints []*endpoint
	budget    *budget
	anonymous bool
	own       chan struct{} // has one element while the pull's own connection is in use

	mu       sync.Mutex
	verdicts map[digest.Digest]verdict // guarded by mu
}

// Open reads the hosts.toml that holds for the reference's host. Nothing is sent yet.
func (c *Client) Open(ref reference.Reference, cred Credentials) (*Source, error) {
	specs, err := hostSpecs(c.config.HostsDir, ref.Host)
	if err != nil {
		return nil, err
	}
	s := &Source{
		ref: ref, config: c.config, budget: c.budget, anonymous: cred.empty(), own: make(chan struct{}, 1), verdicts: map[digest.Digest]verdict{},
	}
	for i, spec := range specs {
		dialTimeout := c.config.DialTimeout
		if i < len(specs)-1 {
			dialTimeout = c.config.Patience
		}
		tr, err := newTransports(spec, dialTimeout)
		if err != nil {
			s.Close()
			return nil, err
		}
		e := &endpoint{
			spec: spec, repository: ref.Path, tr: tr, auth: newAuthorizer(nil), base: spec.base, guessing: spec.guess,
			stall: stallRule{window: c.config.StallTimeout, bytes: c.config.StallBytes},
		}
		if cred.meantFor(spec, ref.Host) {
			e.auth = newAuthorizer(&cred)
		}
		if !sameHost(spec.base.Host, ref.Host) {
			e.query = "ns=" + url.QueryEscape(ref.Host)
		}
		s.endpoints = append(s.endpoints, e)
	}
	return s, nil
}

// Close drops the connections that are not in use. Blob readers that are still open go on.
func (s *Source) Close() {
	for _, e := range s.endpoints {
		e.tr.close()
	}
}

// Manifest gets what the reference names; if that is an index, the manifest in it for this platform.
func (s *Source) Manifest(ctx context.Context) (Manifest, error) {
	d, err := s.document(ctx, s.ref.Target(), Descriptor{Digest: s.ref.Digest, Size: -1})
	if err != nil {
		return Manifest{}, err
	}
	named := s.ref.Digest
	if named == "" {
		named = digest.FromBytes(d.raw)
	}
	for depth := 0; ; depth++ {
		m := d.parsed
		if d.kind == kindManifest {
			image, err := m.image(d.raw, d.contentType)
			if err != nil {
				return Manifest{}, fmt.Errorf("read manifest of %s: %w", s.ref, err)
			}
			image.Named = named
			return image, nil
		}
		if depth >= maxIndexDepth {
			return Manifest{}, fmt.Errorf("read index of %s: %w: indexes nested deeper than %d", s.ref, ErrInvalidManifest, maxIndexDepth)
		}
		if len(m.Manifests) > maxManifests {
			return Manifest{}, fmt.Errorf("read index of %s: %w: %d manifests are more than %d", s.ref, ErrInvalidManifest, len(m.Manifests), maxManifests)
		}
		chosen, err := s.config.Platform.choose(m.Manifests)
		if err != nil {
			return Manifest{}, fmt.Errorf("read index of %s: %w", s.ref, err)
		}
		desc, err := chosen.check(MaxManifest)
		if err != nil {
			return Manifest{}, fmt.Errorf("read index of %s: %w", s.ref, err)
		}
		if d, err = s.document(ctx, desc.Digest.String(), desc); err != nil {
			return Manifest{}, err
		}
	}
}

// document is a manifest or an index as it came.
type document struct {
	raw         []byte
	contentType string
	parsed      wireManifest
	kind        kind
}

// document gets a manifest or an index and checks it against want: a digest unless that is "", a size unless it is < 0. A host that
// answers with something else, such as a page for people, does not have it.
func (s *Source) document(ctx context.Context, target string, want Descriptor) (d document, err error) {
	need := canPull
	if want.Digest == "" {
		need = canResolve
	}
	g := get{op: "get manifest " + s.ref.Path + ":" + target, path: "manifests/" + target, header: http.Header{"Accept": acceptManifests}}
	if want.Digest != "" {
		g.op = "get manifest " + s.ref.Path + "@" + target
	}
	err = s.ask(ctx, question{need: need, rounds: maxRounds}, func(e *endpoint, wait time.Duration) error {
		g.wait = wait
		a, err := e.open(ctx, g)
		if err != nil {
			return err
		}
		defer a.Body.Close()
		d.contentType = a.Header.Get("Content-Type")
		if d.raw, err = readDocument(a, want); err == nil {
			if d.parsed, d.kind, err = parse(d.raw, d.contentType); err != nil {
				err = &Error{Err: err}
			}
		}
		var re *Error
		if errors.As(err, &re) {
			re.Op, re.Host = g.op, e.host()
		}
		return err
	})
	return d, err
}

// readDocument reads and checks the body of an answer; its errors are *Error.
func readDocument(a answer, want Descriptor) ([]byte, error) {
	if a.StatusCode != http.StatusOK {
		return nil, &Error{Detail: fmt.Sprintf("status %d to a request for everything", a.StatusCode), Err: ErrUnavailable}
	}
	raw, err := io.ReadAll(io.LimitReader(a.Body, MaxManifest+1))
	if err != nil {
		return nil, &Error{Err: fmt.Errorf("%w: %w", ErrUnavailable, err), retry: true}
	}
	if len(raw) > MaxManifest {
		return nil, &Error{Detail: fmt.Sprintf("it is larger than %d bytes", MaxManifest), Err: ErrInvalidManifest}
	}
	algorithm := digest.SHA256
	if want.Digest != "" {
		algorithm = want.Digest.Algorithm()
	}
	got := algorithm.FromBytes(raw)
	if want.Digest != "" && got != want.Digest {
		return nil, &Error{Detail: fmt.Sprintf("digest %s instead of %s", got, want.Digest), Err: ErrDigestMismatch}
	}
	if want.Size >= 0 && int64(len(raw)) != want.Size {
		return nil, &Error{Detail: fmt.Sprintf("%d bytes instead of %d", len(raw), want.Size), Err: ErrDigestMismatch}
	}
	if h := digest.Digest(a.Header.Get("Docker-Content-Digest")); h.Validate() == nil && h.Algorithm() == algorithm && h != got {
		return nil, &Error{Detail: fmt.Sprintf("Docker-Content-Digest %s on content of %s", h, got), Err: ErrDigestMismatch}
	}
	return raw, nil
}

// question says whom to ask.
type question struct {
	need    capability
	without []*endpoint
	rounds  int // how often all are asked, when they are down
}

// ask calls fn for the endpoints in order until one succeeds, and all of them again while that may help. An endpoint
// that is not the last has Patience to answer; if it lets that pass it is asked again after the others, with time.
func (s *Source) ask(ctx context.Context, q question, fn func(*endpoint, time.Duration) error) error {
	for round := 0; ; round++ {
		order := s.order(q.need, q.without)
		if len(order) == 0 && len(q.without) > 0 {
			return fmt.Errorf("%w: every host of %s served wrong bytes", ErrDigestMismatch, s.ref.Host)
		}
		if len(order) == 0 {
			return fmt.Errorf("%w: no host of %s has the capability that is needed", ErrConfig, s.ref.Host)
		}
		err := s.round(ctx, order, fn)
		if err == nil || ctx.Err() != nil {
			return err
		}
		again, after := retryable(err)
		if !again || round+1 >= q.rounds {
			return err
		}
		if err := sleep(ctx, max(after, backoff(s.config.Backoff, round))); err != nil {
			return err
		}
	}
}

// order lists who can be asked, slow ones last.
func (s *Source) order(need capability, without []*endpoint) []*endpoint {
	var fast, slow []*endpoint
	for _, e := range s.endpoints {
		if e.spec.caps&need == 0 || slices.Contains(without, e) {
			continue
		}
		if e.isSlow() {
			slow = append(slow, e)
		} else {
			fast = append(fast, e)
		}
	}
	return append(fast, slow...)
}

func (s *Source) round(ctx context.Context, order []*endpoint, fn func(*endpoint, time.Duration) error) error {
	errs := map[*endpoint]error{}
	var late []*endpoint
	for i, e := range order {
		wait := s.config.StallTimeout
		if i < len(order)-1 {
			wait = min(wait, s.config.Patience)
		}
		err := e.asked(fn(e, wait))
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs[e] = err
		if errors.Is(err, errStalled) && wait < s.config.StallTimeout {
			e.setSlow()
			late = append(late, e)
		}
	}
	for _, e := range late {
		err := e.asked(fn(e, s.config.StallTimeout))
		if err == nil || ctx.Err() != nil {
			return err
		}
		errs[e] = err
	}
	joined := &hostsError{}
	for _, e := range s.endpoints { // in the operator's order: the registry itself is last, and decides
		if err := errs[e]; err != nil {
			joined.all = append(joined.all, err)
		}
	}
	if len(joined.all) == 1 {
		return joined.all[0]
	}
	return joined
}
