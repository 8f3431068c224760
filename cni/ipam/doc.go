// Package ipam reserves addresses on disk, in the format of the CNI plugin host-local, so that either can go on where the other
// has stopped.
//
// # Terms
//
// A range is a subnet of which addresses are handed out; a network has one range for each address family. An owner is a
// container ID and an interface name.
//
// # Files
//
// A Store owns one directory, the network's:
//
//	ADDRESS             a reservation: "CONTAINERID\r\nIFNAME", made with O_EXCL
//	last_reserved_ip.N  the address that was handed out last from range N; the search starts behind it
//	lock                held with flock during every change
//	free.N              a released reservation's file, kept to be used again; host-local does not look at it
//
// Nothing is synced: after a power cut a reservation without an owner may be left, which Sweep frees.
//
// # Concurrency
//
// A Store may be used from several goroutines, and the directory by several processes. The lock is waited for until the context
// ends.
//
// # Errors
//
// ErrExhausted when a range has no free address, ErrTaken when an address that was asked for by name is somebody else's.
// Releasing what is not reserved is no error.
package ipam
