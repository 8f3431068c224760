package imageservice

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/imageservice/snapshot"
)

// FsUsage is what images or containers take of a file system.
type FsUsage struct {
	Bytes      uint64 // of blocks
	Inodes     uint64
	Mountpoint string // ROOT/images: a folder on that file system
}

// Filesystem is the one that images and writable layers lie on.
type Filesystem struct {
	Device             string // /dev/vda, or MAJOR:MINOR where it has none
	Major, Minor       uint32
	Bytes              uint64 // all that it holds
	Inodes, InodesFree uint64
}

// Filesystem asks the kernel.
func (s *Service) Filesystem() (Filesystem, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Statfs(s.root, &fs), unix.Stat(s.root, &st)); err != nil {
		return Filesystem{}, fmt.Errorf("ask for the file system of %s: %w", s.root, err)
	}
	major, minor := unix.Major(st.Dev), unix.Minor(st.Dev)
	out := Filesystem{Device: fmt.Sprintf("%d:%d", major, minor), Major: major, Minor: minor, Bytes: fs.Blocks * uint64(fs.Bsize), Inodes: fs.Files, InodesFree: fs.Ffree}
	text, err := os.ReadFile("/sys/dev/block/" + out.Device + "/uevent")
	if err != nil {
		return out, nil //nolint:nilerr // it is on no block device
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			out.Device = "/dev/" + name
		}
	}
	return out, nil
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
	images = FsUsage{Bytes: uint64(max(0, bytes)), Inodes: uint64(max(0, inodes)), Mountpoint: s.root}
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
	containers.Mountpoint = s.root
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
