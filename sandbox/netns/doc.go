// Package netns pins network namespaces of pods below /run/netns, where CNI plugins and people's tools (ip netns) look for
// them.
//
// A pin is an empty file with the namespace bind-mounted on it; it keeps the namespace alive, and its name is known before it
// exists, so a record can name it first.
//
// # Files
//
//	/run/netns/berth-SANDBOX         a pin of the daemon with the default folders
//	/run/netns/berth-INST-SANDBOX    a pin of another daemon on the same host
//
// The folder is made when it is missing, with mode 0755, as iproute2 does; unlike iproute2 it is not made a shared mount, because
// the mount point a pin needs is there without. It is never removed: others use it too.
//
// # Concurrency
//
// Pins may be used from several goroutines; calls for one sandbox must not overlap.
//
// # Errors
//
// Unpin and List take what is not there for nothing: both are nil.
package netns
