// Package snapshot keeps unpacked layers, stacks them, and gives containers their writable layers: the overlay snapshotter.
//
// # Terms
//
// A layer is named by its diffID and kept once, as package layer's Apply made it. A chain is a stack of layers, named by
// its chainID (image-spec config.md#layer-chainid); it says which folders, from the top, add up to the sequential unpack
// of its layers. A key names a writable layer; what it stands for is the caller's affair.
//
// # Files
//
// Below the root, which is ROOT/images, this package owns:
//
//	layers/HEX/fs             the folder of the layer sha256:HEX; an artifact's is sha512:HEX
//	layers/HEX/kept           content that a later entry of the same layer replaced, if there is any
//	layers/HEX/split.zst      tar-split records: with the folder they give the exact tar
//	layers/HEX/layer          record: digest, usage, moves
//	layers/HEX/pending        record: what the layer leaves to those below
//	chains/HEX/chain          record: the chain below, the layer, what it needed to stand on that
//	chains/HEX/fs             the fix-up that stands directly above the layer, or the layer as applied upon this very chain
//	containers/KEY/upper      the writable layer
//	containers/KEY/work       overlayfs's
//	containers/KEY/stack      record: the diffIDs below
//	containers/KEY/kept       record: the diffIDs of each stack that the key has for reading, if there is any
//	ingest/                   what is being made; emptied when the store opens
//	empty/                    a folder with nothing in it, to stack a single folder upon
//	trash/                    what is being deleted
//	damaged/                  layers and chains whose record is bad, kept while a container may stand on them
//
// Each record is a header line with a version and a checksum, and JSON. All folders are 0700.
//
// # Durability
//
// Everything comes to be in ingest and by one rename into its place. Publish syncs the file system once before it renames, so a layer
// or a chain that is in its place is whole, whatever was cut off. Writable layers are not synced: kill -9 loses nothing of them, a
// power cut what the kernel had not written. They are mounted volatile: the file system below is not synced when a container ends.
//
// # Mounts
//
// The store adds nothing to the host's mount table. To look into a stack it mounts it detached; on kernels without
// overlayfs in the new mount interface, in a mount namespace that ends with the thread.
//
// # Concurrency
//
// All methods may be called at any time. One Publish or Prune runs at a time; no other method waits for it. Prune must not
// run between Publish and the record that makes the caller name these layers in keep: the caller sees to that.
//
// # Errors
//
// ErrNotFound, ErrDigestMismatch, ErrKey, ErrInUse, ErrTooManyLayers, ErrNotRegular, ErrTooLarge; layer.ErrInvalid and layer.ErrLimit from a
// hostile layer; fs.ErrNotExist from ReadFile; what the file system says otherwise.
package snapshot
