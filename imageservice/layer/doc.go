// Package layer unpacks one layer's tar into a folder of its own, completes it when layers are stacked, and gives the exact tar back.
//
// # Terms
//
// A folder is the root of one unpacked layer in overlayfs's form: a whiteout is a character device 0:0, an opaque
// directory carries trusted.overlay.opaque=y. The lower tree is what the layers below add up to. A directory is
// implicit when entries lie in it and none names it.
//
// A sequential unpack is the truth that a stack must equal: the layers' entries applied one after another to one tree,
// where
//   - a name is cleaned as if it were absolute, and symbolic links in its directory part are followed inside the root;
//   - a missing directory on the way is made root-owned, 0755, dated 1970; anything else on the way is replaced by one;
//   - a directory entry over a directory replaces its attributes, all of them, and leaves its content;
//   - every other entry replaces what has its name; the last entry of a name wins;
//   - a whiteout or an opaque marker takes away what lower layers put there, never what its own layer does, in either order;
//   - a hard link's own attributes are ignored, it is one inode with its target, which must exist by then;
//   - a directory's time is that of its last entry: putting something into it does not change it.
//
// Apply knows one layer only, so layers unpack in parallel. Where the outcome hangs on the lower tree it says so in
// Pending: directories without an entry, links to what the layer has not. Complete looks these up in the lower tree and
// writes a fix-up folder to be stacked directly above the layer's; if adding cannot put it right (the implicit
// directory is a symbolic link below, a link's target is below) it answers Rebase, and the caller applies the layer's
// tar again with Options.Lower set.
//
// # Files
//
// The caller names every folder; nothing is written outside them. Apply's split output is tar-split's format: a line of
// JSON a record, all bytes of the tar that are not file content, and a CRC-64 of each content.
//
// # Safety
//
// Layers are hostile. Each operation is relative to a directory descriptor that was opened below the folder's root with
// no symbolic link on the way; owner, mode, extended attributes and times are set by descriptor. Symbolic links are
// followed by this package itself, inside the root, never by the kernel. Extended attributes are kept if they are
// user.*, security.capability or a POSIX ACL; user.overlay.*, trusted.* and all others are dropped and counted.
//
// # Concurrency
//
// Functions keep no state between calls. One folder belongs to one call at a time.
//
// # Errors
//
// ErrInvalid: the layer breaks the format or a rule above. ErrLimit: a bound of Limits was passed. Others come from the
// reader or the file system (ENOSPC). After an error the folder is to be thrown away by the caller.
package layer
