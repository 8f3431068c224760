package snapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Prune gives back the published layers that are neither in keep nor below a writable layer, and the chains with them.
// What is ingested and not published it leaves alone. It returns before the content is deleted: see Wait.
func (s *Store) Prune(ctx context.Context, keep []digest.Digest) error {
	if err := s.lock(ctx); err != nil {
		return fmt.Errorf("prune layers: %w", err)
	}
	defer s.unlock()
	names, known := s.used()
	if !known {
		// A writable layer does not say what it stands on: until it is removed nothing is safe to delete.
		return nil
	}
	for _, d := range keep {
		names[d.Encoded()] = true
	}
	chains, layers := s.takeUnused(names)
	var errs []error
	for _, c := range chains { // before their layers: a chain never stands without them
		errs = append(errs, s.trash.discard(c.dir))
	}
	for _, l := range layers {
		errs = append(errs, s.trash.discard(l.dir))
	}
	errs = append(errs, s.clearDamaged())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("prune layers: %w", err)
	}
	return nil
}

// takeUnused takes the layers not in names and all chains with such a layer out of the store. Preconditions: publishing held.
func (s *Store) takeUnused(names map[string]bool) (chains []*chain, layers []*storedLayer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.keys { // one may have come since names was made
		w.names(names)
	}
	for id, l := range s.layers {
		if !names[id.Encoded()] {
			layers = append(layers, l)
			delete(s.layers, id)
		}
	}
	for id, c := range s.chains {
		for below := c; below != nil; below = below.parent {
			if !names[below.record.DiffID.Encoded()] {
				chains = append(chains, c)
				delete(s.chains, id)
				break
			}
		}
	}
	return chains, layers
}
