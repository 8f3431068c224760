package imageservice

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
)

// catalog is what the service knows, in memory. No lock is held over the disk.
type catalog struct {
	mu      sync.RWMutex
	images  map[string]*entry       // by ID
	tags    map[string]string       // HOST/PATH:TAG to ID
	digests map[string]string       // HOST/PATH@DIGEST to ID
	sizes   map[digest.Digest]int64 // bytes of the tars of layers that are in the store, published or not
	files   map[fileKey]file
	pinned  atomic.Pointer[[]string]
	keys    map[string][]string // of root filesystems to the images' IDs, those that this process has made
}

// entry is an image in memory. It is never changed, only replaced.
type entry struct {
	record *record
	image  Image
}

func newCatalog() catalog {
	return catalog{
		images: map[string]*entry{}, tags: map[string]string{}, digests: map[string]string{}, sizes: map[digest.Digest]int64{},
		files: map[fileKey]file{}, keys: map[string][]string{},
	}
}

// put shows an image, in the place of what it was before.
func (c *catalog) put(r *record, image Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(r.ImageID)
	c.images[r.ImageID] = &entry{record: r, image: image}
	for _, tag := range image.RepoTags {
		c.tags[tag] = r.ImageID
	}
	for _, d := range image.RepoDigests {
		c.digests[d] = r.ImageID
	}
	for _, l := range image.Layers {
		c.sizes[l.DiffID] = l.Bytes
	}
}

// drop hides an image.
func (c *catalog) drop(imageID string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dropLocked(imageID)
	maps.DeleteFunc(c.files, func(k fileKey, _ file) bool { return k.imageID == imageID })
}

// dropLocked is drop.
// Preconditions: c.mu held.
func (c *catalog) dropLocked(imageID string) {
	delete(c.images, imageID)
	is := func(_, id string) bool { return id == imageID }
	maps.DeleteFunc(c.tags, is)
	maps.DeleteFunc(c.digests, is)
}

// get returns an image by its ID, nil when it is not here.
func (c *catalog) get(imageID string) *entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.images[imageID]
}

// tagged returns the image that a tag names, nil when it is not here.
func (c *catalog) tagged(tag string) *entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.images[c.tags[tag]]
}

func (c *catalog) all() []*entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Collect(maps.Values(c.images))
}

// size is that of a layer's tar; known says whether the layer is in the store.
func (c *catalog) size(diffID digest.Digest) (bytes int64, known bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	bytes, known = c.sizes[diffID]
	return bytes, known
}

func (c *catalog) setSize(diffID digest.Digest, bytes int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sizes[diffID] = bytes
}

// sweep adds the images' layers to keep, and forgets and returns the others that were in the store.
func (c *catalog) sweep(keep map[digest.Digest]bool) (gone []digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.images {
		for _, d := range e.image.DiffIDs {
			keep[d] = true
		}
	}
	for d := range c.sizes {
		if !keep[d] {
			gone = append(gone, d)
			delete(c.sizes, d)
		}
	}
	return gone
}

// find finds an image by what a caller may call it: see Service.Image.
func (c *catalog) find(refOrID string) (*entry, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	hex, isID := reference.IDPrefix(refOrID)
	if isID && len(hex) == 64 {
		return c.findID(refOrID, "sha256:"+hex)
	}
	ref, err := reference.Parse(refOrID)
	if err == nil {
		id := c.tags[ref.String()]
		if ref.Digest != "" {
			id = c.digests[ref.String()]
		}
		if e := c.images[id]; e != nil {
			return e, nil
		}
	}
	if isID {
		if e, prefixErr := c.findPrefix(hex); e != nil || prefixErr != nil {
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
// Preconditions: c.mu held for reading.
func (c *catalog) findID(refOrID, id string) (*entry, error) {
	if e := c.images[id]; e != nil {
		return e, nil
	}
	for d, imageID := range c.digests {
		if strings.HasSuffix(d, "@"+id) {
			return c.images[imageID], nil
		}
	}
	return nil, fmt.Errorf("find image %s: %w", refOrID, ErrNotFound)
}

// findPrefix finds the one image whose ID begins so; nil when there is none.
// Preconditions: c.mu held for reading.
func (c *catalog) findPrefix(hex string) (*entry, error) {
	var found *entry
	for id, e := range c.images {
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
