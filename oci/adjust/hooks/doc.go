// Package hooks gives containers the OCI hooks that an operator configures for the node.
//
// # What it is
//
// A hook is a program that is executed at a point of a container's life (runtime-spec config.md#posix-platform-hooks). Here it is described by a
// file in the format of oci-hooks(5), version 1.0.0, which says for which containers and at which stages. Those that fit become hooks
// of the container's specification. Executing them is not this package's business.
//
// # Files
//
// *.json in the configured folders, in the order of their names. A file in a later folder takes the place of one of the same name in an earlier
// one. They are read anew for each container; a folder that is missing is empty.
//
// # Concurrency
//
// Adjust may be called at any time.
//
// # Errors
//
// A file that cannot be read or breaks the format refuses every container, and the error names it: a hook that is left out may be one that
// protects the node.
package hooks
