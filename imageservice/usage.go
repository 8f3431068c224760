package imageservice

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/berthd/berth/imageservice/snapshot"
)

// FsUsage is what images or containers take of a file system.
type FsUsage struct {
	Bytes      uint64 // of blocks
	Inodes     uint64
	Mountpoint string // ROOT/images: a folder on that file system
}

// usageCache remembers the writable layers' usage for a while: it is a walk over their files.
type usageCache struct {
	mu    sync.Mutex
	until time.Time
	usage FsUsage
}

// FsUsage is what images and what writable layers take. Both lie on the file system of ROOT/images. Images are counted from
// memory; writable layers are walked, at most once a second and for at most a twentieth of the time.
func (s *Service) FsUsage(ctx context.Context) (images, containers FsUsage, err error) {
	bytes, inodes := s.snap.LayersUsage()
	images = FsUsage{Bytes: uint64(max(0, bytes)), Inodes: uint64(max(0, inodes)), Mountpoint: s.config.Root}
	c := &s.usage
	c.mu.Lock()
	defer c.mu.Unlock()
	start := time.Now()
	if start.Before(c.until) {
		return images, c.usage, nil
	}
	keys, err := s.snap.Keys()
	if err != nil {
		return FsUsage{}, FsUsage{}, fmt.Errorf("list root filesystems: %w", err)
	}
	containers.Mountpoint = s.config.Root
	for _, key := range keys {
		if ctx.Err() != nil {
			return FsUsage{}, FsUsage{}, context.Cause(ctx)
		}
		bytes, inodes, err := s.snap.Usage(ctx, key)
		if errors.Is(err, snapshot.ErrNotFound) {
			continue // it was released meanwhile
		}
		if err != nil {
			return FsUsage{}, FsUsage{}, fmt.Errorf("measure root filesystem %s: %w", key, err)
		}
		containers.Bytes += uint64(max(0, bytes))
		containers.Inodes += uint64(max(0, inodes))
	}
	c.usage, c.until = containers, time.Now().Add(max(time.Second, 20*time.Since(start)))
	return images, containers, nil
}
