package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Publish makes the stack of the layers, from the lowest up, one that containers can stand on, durably. Layers that were
// ingested and not yet published become so. It is idempotent: nil means that the stack is there, not that this call made
// it. After an error the layers are as they were before; a stack that makes no sense is layer.ErrInvalid.
func (s *Store) Publish(ctx context.Context, diffIDs []digest.Digest) error {
	if len(diffIDs) == 0 {
		return fmt.Errorf("publish stack: %w: it has no layers", ErrNotFound)
	}
	if err := checkDiffIDs(diffIDs...); err != nil {
		return fmt.Errorf("publish stack: %w", err)
	}
	if err := s.lock(ctx); err != nil {
		return fmt.Errorf("publish stack: %w", err)
	}
	defer s.unlock()
	layers, err := s.layersOf(diffIDs)
	if err != nil {
		return fmt.Errorf("publish stack: %w", err)
	}
	built, err := s.buildAll(ctx, layers, chainIDs(diffIDs))
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = s.commit(layers, built)
	}
	if err != nil {
		for _, c := range built {
			if s.chainOf(c.record.ChainID) == nil {
				err = errors.Join(err, s.trash.discard(c.dir))
			}
		}
		return fmt.Errorf("publish stack: %w", err)
	}
	return nil
}

func (s *Store) layersOf(diffIDs []digest.Digest) ([]*storedLayer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	layers := make([]*storedLayer, len(diffIDs))
	for i, d := range diffIDs {
		if layers[i] = s.find(d); layers[i] == nil {
			return nil, fmt.Errorf("layer %s: %w", d, ErrNotFound)
		}
	}
	return layers, nil
}

func (s *Store) chainOf(id digest.Digest) *chain {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chains[id]
}

// buildAll makes the chains that are missing. Preconditions: publishing held.
func (s *Store) buildAll(ctx context.Context, layers []*storedLayer, ids []digest.Digest) (built []*chain, err error) {
	var parent *chain
	for i, id := range ids {
		c := s.chainOf(id)
		if c == nil {
			if c, err = s.build(ctx, id, parent, layers[i]); err != nil {
				return built, fmt.Errorf("stack layer %s: %w", layers[i].record.DiffID, err)
			}
			built = append(built, c)
		}
		parent = c
	}
	return built, nil
}

// commit syncs, and moves layers and chains to their places: layers first, so that a chain never stands without them.
// Preconditions: publishing held.
func (s *Store) commit(layers []*storedLayer, built []*chain) error {
	var fresh []*storedLayer
	s.mu.Lock()
	for _, l := range layers {
		if s.ingested[l.record.DiffID] == l {
			fresh = append(fresh, l)
		}
	}
	s.mu.Unlock()
	if len(fresh) == 0 && len(built) == 0 {
		return nil
	}
	if err := s.sync(dirIngest, unix.Syncfs); err != nil {
		return err
	}
	for _, l := range fresh {
		if err := s.commitLayer(l); err != nil {
			return err
		}
	}
	for _, c := range built {
		dir := s.path(dirChains, c.record.ChainID.Encoded())
		s.mu.Lock()
		err := os.Rename(c.dir, dir)
		if err == nil {
			c.dir = dir
			s.chains[c.record.ChainID] = c
		}
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return errors.Join(s.sync(dirLayers, unix.Fsync), s.sync(dirChains, unix.Fsync))
}

// commitLayer moves one layer to its place; twice in one stack it is moved once.
func (s *Store) commitLayer(l *storedLayer) error {
	id := l.record.DiffID
	dir := s.path(dirLayers, id.Encoded())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ingested[id] != l {
		return nil
	}
	if err := os.Rename(l.dir, dir); err != nil {
		return err
	}
	l.dir = dir
	delete(s.ingested, id)
	s.layers[id] = l
	return nil
}

// sync runs call, a sync of some kind, on the folder name.
func (s *Store) sync(name string, call func(fd int) error) error {
	f, err := os.Open(s.path(name, ""))
	if err != nil {
		return err
	}
	if err := errors.Join(call(int(f.Fd())), f.Close()); err != nil {
		return fmt.Errorf("sync %s: %w", name, err)
	}
	return nil
}
