package snapshot

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/layer"
)

var (
	// ErrNotFound says that a layer, a stack or a key is not in the store.
	ErrNotFound = errors.New("snapshot not found")
	// ErrDigestMismatch says that a tar is not what its diffID names.
	ErrDigestMismatch = errors.New("diffID mismatch")
	// ErrKey says that a key cannot name a folder.
	ErrKey = errors.New("invalid snapshot key")
	// ErrInUse says that a key stands for a writable layer upon other layers.
	ErrInUse = errors.New("snapshot key in use")
	// ErrTooManyLayers says that overlayfs cannot stack that many folders.
	ErrTooManyLayers = errors.New("too many layers")
	// ErrNotRegular says that ReadFile was asked for something that is no regular file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrTooLarge says that a file is larger than ReadFile was allowed to read.
	ErrTooLarge = errors.New("file too large")
)

// Store is one folder of layers, chains and writable layers. It belongs to one process at a time: the daemon's lock sees
// to that.
type Store struct {
	root       string
	publishing chan struct{} // held by Publish and Prune: whoever moves layers and chains about
	trash      *trash

	mu       sync.Mutex
	limits   layer.Limits
	layers   map[digest.Digest]*storedLayer // published
	ingested map[digest.Digest]*storedLayer // waiting for Publish
	chains   map[digest.Digest]*chain       // published
	keys     map[string]*writable
	problems []error
}

// storedLayer is a layer and where it lies. dir changes once, under Store.mu, when it is published.
type storedLayer struct {
	record layerRecord
	dir    string
}

// layerRecord is what the store knows of a layer without looking into it.
type layerRecord struct {
	DiffID        digest.Digest `json:"diffID"`
	Tar           digest.Digest `json:"tar,omitempty"` // the tar's digest, if the diffID is not that: see IngestAs
	Size          int64         `json:"size"`          // bytes of the tar
	Entries       int64         `json:"entries"`       // of the tar
	DiskUsage     int64         `json:"diskUsage"`     // bytes
	Inodes        int64         `json:"inodes"`
	DroppedXattrs int           `json:"droppedXattrs,omitempty"`
	OpaqueRoot    bool          `json:"opaqueRoot,omitempty"`
	Moves         []layer.Move  `json:"moves,omitempty"`
}

// tar is the digest of the layer's tar.
func (r *layerRecord) tar() digest.Digest { return cmp.Or(r.Tar, r.DiffID) }

func (l *storedLayer) folder() string { return filepath.Join(l.dir, "fs") }

const (
	dirLayers     = "layers"
	dirChains     = "chains"
	dirContainers = "containers"
	dirIngest     = "ingest"
	dirTrash      = "trash"
	dirDamaged    = "damaged"
	dirEmpty      = "empty"
)

// Open opens the store at root, which is made if it is missing. What was not published goes; a layer or chain whose
// record is bad is put aside, see Problems. A Shortage puts nothing aside: Open fails.
func Open(root string) (*Store, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	s := &Store{
		root:       root,
		publishing: make(chan struct{}, 1),
		layers:     make(map[digest.Digest]*storedLayer),
		ingested:   make(map[digest.Digest]*storedLayer),
		chains:     make(map[digest.Digest]*chain),
		keys:       make(map[string]*writable),
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	for _, name := range []string{"", dirLayers, dirChains, dirContainers, dirIngest, dirTrash, dirDamaged, dirEmpty} {
		dir := filepath.Join(root, name)
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil { // an older folder may be open to others
			return nil, fmt.Errorf("open snapshots: %w", err)
		}
	}
	spread(s.path(dirIngest, ""))
	if s.trash, err = openTrash(filepath.Join(root, dirTrash)); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshots: %w", err), s.Close())
	}
	return s, nil
}

// Close ends the deleting behind calls, where it stands: the next Open goes on with it. No other method is to be called
// then or later.
func (s *Store) Close() error { return s.trash.close() }

// Wait returns when all that was removed so far is deleted, with the errors of that.
func (s *Store) Wait(ctx context.Context) error { return s.trash.wait(ctx) }

// SetLimits bounds the layers ingested from now on.
func (s *Store) SetLimits(limits layer.Limits) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits = limits
}

// Problems says what Open put aside, and why.
func (s *Store) Problems() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.problems)
}

// path is the place of id below the root's folder kind.
func (s *Store) path(kind, id string) string { return filepath.Join(s.root, kind, id) }

// scratch makes a new folder in ingest.
func (s *Store) scratch() (string, error) {
	dir := s.path(dirIngest, rand.Text())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("make private folder: %w", err)
	}
	return dir, nil
}

// lock takes publishing.
func (s *Store) lock(ctx context.Context) error {
	select {
	case s.publishing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Store) unlock() { <-s.publishing }

// checkDiffIDs lets only what can name a folder through.
func checkDiffIDs(diffIDs ...digest.Digest) error {
	for _, d := range diffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 && d.Algorithm() != digest.SHA512 {
			return fmt.Errorf("diffID %q: not a SHA-256 or SHA-512 digest", string(d))
		}
	}
	return nil
}

// chainIDs gives the chainID of each stack from the bottom up. image-spec config.md#layer-chainid
func chainIDs(diffIDs []digest.Digest) []digest.Digest {
	ids := slices.Clone(diffIDs)
	for i := 1; i < len(ids); i++ {
		sum := sha256.Sum256([]byte(string(ids[i-1]) + " " + string(diffIDs[i])))
		ids[i] = digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum[:]))
	}
	return ids
}

// LayersUsage says what layers and chains take, published or not: bytes of blocks and inodes, as they were when they came
// to be. It answers from memory.
func (s *Store) LayersUsage() (bytes, inodes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, set := range []map[digest.Digest]*storedLayer{s.layers, s.ingested} {
		for _, l := range set {
			bytes += l.record.DiskUsage
			inodes += l.record.Inodes
		}
	}
	for _, c := range s.chains {
		bytes += c.record.DiskUsage
		inodes += c.record.Inodes
	}
	return bytes, inodes
}
