package imageservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry"
)

// pruneTimeout bounds giving back what a failed pull had brought.
const pruneTimeout = time.Minute

// pullKey is what makes two pulls one: the same reference, asked for with the same credentials.
type pullKey struct {
	ref  string
	cred registry.Credentials
}

// layerKey is what makes two fetches of a layer one. From another registry it is another: that one may be as slow as it likes, and has only
// to know which layers others want.
type layerKey struct {
	host   string
	diffID digest.Digest
}

// pulls are those under way.
type pulls struct {
	images   group[pullKey, string]
	layers   group[layerKey, int64]
	fetching sync.Map      // layerKey to *atomic.Int64: the bytes read of the layers that are being fetched
	wide     chan struct{} // has one element while a layer with a zstd window of more than usualWindow is unpacked

	mu       sync.Mutex
	trackers map[pullKey]*tracker // guarded by mu
	ended    []endedPull          // the last maxEnded, oldest first; guarded by mu
}

// endedPull is how a pull of a reference ended.
type endedPull struct {
	ref      string
	progress Progress
}

func newPulls() pulls { return pulls{wide: make(chan struct{}, 1), trackers: map[pullKey]*tracker{}} }

// track shows a pull until the function that it returns is called with how it ended, and remembers that.
func (p *pulls) track(key pullKey, t *tracker) (stop func(error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trackers[key] = t
	return func(err error) {
		t.end(err)
		last := endedPull{ref: key.ref, progress: t.progress()}
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.trackers, key)
		p.ended = append(p.ended, last)
		p.ended = slices.Delete(p.ended, 0, max(0, len(p.ended)-maxEnded))
	}
}

// source is where a pull's content comes from. registry.Source is one.
type source interface {
	Manifest(ctx context.Context) (registry.Manifest, error)
	Fetch(ctx context.Context, desc registry.Descriptor) ([]byte, error)
	Blob(ctx context.Context, desc registry.Descriptor) io.ReadCloser
	HasOther(desc registry.Descriptor, err error) bool
	Endpoints() []registry.Endpoint
}

// Pull fetches what ref names and returns the image's ID. The registry is always asked, with this caller's credentials; what is
// here already is not fetched again. progress may be nil; it is called now and then, never after Pull has returned. When
// ctx ends Pull returns, and the pull itself ends unless others wait for it, too.
func (s *Service) Pull(ctx context.Context, ref string, auth Auth, progress func(Progress)) (imageID string, err error) {
	parsed, err := reference.Parse(ref)
	if err != nil {
		return "", err
	}
	cred, err := auth.credentials()
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", parsed, err)
	}
	key := pullKey{ref: parsed.String(), cred: cred}
	stop := s.report(key, progress)
	defer stop()
	imageID, _, err = s.pulls.images.do(ctx, key, func(ctx context.Context) (imageID string, err error) {
		t := &tracker{fetching: &s.pulls.fetching, host: parsed.Host, p: Progress{Ref: ref, State: StateResolving, Started: time.Now()}}
		stop := s.pulls.track(key, t)
		defer func() { stop(err) }()
		src, err := s.settings.Load().registry.Open(parsed, cred)
		if err != nil {
			return "", err
		}
		defer src.Close()
		t.from(src)
		return s.pull(ctx, parsed, src, t)
	})
	if err != nil {
		return "", fmt.Errorf("pull %s: %w", parsed, classify(err))
	}
	return imageID, nil
}

// pull is one pull, from the manifest to the record.
func (s *Service) pull(ctx context.Context, ref reference.Reference, src source, t *tracker) (string, error) {
	m, err := src.Manifest(ctx)
	if err != nil {
		return "", err
	}
	var r *record
	if m.ArtifactType == "" {
		r, err = s.describe(ctx, src, m)
	} else {
		r, src, err = artifact(src, m)
	}
	if err != nil {
		return "", err
	}
	image, err := r.image()
	if err != nil {
		return "", err
	}
	release := s.lease(image.DiffIDs)
	defer release()
	t.layers(image.ID, image.Layers)
	if err := s.fetch(ctx, src, r, t); err != nil {
		release()
		return "", errors.Join(err, s.giveBack(ctx))
	}
	t.state(StateStoring)
	err = s.publish(ctx, image.DiffIDs)
	if err == nil {
		err = s.store(r, ref, m.Named)
	}
	if err != nil {
		release()
		return "", errors.Join(err, s.giveBack(ctx))
	}
	return image.ID, nil
}

