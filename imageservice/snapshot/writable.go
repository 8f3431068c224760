package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/layer"
)

// writable is the writable layer of one key.
type writable struct {
	dir     string
	diffIDs []digest.Digest   // of the stack below
	kept    [][]digest.Digest // of the stacks for reading
	broken  bool              // its record is bad: it can only be removed
	making  bool              // Prepare is under way
}

var keyPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

// Prepare gives key a writable layer upon the published stack, and says how to mount the two. It is idempotent; a key that
// stands on other layers is ErrInUse. The layers are the key's until Remove, and so are those of kept, published stacks that
// it has for reading: Prune leaves them alone.
func (s *Store) Prepare(ctx context.Context, key string, diffIDs []digest.Digest, kept ...[]digest.Digest) ([]Mount, error) {
	if !keyPattern.MatchString(key) {
		return nil, fmt.Errorf("prepare %q: %w", key, ErrKey)
	}
	top, exists, err := s.reserve(key, diffIDs, kept)
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", key, err)
	}
	if exists {
		return s.Mounts(key)
	}
	err = ctx.Err()
	if err == nil {
		err = s.makeWritable(key, top)
	}
	s.mu.Lock()
	if err != nil {
		delete(s.keys, key)
	} else {
		s.keys[key].making = false
	}
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", key, err)
	}
	return s.Mounts(key)
}

// reserve takes the key, and gives the folder on top of the stack.
func (s *Store) reserve(key string, diffIDs []digest.Digest, kept [][]digest.Digest) (top string, exists bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.keys[key]; w != nil {
		if w.making || w.broken || !slices.Equal(w.diffIDs, diffIDs) || !slices.EqualFunc(w.kept, kept, slices.Equal[[]digest.Digest]) {
			return "", false, ErrInUse
		}
		return "", true, nil
	}
	c, err := s.stack(diffIDs)
	if err != nil {
		return "", false, err
	}
	w := &writable{dir: s.path(dirContainers, key), diffIDs: slices.Clone(diffIDs), making: true}
	for _, ids := range kept {
		if _, err := s.stack(ids); err != nil {
			return "", false, err
		}
		w.kept = append(w.kept, slices.Clone(ids))
	}
	s.keys[key] = w
	return c.folders()[0], false, nil
}

// stack finds the published chain. Preconditions: s.mu held.
func (s *Store) stack(diffIDs []digest.Digest) (*chain, error) {
	if len(diffIDs) == 0 {
		return nil, fmt.Errorf("stack of no layers: %w", ErrNotFound)
	}
	if err := checkDiffIDs(diffIDs...); err != nil {
		return nil, err
	}
	ids := chainIDs(diffIDs)
	c := s.chains[ids[len(ids)-1]]
	if c == nil {
		return nil, fmt.Errorf("chain %s: %w", ids[len(ids)-1], ErrNotFound)
	}
	return c, nil
}

// makeWritable makes the folder in private, and moves it to its place. The upper folder's root is that of the whole tree:
// it takes over the stack's attributes.
func (s *Store) makeWritable(key, top string) (err error) {
	s.mu.Lock()
	w := *s.keys[key]
	s.mu.Unlock()
	dir, err := s.scratch()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.trash.discard(dir))
		}
	}()
	upper := filepath.Join(dir, "upper")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	if err := layer.CopyDirAttributes(upper, top); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "work"), 0o700); err != nil {
		return err
	}
	if err := writeRecord(filepath.Join(dir, "stack"), w.diffIDs); err != nil {
		return err
	}
	if len(w.kept) > 0 {
		if err := writeRecord(filepath.Join(dir, "kept"), w.kept); err != nil {
			return err
		}
	}
	return os.Rename(dir, w.dir)
}

// Mounts says how to mount the key's tree.
func (s *Store) Mounts(key string) ([]Mount, error) {
	s.mu.Lock()
	w := s.keys[key]
	var folders []string
	var err error
	switch {
	case w == nil || w.making:
		err = ErrNotFound
	case w.broken:
		err = errRecord
	default:
		var c *chain
		if c, err = s.stack(w.diffIDs); err == nil {
			folders = c.folders()
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("mounts of %q: %w", key, err)
	}
	if err := w.allowMount(); err != nil {
		return nil, fmt.Errorf("mounts of %q: %w", key, err)
	}
	return []Mount{overlayMount(folders, w)}, nil
}

// allowMount takes away overlayfs's mark that the folder was mounted volatile: it refuses to mount such a one again, as
// the power may have been cut in between. To a container that is no worse than the cut itself.
func (w *writable) allowMount() error {
	return os.RemoveAll(filepath.Join(w.dir, "work", "work", "incompat"))
}

// View says how to mount the published stack for reading. Nobody who has it mounted can make it writable: it has no upper folder, and so
// the kernel refuses. For that a single folder is stacked too, on an empty one.
func (s *Store) View(diffIDs []digest.Digest) ([]Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.view(diffIDs)
	if err != nil {
		return nil, fmt.Errorf("view stack: %w", err)
	}
	return []Mount{m}, nil
}

// view is View. Preconditions: s.mu held.
func (s *Store) view(diffIDs []digest.Digest) (Mount, error) {
	c, err := s.stack(diffIDs)
	if err != nil {
		return Mount{}, err
	}
	folders := c.folders()
	if len(folders) == 1 {
		folders = append(folders[:1:1], s.path(dirEmpty, ""))
	}
	return overlayMount(folders, nil), nil
}

// Kept says how to mount each stack that the key has for reading, in the order of Prepare.
func (s *Store) Kept(key string) ([]Mount, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.keys[key]
	if w == nil || w.making {
		return nil, fmt.Errorf("stacks of %q: %w", key, ErrNotFound)
	}
	if w.broken {
		return nil, fmt.Errorf("stacks of %q: %w", key, errRecord)
	}
	mounts := make([]Mount, len(w.kept))
	for i, ids := range w.kept {
		m, err := s.view(ids)
		if err != nil {
			return nil, fmt.Errorf("stacks of %q: %w", key, err)
		}
		mounts[i] = m
	}
	return mounts, nil
}

// names adds to set what w stands on and keeps: layers and chains.
func (w *writable) names(set map[string]bool) {
	for _, stack := range append(w.kept[:len(w.kept):len(w.kept)], w.diffIDs) {
		for _, d := range append(chainIDs(stack), stack...) {
			set[d.Encoded()] = true
		}
	}
}

// Remove gives the key's writable layer back. It is idempotent, and returns before the content is deleted: see Wait.
func (s *Store) Remove(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove %q: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.keys[key]
	if w == nil {
		return nil
	}
	if w.making {
		return fmt.Errorf("remove %s: %w: it is being made", key, ErrInUse)
	}
	if err := s.trash.discard(w.dir); err != nil {
		return fmt.Errorf("remove %s: %w", key, err)
	}
	delete(s.keys, key)
	return nil
}

// Keys lists the keys that have a writable layer, sorted.
func (s *Store) Keys() ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := make([]string, 0, len(s.keys))
	for key, w := range s.keys {
		if !w.making {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys, nil
}
