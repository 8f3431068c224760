// Package reference parses the names of images: what a kubelet, a person or a registry may write down for one.
//
// # Terms
//
// A reference is HOST/PATH[:TAG][@DIGEST]. Short names are completed as Docker does: busybox is
// docker.io/library/busybox:latest. With both a tag and a digest the digest decides, and the tag names nothing.
// An image ID is the digest of the image's config: sha256: and 64 hexadecimal digits; people may leave out the
// algorithm and the last digits.
//
// Only sha256 and sha512 digests are known: a digest becomes part of paths and URLs, so anything else ends here.
//
// # Errors
//
// Every error is an *InvalidError (errors.Is ErrInvalid) and names the value and the rule that it broke. Passwords and
// queries in something that looks like a URL are left out of it.
//
// # When not to use it
//
// Nothing here asks a registry or looks at what is stored.
package reference
