// Package store keeps what berth must know about its sandboxes and containers after it was killed: one folder a pod, one small file a
// record.
//
// # Files
//
//	ROOT/pods/SANDBOX/pod                               the sandbox
//	ROOT/pods/SANDBOX/containers/CONTAINER/container    the container
//	ROOT/pods/SANDBOX/containers/CONTAINER/spec         its OCI runtime spec, written once
//	ROOT/pods/SANDBOX/containers/CONTAINER/exit         how it ended, written by the pod's monitor, which owns its format
//
// Folders have mode 0700, files 0600. A record is one line, "berth VERSION KIND SHA256 LENGTH", and LENGTH bytes of JSON whose SHA-256 is in the
// line. A record is written to NAME.tmp and renamed, so a reader sees the old or the new one, and the death of the daemon between
// two system calls loses nothing that was written before. Nothing is synced to disk: a power cut can lose what the file system had not written
// by itself, and the checksum tells.
//
// # Concurrency
//
// Each record has one writer at a time: callers hold the object's lock. Different records are independent.
//
// # Errors
//
// Shortage: the record was not looked at, for want of descriptors or memory; Load tries again for 5 s, and then fails as a whole.
// ErrDamaged: the bytes are not a record as it was written. ErrVersion: a newer berth wrote it. Load reports both beside the object, and goes on
// with the others. Removing what is not there is nil.
//
// It is not a database: there are no queries and no transactions over two records.
package store
