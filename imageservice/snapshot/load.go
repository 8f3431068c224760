package snapshot

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
)

// load reads what is on disk, and clears away what nothing names.
func (s *Store) load() error {
	scratch, err := os.ReadDir(s.path(dirIngest, ""))
	if err != nil {
		return err
	}
	for _, e := range scratch {
		if err := s.trash.discard(s.path(dirIngest, e.Name())); err != nil {
			return err
		}
	}
	if err := s.loadKeys(); err != nil {
		return err
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	if err := s.loadChains(); err != nil {
		return err
	}
	return s.clearDamaged()
}

func (s *Store) loadKeys() error {
	entries, err := os.ReadDir(s.path(dirContainers, ""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		w := &writable{dir: s.path(dirContainers, e.Name())}
		err := readRecord(filepath.Join(w.dir, "stack"), &w.diffIDs)
		if err == nil {
			err = readRecord(filepath.Join(w.dir, "kept"), &w.kept)
		}
		if Shortage(err) {
			return err
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) || w.diffIDs == nil {
			// It can be removed, and nothing else: what it stands on is not known.
			w.broken = true
			s.problems = append(s.problems, fmt.Errorf("writable layer %s: %w", e.Name(), err))
		}
		s.keys[e.Name()] = w
	}
	return nil
}

func (s *Store) loadLayers() error {
	entries, err := os.ReadDir(s.path(dirLayers, ""))
	if err != nil {
		return err
	}
	for _, e := range entries {
		l := &storedLayer{dir: s.path(dirLayers, e.Name())}
		err := readRecord(filepath.Join(l.dir, "layer"), &l.record)
		if id := l.record.DiffID; err == nil && (checkDiffIDs(id) != nil || id.Encoded() != e.Name()) {
			err = fmt.Errorf("%w %s: it is that of %q", errRecord, l.dir, id)
		}
		if Shortage(err) {
			return err
		}
		if err != nil {
			if err := s.setAside(l.dir, err); err != nil {
				return err
			}
			continue
		}
		s.layers[l.record.DiffID] = l
	}
	return nil
}

// loadChains reads the chains and ties each to its layer and to the chain below. One that cannot be tied is of no use.
func (s *Store) loadChains() error {
	entries, err := os.ReadDir(s.path(dirChains, ""))
	if err != nil {
		return err
	}
	read := make(map[digest.Digest]*chain, len(entries))
	for _, e := range entries {
		c := &chain{dir: s.path(dirChains, e.Name())}
		err := readRecord(filepath.Join(c.dir, "chain"), &c.record)
		if err == nil && (!c.record.valid() || c.record.ChainID.Encoded() != e.Name()) {
			err = fmt.Errorf("%w %s: it is that of %q", errRecord, c.dir, c.record.ChainID)
		}
		if Shortage(err) {
			return err
		}
		if err != nil {
			if err := s.setAside(c.dir, err); err != nil {
				return err
			}
			continue
		}
		read[c.record.ChainID] = c
	}
	for _, c := range read {
		if err := s.tie(c, read); err != nil {
			return err
		}
	}
	return nil
}

// tie puts c among the store's chains, or aside, after those below it.
func (s *Store) tie(c *chain, read map[digest.Digest]*chain) error {
	var todo []*chain // from the top
	for below := c; ; {
		todo = append(todo, below)
		parent := below.record.Parent
		if parent == "" || s.chains[parent] != nil || read[parent] == nil || len(todo) > len(read) {
			break
		}
		below = read[parent]
	}
	for i := len(todo) - 1; i >= 0; i-- {
		c := todo[i]
		id := c.record.ChainID
		if s.chains[id] != nil || read[id] == nil {
			continue
		}
		c.layer = s.layers[c.record.DiffID]
		if c.record.Parent != "" {
			c.parent = s.chains[c.record.Parent]
		}
		if c.layer == nil || c.record.Parent != "" && c.parent == nil {
			delete(read, id)
			if err := s.setAside(c.dir, nil); err != nil {
				return err
			}
			continue
		}
		s.chains[id] = c
	}
	return nil
}

// setAside takes a layer or chain that is of no use out of its place. A running container may stand on it: see clearDamaged.
// reason is nil where the reason is another's damage.
func (s *Store) setAside(dir string, reason error) error {
	if reason != nil {
		s.problems = append(s.problems, reason)
	}
	to := s.path(dirDamaged, filepath.Base(dir)+"."+rand.Text())
	if err := os.Rename(dir, to); err != nil {
		return errors.Join(reason, err)
	}
	return nil
}

// clearDamaged deletes what was put aside and no writable layer stands on.
func (s *Store) clearDamaged() error {
	entries, err := os.ReadDir(s.path(dirDamaged, ""))
	if err != nil || len(entries) == 0 {
		return err
	}
	used, known := s.used()
	if !known {
		return nil
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		if !used[id] {
			if err := s.trash.discard(s.path(dirDamaged, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// used gives the names of the layers and chains that writable layers stand on; known is false if one does not say.
func (s *Store) used() (names map[string]bool, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	names, known = make(map[string]bool), true
	for _, w := range s.keys {
		known = known && !w.broken
		w.names(names)
	}
	return names, known
}
