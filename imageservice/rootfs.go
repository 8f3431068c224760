package imageservice

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/snapshot"
)

// Prepare makes a writable layer on top of an image, known by key, and returns the mounts of it, top first. It is idempotent.
// As long as it exists it keeps the layers of the image, and of the images that are its volumes, even if they are removed.
func (s *Service) Prepare(ctx context.Context, key, imageID string, volumes ...string) ([]snapshot.Mount, error) {
	stacks, release, err := s.leaseImages(append([]string{imageID}, volumes...))
	if err != nil {
		if mounts, mountsErr := s.snap.Mounts(key); mountsErr == nil {
			return mounts, nil // it was made when the images were still here
		}
		return nil, fmt.Errorf("prepare root filesystem %s: %w", key, err)
	}
	defer release()
	mounts, err := s.snap.Prepare(ctx, key, stacks[0], stacks[1:]...)
	if err != nil {
		return nil, err
	}
	s.catalog.mu.Lock()
	s.catalog.keys[key] = append([]string{imageID}, volumes...)
	s.catalog.mu.Unlock()
	return mounts, nil
}

// leaseImages finds the layers of images and keeps them until release is called.
func (s *Service) leaseImages(imageIDs []string) (stacks [][]digest.Digest, release func(), err error) {
	s.leases.collect.Lock()
	defer s.leases.collect.Unlock()
	for _, id := range imageIDs {
		e, err := s.catalog.find(id)
		if err != nil {
			return nil, nil, err
		}
		stacks = append(stacks, e.image.DiffIDs)
	}
	return stacks, s.leaseLocked(slices.Concat(stacks...)), nil
}

// Mounts are those of a writable layer that Prepare has made.
func (s *Service) Mounts(key string) ([]snapshot.Mount, error) { return s.snap.Mounts(key) }

// Volumes are how the volumes of a writable layer are mounted for reading, one mount each, in Prepare's order.
func (s *Service) Volumes(key string) ([]snapshot.Mount, error) { return s.snap.Kept(key) }

// CheckVolume says whether a path of an image can be mounted as a volume: it leads, with symbolic links followed inside the image, to a
// folder or a regular file. One that leads to nothing is fs.ErrNotExist, to something else ErrNotVolume.
func (s *Service) CheckVolume(ctx context.Context, imageID, name string) error {
	stacks, release, err := s.leaseImages([]string{imageID})
	if err != nil {
		return fmt.Errorf("look at %s: %w", name, err)
	}
	defer release()
	err = s.snap.CheckVolume(ctx, stacks[0], path.Clean("/"+name))
	if errors.Is(err, snapshot.ErrNotRegular) {
		return fmt.Errorf("%w: %w", ErrNotVolume, err)
	}
	return err
}

// Release removes a writable layer; one that is gone is released. Layers that only it needed go behind the call.
func (s *Service) Release(ctx context.Context, key string) error {
	if err := s.snap.Remove(ctx, key); err != nil {
		return err
	}
	s.walker.forget(key)
	if s.catalog.forgetKey(key) {
		return nil // the image is still here, so nothing became free
	}
	select {
	case s.wake <- struct{}{}:
	default: // it has been asked already
	}
	return nil
}

// Keys lists the writable layers.
func (s *Service) Keys() ([]string, error) { return s.snap.Keys() }

// fileKey names a file of an image.
type fileKey struct{ imageID, path string }

// file is what ReadFile remembers; images do not change.
type file struct {
	content []byte
	missing bool
}

// ReadFile reads a regular file of an image, of at most max bytes; symbolic links are followed inside the image. A file that is
// not there is fs.ErrNotExist. etc/passwd and etc/group, which every container asks for, are remembered.
func (s *Service) ReadFile(ctx context.Context, imageID, name string, max int64) ([]byte, error) {
	key := fileKey{imageID: imageID, path: path.Clean("/" + name)}
	s.catalog.mu.RLock()
	f, ok := s.catalog.files[key]
	s.catalog.mu.RUnlock()
	if ok && f.missing {
		return nil, fmt.Errorf("read %s of image %s: %w", key.path, imageID, fs.ErrNotExist)
	}
	if ok && int64(len(f.content)) <= max {
		return slices.Clone(f.content), nil
	}
	stacks, release, err := s.leaseImages([]string{imageID})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key.path, err)
	}
	defer release()
	content, err := s.snap.ReadFile(ctx, stacks[0], key.path, max)
	missing := errors.Is(err, fs.ErrNotExist)
	if (err == nil || missing) && len(content) <= maxCachedFile && (key.path == "/etc/passwd" || key.path == "/etc/group") {
		s.catalog.remember(key, file{content: slices.Clone(content), missing: missing})
	}
	return content, err
}

// forgetKey forgets a root filesystem and says whether it was made of images that are all still here.
func (c *catalog) forgetKey(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids, ok := c.keys[key]
	delete(c.keys, key)
	return ok && !slices.ContainsFunc(ids, func(id string) bool { return c.images[id] == nil })
}

func (c *catalog) remember(key fileKey, f file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.images[key.imageID] == nil {
		return // it was asked for by another name, or is gone
	}
	if len(c.files) >= maxCachedFiles {
		clear(c.files)
	}
	c.files[key] = f
}
