// Package imageservice pulls images, knows them, and makes root filesystems of them.
//
// # Terms
//
// An image is known by its ID, the digest of its config. References (tags and digests of repositories) point to images; a
// tag moves when it is pulled again and names something else. A layer is known by its diffID, the digest of its tar. A
// root filesystem has a key, which the caller chooses: an opaque string to this package.
//
// An OCI artifact is an image without a config, known by the digest of its manifest: its files are one layer, whose diffID is the
// SHA-512 of a list of them. It can be a volume and nothing else.
//
// # A pull
//
// The manifest and the config are fetched and checked. Then every layer that is not there yet is fetched, unpacked and
// applied at once, straight from the network, with the compressed digest and the diffID checked on the same bytes: no
// compressed blob touches the disk, but for those that need a zstd window of more than 8 MiB. They are unpacked one at a time,
// of all pulls, and lie in files without names until it is their turn. One Publish makes the layers durable, then the image's record is written, then the
// image is listed. Concurrent pulls share what they have in common; a shared step ends early only when nobody waits for it
// any more. Layers under way are shared by pulls from one registry: nobody waits for what another registry takes its time with.
// A pull that fails gives back at once what it alone had brought.
//
// # Files
//
//	ROOT/records/HEX      one file an image: a line with version and checksum, then JSON; HEX are the digits of the ID
//	ROOT                  layers that wait for their turn, in files without names
//	ROOT/quarantine/      records that could not be read, for people to look at
//	ROOT/layers, ROOT/containers and others   belong to package snapshot
//
// A record is replaced atomically and synced. The images' own bytes (config, manifest) stand in it encoded, apart from
// what berth itself has to say.
//
// # What images cannot do
//
// Everything in Image.Config is the image author's word and has a type of its own, ImageConfig: it never becomes a path,
// a key or a setting of berth's here. The limits are those of package registry and of limits.go.
//
// # Concurrency
//
// All methods of Service can be called at any time. Image, Images and Pulls answer from memory, and wait for no disk.
//
// # Errors
//
// The sentinels in errors.go. Errors name the reference, the host and the digest, and carry no secret.
package imageservice
