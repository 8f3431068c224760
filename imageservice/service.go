package imageservice

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

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

	Pinned []string // patterns of images that are pinned: see Service.Pin
	Unpack int      // layers that are unpacked at a time, of all pulls; default: as many as there are processors

	Registry registry.Config // patience with registries; HostsDir above wins
	Snapshot Snapshotter     // default: snapshot.Open(Root)
}

func (c Config) withDefaults() Config {
	if c.Parallel <= 0 {
		c.Parallel = 6
	}
	if c.MinUnpacked <= 0 {
		c.MinUnpacked = defaultMinUnpacked
	}
	if c.Unpack <= 0 {
		c.Unpack = runtime.GOMAXPROCS(0)
	}
	c.Registry.HostsDir = c.HostsDir
	return c
}

// settings are what Configure changes. A pull works with those that it began with.
type settings struct {
	Config
	registry  *registry.Client
	unpacking chan struct{} // has one element for each layer that is being unpacked
}

// Service knows the images of one root. Open makes it.
type Service struct {
	root     string
	settings atomic.Pointer[settings]
	snap     Snapshotter
	closer   func() error // of a snapshotter that Open opened
	problems []error      // of Open

	catalog catalog
	pulls   pulls
	leases  leases
	usage   usageCache
	walker  walker

	// commit is held while records are written, one at a time. Reading waits for catalog.mu only.
	commit  sync.Mutex
	records records

	wake   chan struct{} // asks the owner goroutine to prune
	cancel context.CancelFunc
	wait   sync.WaitGroup
}

// Configure takes over all of a configuration but its Root and its Snapshot. Pulls under way go on as they began, and what they use
// counts against the bounds that held then.
func (s *Service) Configure(config Config) {
	config = config.withDefaults()
	s.settings.Store(&settings{Config: config, registry: registry.New(config.Registry), unpacking: make(chan struct{}, config.Unpack)})
	s.Pin(config.Pinned)
}

// Open reads the records and removes what none of them names. A record that cannot be used is put aside: see Problems. For want of descriptors
// or memory nothing is put aside: then Open fails.
// Close ends it.
func Open(ctx context.Context, config Config) (*Service, error) {
	s := &Service{
		root: config.Root, snap: config.Snapshot, closer: func() error { return nil },
		catalog: newCatalog(), pulls: newPulls(), leases: newLeases(), walker: newWalker(), wake: make(chan struct{}, 1),
	}
	s.Configure(config)
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
	s.wait.Go(func() { s.walk(ctx) })
	return s, nil
}

// Close ends the pulls under way and waits for them and for removals behind earlier calls.
func (s *Service) Close() error {
	s.pulls.images.close(ErrClosed)
	s.pulls.layers.close(ErrClosed)
	s.cancel()
	s.wait.Wait()
	return s.closer()
}

// Problems says what could not be used when the service opened, and where it was put.
func (s *Service) Problems() []error {
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
		if ctx.Err() != nil { // whoever opens it ends: that says nothing of the image
			return context.Cause(ctx)
		}
		if snapshot.Shortage(err) { // nor does that
			return fmt.Errorf("load image %s: %w", r.ImageID, err)
		}
		if err != nil {
			bad = append(bad, s.records.putAside(s.records.file(r.ImageID), err))
			continue
		}
		s.catalog.put(r, image)
	}
	s.problems = append(s.problems, bad...)
	return nil
}

// complete checks that the layers of a recorded image are there, and stacks them again should that have been lost.
func (s *Service) complete(ctx context.Context, image Image) error {
	for _, d := range image.DiffIDs {
		if _, ok := s.snap.Size(d); !ok {
			return fmt.Errorf("layer %s is not there", d)
		}
	}
	return s.snap.Publish(ctx, image.DiffIDs)
}

// Image finds an image by a reference of any form, by its ID, or by the beginning of its ID if no other has the same. An
// image that is not here is ErrNotFound, and what is no reference ErrInvalidReference.
func (s *Service) Image(refOrID string) (Image, error) {
	e, err := s.catalog.find(refOrID)
	if err != nil {
		return Image{}, err
	}
	return s.show(e.image), nil
}

// Images lists all images by their IDs.
func (s *Service) Images() []Image {
	entries := s.catalog.all()
	out := make([]Image, 0, len(entries))
	for _, e := range entries {
		out = append(out, s.show(e.image))
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Remove removes an image with all its references, whichever names it. Layers that other images or root filesystems
// need stay. An image that is not here is ErrNotFound.
func (s *Service) Remove(ctx context.Context, refOrID string) error {
	s.commit.Lock()
	e, err := s.catalog.find(refOrID)
	if err == nil {
		err = s.records.remove(e.image.ID)
	}
	if err == nil {
		s.catalog.drop(e.image.ID)
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
