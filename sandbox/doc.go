// Package sandbox runs sandboxes and their containers: it owns their state machines, names, records and recovery.
//
// # Terms
//
// A sandbox is a pod's: its namespaces, which a monitor process holds, its network attachment, its /dev/shm, and the files that
// its containers share. A container is created (record and writable layer), started (cgroups, process) and exits once.
// An operation is the making of one object; callers with the same metadata and configuration share it. A handler is how the containers
// of a sandbox are made: by the native engine in the monitor, or by another OCI runtime that the monitor executes. What a handler's name meant
// when the sandbox was made is in its record.
//
// # States
//
//	sandbox    Creating -> Ready -> NotReady
//	container  Creating -> Created -> Running -> Exited
//
// A sandbox leaves Ready when it is stopped or its monitor ends. NotReady and Exited are final.
//
// # Files
//
//	ROOT/pods/...                        records, see package store
//	ROOT                                 what ExecSyncs under way print beyond 64 KiB each, in files without names
//	STATE/pods/SANDBOX/monitor.sock      the monitor's socket
//	STATE/pods/SANDBOX/shm               a tmpfs, the pod's /dev/shm
//	STATE/pods/SANDBOX/{hosts,hostname,resolv.conf}
//	STATE/pods/SANDBOX/CONTAINER         the bundle of a container that another runtime makes, see package external
//	STATE/runtimes/HANDLER/CONTAINER     what that runtime keeps about it
//	/run/netns/...                       pins, see package netns
//	the cgroup hierarchies               see package cgroup
//
// # The rule
//
// The record that names a thing is on disk before the thing exists. Undo of a creation that failed or whose caller went away, stop, and
// recovery after the daemon was killed are the same functions, and every one is idempotent. What no record names is removed at the next
// start.
//
// # Concurrency
//
// A Manager may be used from any number of goroutines. The lists and the status of objects are answered from memory: no lock is held over the
// disk, the network or a monitor. Locks are taken in this order: a sandbox's turn, a container's turn, a record's writer, a gauge's, Manager.mu, that of events.
// A sandbox's turn belongs to whoever makes, stops, removes or recovers it; a container's to whoever makes, starts or removes it. A turn is
// waited for with the caller's context.
//
// Plugins are told of what has happened once memory says so, and of what is about to be made before; what they are told of a container's start and end is in
// the order of these (containerTold, whose lock comes after a container's turn). No lock of Manager.mu's or after it is held while they are told.
//
// An event is told within the change of memory that it is about, so it comes in the order of the changes, with all of the sandbox as it was
// then. Who waits for events has a queue; nobody waits for who waits.
//
// Recovery gives each sandbox five seconds, in the background; calls that change an object wait until it is recovered, reads do not.
//
// # Errors
//
// The sentinels in errors.go, *spec.InvalidError for a value of a request, and what the host says for everything else.
package sandbox
