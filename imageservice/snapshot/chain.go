package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/layer"
)

// maxFolders is overlayfs's OVL_MAX_STACK.
const maxFolders = 500

// chainKind says what the layer on top needs to stand on the chain below.
type chainKind string

const (
	kindPlain   chainKind = "plain"   // its folder as it is
	kindEmpty   chainKind = "empty"   // nothing: the layer has no entries
	kindFixed   chainKind = "fixed"   // the chain's folder above its own
	kindRoot    chainKind = "root"    // as fixed, but not where another folder stands above
	kindRebased chainKind = "rebased" // the chain's folder in the place of its own
)

// chain is a stack of layers.
type chain struct {
	record chainRecord
	dir    string
	parent *chain // nil: the layer is the lowest
	layer  *storedLayer
}

type chainRecord struct {
	ChainID   digest.Digest `json:"chainID"`
	Parent    digest.Digest `json:"parent,omitempty"`
	DiffID    digest.Digest `json:"diffID"`
	Kind      chainKind     `json:"kind"`
	DiskUsage int64         `json:"diskUsage"` // bytes of the chain's own folder
	Inodes    int64         `json:"inodes"`
}

func (r *chainRecord) valid() bool {
	switch r.Kind {
	case kindPlain, kindEmpty, kindFixed, kindRoot, kindRebased:
	default:
		return false
	}
	return checkDiffIDs(r.ChainID, r.DiffID) == nil && (r.Parent == "" || checkDiffIDs(r.Parent) == nil)
}

func (c *chain) folder() string { return filepath.Join(c.dir, "fs") }

// folders lists what adds up to the chain, from the top. Preconditions: Store.mu held, or nobody else moves layers.
func (c *chain) folders() []string {
	var list []string
	for ; c != nil; c = c.parent {
		switch c.record.Kind {
		case kindEmpty:
			continue
		case kindRebased:
			list = append(list, c.folder())
		case kindFixed:
			list = append(list, c.folder(), c.layer.folder())
		case kindRoot:
			if len(list) == 0 {
				list = append(list, c.folder())
			}
			list = append(list, c.layer.folder())
		default:
			list = append(list, c.layer.folder())
		}
		if c.layer.record.OpaqueRoot {
			break
		}
	}
	return list
}

// has tells whether the layer's own folder is part of the chain.
func (c *chain) has(l *storedLayer) bool {
	return slices.Contains(c.folders(), l.folder())
}

// build makes the chain that l upon parent is, in a private folder. Preconditions: publishing held.
func (s *Store) build(ctx context.Context, id digest.Digest, parent *chain, l *storedLayer) (_ *chain, err error) {
	c := &chain{parent: parent, layer: l, record: chainRecord{ChainID: id, DiffID: l.record.DiffID, Kind: kindPlain}}
	if parent != nil {
		c.record.Parent = parent.record.ChainID
	}
	if c.dir, err = s.scratch(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.trash.discard(c.dir))
		}
	}()
	switch {
	case parent != nil && l.record.Entries == 0:
		c.record.Kind = kindEmpty
	case parent != nil && parent.has(l):
		// overlayfs takes no folder twice.
		err = s.rebase(ctx, c)
	default:
		err = s.complete(ctx, c)
	}
	if err != nil {
		return nil, err
	}
	if n := len(c.folders()); n > maxFolders {
		return nil, fmt.Errorf("%w: %d folders, overlayfs takes %d", ErrTooManyLayers, n, maxFolders)
	}
	return c, writeRecord(filepath.Join(c.dir, "chain"), c.record)
}

// complete finds out what the chain's layer needs, and makes it.
func (s *Store) complete(ctx context.Context, c *chain) error {
	pending, err := c.layer.pending()
	if err != nil {
		return err
	}
	below, err := s.openBelow(c)
	if err != nil {
		return err
	}
	if below != nil {
		defer below.Close()
	}
	if err := os.Mkdir(c.folder(), 0o755); err != nil {
		return err
	}
	done, err := layer.Complete(ctx, c.layer.folder(), pending, below, c.folder())
	if err != nil {
		return err
	}
	c.record.DiskUsage, c.record.Inodes = done.DiskUsage, done.Inodes
	switch done.Need {
	case layer.Fixed:
		c.record.Kind = kindFixed
		return nil
	case layer.FixedRoot:
		c.record.Kind = kindRoot
		return nil
	}
	if err := os.Remove(c.folder()); err != nil {
		return err
	}
	if done.Need == layer.Rebase {
		return s.rebaseUpon(ctx, c, below)
	}
	return nil
}

func (s *Store) openBelow(c *chain) (*os.File, error) {
	if c.parent == nil {
		return nil, nil
	}
	below, err := s.openFolders(c.parent.folders())
	if err != nil {
		return nil, fmt.Errorf("open the layers below: %w", err)
	}
	return below, nil
}

// rebase applies the layer's tar again, upon the chain below.
func (s *Store) rebase(ctx context.Context, c *chain) error {
	below, err := s.openBelow(c)
	if err != nil {
		return err
	}
	defer below.Close()
	return s.rebaseUpon(ctx, c, below)
}

func (s *Store) rebaseUpon(ctx context.Context, c *chain, below *os.File) error {
	if err := os.Mkdir(c.folder(), 0o755); err != nil {
		return err
	}
	s.mu.Lock()
	limits := s.limits
	s.mu.Unlock()

	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.CloseWithError(c.layer.rebuild(ctx, w))
	}()
	res, err := layer.Apply(ctx, r, c.folder(), nil, layer.Options{Limits: limits, Lower: below})
	r.CloseWithError(context.Canceled) // for the rebuild, if that was not the end
	<-ended
	if err != nil {
		return fmt.Errorf("apply upon the layers below: %w", err)
	}
	if res.DiffID != c.layer.record.tar() {
		return fmt.Errorf("apply upon the layers below: %w: the rebuilt tar's is %s", ErrDigestMismatch, res.DiffID)
	}
	c.record.Kind, c.record.DiskUsage, c.record.Inodes = kindRebased, res.DiskUsage, res.Inodes
	return nil
}
