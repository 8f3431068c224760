// Package invariants holds the host against what berth says about it.
//
// # Terms
//
// An Item is one thing on the host that a berthd may have made: a process, a mount, a cgroup folder, a pinned namespace, a
// link, an address reservation, an nftables chain, a record, a writable layer, a kind of descriptor. Take collects the
// items of one daemon; Diff compares two collections. Standing items (the bridge, its nftables table, the root of the
// cgroup tree) are made with the first pod and stay.
//
// # Invariants
//
// I1: CRI lists, records and host agree. Every listed object has its things, every thing belongs to a listed object.
// I2: after the last removal everything is as it was before.
// I7: every record can be read.
//
// All of them are given the time of Grace, since pods end and links go behind the calls: Check and AsBefore poll.
//
// # Concurrency
//
// Functions may be called at any time. Only one daemon's things are looked at, so several test processes and daemons can
// run side by side.
package invariants
