// Package apparmor has the AppArmor profile of containers that name none, and loads it.
//
// # Terms
//
// The default profile is Name: what every container may be forbidden without breaking programs that need no privileges.
// What a container may do to its kernel is decided by capabilities, seccomp and mounts first; the profile is what stands behind them.
//
// # Files
//
// None: the profile is handed to apparmor_parser on its standard input, and lives in the kernel until somebody unloads it.
// Daemons that share a host share it.
//
// # Concurrency
//
// Load may be called at any time; one runs at a time.
//
// # Errors
//
// ErrNoParser: Debian's package apparmor, or whatever has apparmor_parser, is not installed.
package apparmor