func (s *Service) publish(ctx context.Context, diffIDs []digest.Digest) error {
	s.leases.publishing.Lock()
	defer s.leases.publishing.Unlock()
	return s.snap.Publish(ctx, diffIDs)
}

// giveBack frees what a failed pull had brought. A full disk must not stay full because of it.
func (s *Service) giveBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), pruneTimeout)
	defer cancel()
	return s.prune(ctx)
}

// describe makes the record of an image, without its references and without the sizes of its unpacked layers.
func (s *Service) describe(ctx context.Context, src source, m registry.Manifest) (r *record, err error) {
	var raw []byte
	if e := s.catalog.get(m.Config.Digest.String()); e != nil && e.image.ArtifactType == "" {
		raw = e.image.RawConfig
	} else if raw, err = src.Fetch(ctx, m.Config); err != nil {
		return nil, err
	}
	config, _, diffIDs, err := parseConfig(raw)
	if err != nil {
		return nil, err
	}
	if !registry.HostPlatform().Runs(config.OS, config.Architecture, config.Variant) {
		return nil, fmt.Errorf("read image config: %w: it is for %q/%q", ErrNoPlatform, config.OS, config.Architecture)
	}
	if len(diffIDs) == 0 {
		return nil, fmt.Errorf("read image config: %w: it has no layers", ErrInvalidImage)
	}
	if len(diffIDs) != len(m.Layers) {
		return nil, fmt.Errorf("read image config: %w: %d diff_ids for %d layers", ErrInvalidImage, len(diffIDs), len(m.Layers))
	}
	r = &record{
		ImageID: m.Config.Digest.String(), MediaType: m.MediaType, Digest: m.Digest, Manifest: m.Raw, Config: raw, Tags: map[string]int64{},
	}
	for i, l := range m.Layers {
		r.Layers = append(r.Layers, recordLayer{Digest: l.Digest, DiffID: diffIDs[i], Size: l.Size})
	}
	return r, nil
}

// fetch brings the layers that are not here, the largest first, and fills in their sizes.
// Preconditions: the layers are leased.
func (s *Service) fetch(ctx context.Context, src source, r *record, t *tracker) error {
	places := map[digest.Digest][]int{} // one layer may stand in several
	for i, l := range r.Layers {
		places[l.DiffID] = append(places[l.DiffID], i)
	}
	came := func(diffID digest.Digest, bytes int64, state string) {
		for _, i := range places[diffID] {
			r.Layers[i].Bytes = bytes // nobody else writes these
		}
		t.layer(diffID, state)
	}
	var missing []recordLayer
	for diffID, at := range places {
		if bytes, ok := s.has(diffID); ok {
			came(diffID, bytes, StateExists)
		} else {
			missing = append(missing, r.Layers[at[0]])
		}
	}
	if err := s.fits(missing); err != nil {
		return err
	}
	slices.SortStableFunc(missing, func(a, b recordLayer) int { return cmp.Compare(b.Size, a.Size) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.settings.Load().Parallel)
	for _, l := range missing {
		g.Go(func() error {
			bytes, err := s.layer(ctx, src, layerKey{t.host, l.DiffID}, l)
			if err == nil {
				came(l.DiffID, bytes, StateDone)
			}
			return err
		})
	}
	return g.Wait()
}

// fits refuses a pull that cannot succeed: unpacked layers are hardly smaller than packed ones.
func (s *Service) fits(missing []recordLayer) error {
	var need int64
	for _, l := range missing {
		need += l.Size
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return fmt.Errorf("look at the file system of images: %w", err)
	}
	if free := int64(st.Bavail) * st.Frsize; need > free {
		return fmt.Errorf("fetch %d bytes of layers with %d bytes free: %w", need, free, unix.ENOSPC)
	}
	return nil
}

// layer brings one layer, or waits for another pull that does. If that one fails, with its own registry or credentials, this
// one tries itself.
func (s *Service) layer(ctx context.Context, src source, key layerKey, l recordLayer) (bytes int64, err error) {
	for {
		bytes, led, err := s.pulls.layers.do(ctx, key, func(ctx context.Context) (int64, error) {
			count := &atomic.Int64{}
			s.pulls.fetching.Store(key, count)
			defer s.pulls.fetching.Delete(key)
			return s.ingest(ctx, src, l, count)
		})
		if err == nil || led || ctx.Err() != nil || errors.Is(err, ErrClosed) {
			return bytes, err
		}
	}
}
