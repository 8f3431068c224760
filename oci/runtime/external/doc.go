// Package external runs containers by other OCI runtimes: programs with runc's command line.
//
// # What it is
//
// A Program is such a runtime; it says which command lines create, start and delete a container and run a process in one. The pod's monitor
// executes those that make processes, since it must be their parent; this package executes only those that make none. A Bundle is the
// folder that a runtime reads a container from (runtime-spec bundle.md): the specification as config.json, and the root file system,
// which is mounted there for the container's life.
//
// # Terms
//
// A specification is what the native engine's plan is compiled from too. Config makes the runtime's of it: the namespaces that the monitor holds
// are named by path, and the cgroup's limits are left out but for the devices, because the daemon sets them.
//
// # Files
//
//	FOLDER/config.json       the specification
//	FOLDER/rootfs            the root file system's mountpoint
//	FOLDER/log               what the runtime says, as JSON
//	FOLDER/pid               written by the runtime: the first process
//	FOLDER/console           the socket for a terminal, while it is needed
//	FOLDER/exec-ID/          the same for one exec, with process.json
//	Program.Root/CONTAINER   the runtime's own state
//
// # Concurrency
//
// All functions may be called at once, but not for the same bundle.
//
// # Errors
//
// Reason reads what the runtime itself said. Removing what is not there is nil.
package external
