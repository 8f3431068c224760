package imageservice

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/imageservice/snapshot"
)

// Config is what Open needs. Only Root must be set.
type Config struct {
	Root     string // ROOT/images: all of it belongs to the service
	HostsDir string // folder of HOST/hosts.toml; "" = none
	Parallel int    // layers that one pull fetches at a time; default 6

	// MinUnpacked is what a layer may unpack to, in bytes, however small it is packed; larger ones to 100 times their packed
	// size. Default 1 GiB.
	MinUnpacked int64

	Registry registry.Config // patience with registries; HostsDir above wins
	Snapshot Snapshotter     // default: snapshot.Open(Root)
}

// Service knows the images of one root. Open makes it.
type Service struct {
	config   Config
	registry *registry.Client
	snap     Snapshotter
	records  records
	closer   func() error // of a snapshotter that Open opened

	pulls    group[pullKey, string]
	layers   group[digest.Digest, int64]
	fetching sync.Map // diffID to *atomic.Int64: the bytes read of the layers that are being fetched

	// commit is held while records are written, one at a time, and mu not meanwhile: reading waits for no disk.
	commit sync.Mutex

	mu       sync.RWMutex
	images   map[string]*entry // by ID
	tags     map[string]string // HOST/PATH:TAG to ID
	digests  map[string]string // HOST/PATH@DIGEST to ID
	trackers map[pullKey]*tracker
	sizes    map[digest.Digest]int64 // bytes of layers' tars
	files    map[fileKey]file
	keys     map[string]string // of root filesystems to the images' IDs, those that this process has made
	problems []error

	// publishing is held while layers are published or pruned. It is taken before collect, so that nobody who needs collect waits
	// for a slow disk to sync.
	publishing sync.Mutex

	// collect keeps layers from being taken away between the moment that somebody finds them and the moment that a record or a
	// root filesystem names them.
	collect sync.Mutex
	leases  map[digest.Digest]int // guarded by collect

	usage  usageCache
	wake   chan struct{} // asks the owner goroutine to prune
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// entry is an image in memory. It is never changed, only replaced.
type entry struct {
	record *record
	image  Image
}

// Open reads the records and removes what none of them names. A record that cannot be used is put aside: see Problems.
// Close ends it.
func Open(ctx context.Context, config Config) (*Service, error) {
	if config.Parallel <= 0 {
		config.Parallel = 6
	}
	if config.MinUnpacked <= 0 {
		config.MinUnpacked = defaultMinUnpacked
	}
	config.Registry.HostsDir = config.HostsDir
	s := &Service{
		config: config, registry: registry.New(config.Registry), snap: config.Snapshot, closer: func() error { return nil },
		images: map[string]*entry{}, tags: map[string]string{}, digests: map[string]string{},
		trackers: map[pullKey]*tracker{}, files: map[fileKey]file{}, keys: map[string]string{}, sizes: map[digest.Digest]int64{}, leases: map[digest.Digest]int{}, wake: make(chan struct{}, 1),
	}
	var err error
	if s.records, err = openRecords(config.Root); err != nil {
		return nil, err
	}
	if s.snap == nil {
		store, err := snapshot.Open(config.Root)
		if err != nil {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
		s.snap, s.closer, s.problems = store, store.Close, store.Problems()
	}
	if err := s.load(ctx); err != nil {
		return nil, errors.Join(err, s.closer())
	}
	if err := s.prune(ctx); err != nil {
		return nil, errors.Join(err, s.closer())
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.wait.Go(func() { s.pruneWhenAsked(ctx) })
	return s, nil
}

// Close ends the pulls under way and waits for them and for removals behind earlier calls.
func (s *Service) Close() error {
	s.pulls.close(ErrClosed)
	s.layers.close(ErrClosed)
	s.cancel()
	s.wait.Wait()
	return s.closer()
}

// Problems says what could not be used when the service opened, and where it was put.
func (s *Service) Problems() []error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.problems)
}

// load fills the memory. If two records have one tag, because a pull that moved it was cut short, the later pull wins.
func (s *Service) load(ctx context.Context) error {
	good, bad, err := s.records.load()
	if err != nil {
		return err
	}
	owner := map[string]*record{}
	changed := map[*record]bool{}
	for _, r := range good {
		for tag, at := range r.Tags {
			other := owner[tag]
			if other != nil && other.Tags[tag] > at {
				delete(r.Tags, tag)
				changed[r] = true
				continue
			}
			if other != nil {
				delete(other.Tags, tag)
				changed[other] = true
			}
			owner[tag] = r
		}
	}
	for _, r := range good {
		if changed[r] {
			if err := s.records.write(r); err != nil {
				return err
			}
		}
		image, err := r.image()
		if err == nil {
			err = s.complete(ctx, image)
		}
		if err != nil {
			bad = append(bad, s.records.putAside(s.records.file(r.ImageID), err))
			continue
		}
		s.put(r, image)
	}
	s.problems = append(s.problems, bad...)
	return nil
}

// complete checks that the layers of a recorded image are there, and stacks them again should that have been lost.
func (s *Service) complete(ctx context.Context, image Image) error {
	for _, d := range image.DiffIDs {
		if !s.snap.Has(d) {
			return fmt.Errorf("layer %s is not there", d)
		}
	}
	return s.snap.Publish(ctx, image.DiffIDs)
}

// put shows an image, in the place of what it was before.
func (s *Service) put(r *record, image Image) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(r.ImageID)
	s.images[r.ImageID] = &entry{record: r, image: image}
	for _, tag := range image.RepoTags {
		s.tags[tag] = r.ImageID
	}
	for _, d := range image.RepoDigests {
		s.digests[d] = r.ImageID
	}
	for _, l := range image.Layers {
		s.sizes[l.DiffID] = l.Bytes
	}
}

