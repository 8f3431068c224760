package imageservice

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// leases keep layers from being taken away between the moment that somebody finds them and the moment that a record or a root
// filesystem names them.
type leases struct {
	// publishing is held while layers are published or pruned. It is taken before collect, so that nobody who needs collect waits
	// for a slow disk to sync.
	publishing sync.Mutex

	collect sync.Mutex
	count   map[digest.Digest]int // guarded by collect
}

func newLeases() leases { return leases{count: map[digest.Digest]int{}} }

// lease keeps layers until the function that it returns is called for the first time.
func (s *Service) lease(diffIDs []digest.Digest) (release func()) {
	s.leases.collect.Lock()
	defer s.leases.collect.Unlock()
	return s.leaseLocked(diffIDs)
}

// leaseLocked is lease.
// Preconditions: s.leases.collect held.
func (s *Service) leaseLocked(diffIDs []digest.Digest) (release func()) {
	for _, d := range diffIDs {
		s.leases.count[d]++
	}
	return sync.OnceFunc(func() {
		s.leases.collect.Lock()
		defer s.leases.collect.Unlock()
		for _, d := range diffIDs {
			if s.leases.count[d]--; s.leases.count[d] == 0 {
				delete(s.leases.count, d)
			}
		}
	})
}

// prune removes the layers that no image, no root filesystem and no pull needs.
func (s *Service) prune(ctx context.Context) error {
	s.leases.publishing.Lock()
	defer s.leases.publishing.Unlock()
	s.leases.collect.Lock()
	defer s.leases.collect.Unlock()
	keep := map[digest.Digest]bool{}
	for d := range s.leases.count {
		keep[d] = true
	}
	gone := s.catalog.sweep(keep)
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
