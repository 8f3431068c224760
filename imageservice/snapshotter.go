package imageservice

import (
	"context"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/snapshot"
)

// LayerStore keeps unpacked layers by their diffIDs. snapshot.Store is one.
type LayerStore interface {
	// Size says whether a layer is published, and how many bytes its tar has.
	Size(diffID digest.Digest) (bytes int64, published bool)
	// Ingest unpacks a tar as diffID, which it checks, and reads it to its end. A layer that is there already is nil at once. The
	// layer is neither durable nor seen before Publish. Of two calls for one diffID at a time the first to end counts.
	Ingest(ctx context.Context, diffID digest.Digest, tar io.Reader) error
	// IngestAs is Ingest without the check: the caller vouches that name stands for these bytes, and for none else.
	IngestAs(ctx context.Context, name digest.Digest, tar io.Reader) error
	// Publish makes layers durable and stacks them, lowest first. It is idempotent.
	Publish(ctx context.Context, diffIDs []digest.Digest) error
	// Discard removes layers that were ingested and not published; it leaves others alone.
	Discard(ctx context.Context, diffIDs ...digest.Digest) error
	// Prune removes the published layers that are neither in keep nor below a root filesystem.
	Prune(ctx context.Context, keep []digest.Digest) error
	// LayersUsage is what all layers take, in bytes of blocks and inodes. It answers from memory.
	LayersUsage() (bytes, inodes int64)
	// ReadFile reads a regular file of a stack of layers; fs.ErrNotExist when there is none.
	ReadFile(ctx context.Context, diffIDs []digest.Digest, path string, max int64) ([]byte, error)
}

// RootFSStore keeps writable layers on top of layers, by the caller's keys.
type RootFSStore interface {
	// Prepare makes a writable layer, and keeps other stacks for reading with it. It is idempotent.
	Prepare(ctx context.Context, key string, diffIDs []digest.Digest, kept ...[]digest.Digest) ([]snapshot.Mount, error)
	Mounts(key string) ([]snapshot.Mount, error)
	// Kept is how the stacks for reading are mounted, one mount each.
	Kept(key string) ([]snapshot.Mount, error)
	// CheckVolume says whether a path of a stack is a folder or a regular file: fs.ErrNotExist, snapshot.ErrNotRegular.
	CheckVolume(ctx context.Context, diffIDs []digest.Digest, path string) error
	// Remove is idempotent.
	Remove(ctx context.Context, key string) error
	Keys() ([]string, error)
	// Usage of a writable layer.
	Usage(ctx context.Context, key string) (bytes, inodes int64, err error)
}

// Snapshotter is both, in one folder.
type Snapshotter interface {
	LayerStore
	RootFSStore
}