// drop hides an image.
func (s *Service) drop(imageID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(imageID)
	maps.DeleteFunc(s.files, func(k fileKey, _ file) bool { return k.imageID == imageID })
}

// dropLocked is drop.
// Preconditions: s.mu held.
func (s *Service) dropLocked(imageID string) {
	delete(s.images, imageID)
	is := func(_, id string) bool { return id == imageID }
	maps.DeleteFunc(s.tags, is)
	maps.DeleteFunc(s.digests, is)
}

// Image finds an image by a reference of any form, by its ID, or by the beginning of its ID if no other has the same. An
// image that is not here is ErrNotFound, and what is no reference ErrInvalidReference.
func (s *Service) Image(refOrID string) (Image, error) {
	e, err := s.find(refOrID)
	if err != nil {
		return Image{}, err
	}
	return e.image.clone(), nil
}

// Images lists all images by their IDs.
func (s *Service) Images() []Image {
	s.mu.RLock()
	entries := slices.Collect(maps.Values(s.images))
	s.mu.RUnlock()
	out := make([]Image, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.image.clone())
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

func (s *Service) find(refOrID string) (*entry, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	hex, isID := reference.IDPrefix(refOrID)
	if isID && len(hex) == 64 {
		return s.findID(refOrID, "sha256:"+hex)
	}
	ref, err := reference.Parse(refOrID)
	if err == nil {
		id := s.tags[ref.String()]
		if ref.Digest != "" {
			id = s.digests[ref.String()]
		}
		if e := s.images[id]; e != nil {
			return e, nil
		}
	}
	if isID {
		if e, prefixErr := s.findPrefix(hex); e != nil || prefixErr != nil {
			return e, prefixErr
		}
		if err != nil {
			return nil, fmt.Errorf("find image %q: %w", reference.Redact(refOrID), ErrNotFound)
		}
	}
	if err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("find image %s: %w", ref, ErrNotFound)
}

// findID finds an image by its ID, or by the digest that one of its references has.
// Preconditions: s.mu held for reading.
func (s *Service) findID(refOrID, id string) (*entry, error) {
	if e := s.images[id]; e != nil {
		return e, nil
	}
	for d, imageID := range s.digests {
		if strings.HasSuffix(d, "@"+id) {
			return s.images[imageID], nil
		}
	}
	return nil, fmt.Errorf("find image %s: %w", refOrID, ErrNotFound)
}

// findPrefix finds the one image whose ID begins so; nil when there is none.
// Preconditions: s.mu held for reading.
func (s *Service) findPrefix(hex string) (*entry, error) {
	var found *entry
	for id, e := range s.images {
		if !strings.HasPrefix(id, "sha256:"+hex) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("find image %s: %w", hex, ErrAmbiguous)
		}
		found = e
	}
	return found, nil
}

// Remove removes an image with all its references, whichever names it. Layers that other images or root filesystems
// need stay. An image that is not here is ErrNotFound.
func (s *Service) Remove(ctx context.Context, refOrID string) error {
	s.commit.Lock()
	e, err := s.find(refOrID)
	if err == nil {
		err = s.records.remove(e.image.ID)
	}
	if err == nil {
		s.drop(e.image.ID)
	}
	s.commit.Unlock()
	if err != nil {
		return fmt.Errorf("remove image: %w", err)
	}
	if err := s.prune(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("remove layers of image %s: %w", e.image.ID, err)
	}
	return nil
}

// lease keeps layers until the function that it returns is called for the first time.
func (s *Service) lease(diffIDs []digest.Digest) (release func()) {
	s.collect.Lock()
	defer s.collect.Unlock()
	return s.leaseLocked(diffIDs)
}

// leaseLocked is lease.
// Preconditions: s.collect held.
func (s *Service) leaseLocked(diffIDs []digest.Digest) (release func()) {
	for _, d := range diffIDs {
		s.leases[d]++
	}
	return sync.OnceFunc(func() {
		s.collect.Lock()
		defer s.collect.Unlock()
		for _, d := range diffIDs {
			if s.leases[d]--; s.leases[d] == 0 {
				delete(s.leases, d)
			}
		}
	})
}

// prune removes the layers that no image, no root filesystem and no pull needs.
func (s *Service) prune(ctx context.Context) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	s.collect.Lock()
	defer s.collect.Unlock()
	keep := map[digest.Digest]bool{}
	for d := range s.leases {
		keep[d] = true
	}
	s.mu.Lock()
	for _, e := range s.images {
		for _, d := range e.image.DiffIDs {
			keep[d] = true
		}
	}
	var gone []digest.Digest
	for d := range s.sizes {
		if !keep[d] {
			gone = append(gone, d)
			delete(s.sizes, d)
		}
	}
	s.mu.Unlock()
	return errors.Join(s.snap.Discard(ctx, gone...), s.snap.Prune(ctx, slices.Sorted(maps.Keys(keep))))
}

// pruneWhenAsked is the owner goroutine: it prunes behind calls that must not wait for it. What fails is tried again with the
// next call, and at the next start.
func (s *Service) pruneWhenAsked(ctx context.Context) {
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		pruneCtx, cancel := context.WithTimeout(ctx, time.Minute)
		_ = s.prune(pruneCtx)
		cancel()
	}
}
