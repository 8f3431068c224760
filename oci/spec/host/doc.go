// Package host reads what package spec must know of the host and of the daemon: spec.Host and the devices that a request
// names. It is apart from spec so that spec stays pure.
//
// # Files
//
// It reads /proc/self/status, /proc/self/oom_score_adj, /dev, and AppArmor's state below /sys. It writes none.
//
// # Concurrency
//
// All functions may be called at once. Read is for the start of the daemon; ReadAppArmor and Devices are for each request
// that names profiles or devices.
package host
