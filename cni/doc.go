// Package cni connects pods to networks: through the CNI configuration of the host where there is one, through a bridge of its own
// where there is none.
//
// # Terms
//
// An attachment is one interface of one pod on one network. An engine makes attachments and takes them away: "bridge" is built in
// (netlink and nftables, no plugins, no iptables, nothing executed), "cni" runs the plugins of a configuration list through libcni.
// Which engine made an attachment is written in it, and the same one takes it away, whatever the configuration says by then.
//
// # Life of an attachment
//
// Plan decides everything that a later Del needs and makes nothing; the caller records its result. Add makes the interface and
// fills the attachment in. Del takes it away, also when Add was interrupted anywhere, when the network namespace is gone, and when
// it has done so before. GC frees what no recorded attachment names.
//
// Del of the bridge's attachments does not wait for the kernel to end the veth pair, which takes about 20 ms of grace periods: a
// goroutine of the Dispatcher does that, many pairs at once, and the addresses are reserved until the links are gone. Idle waits for
// it. What a crash leaves is found by GC, because the reservation outlives the link.
//
// # Configuration
//
// The first file of the configuration folder by name that ends in .conflist, .conf or .json counts. It is looked at when it is
// needed, so a change is seen by the next call, and the folder may come and go. A file that cannot be used is an error that names
// it; while a file that was good is rewritten, the last good contents serve for a few seconds.
//
// SetPodRanges makes a configuration of a template,
// when there is no other; what it has written it knows by its digest, so it never replaces what is somebody else's.
//
// Host ports of the engine "cni" are its plugins' business: they are passed to those with the capability portMappings, and to nobody
// when there is none (some networks map them by other means).
//
// # Files
//
//	CACHE/NETWORK/     address reservations of the built-in bridge, see package ipam
//	CACHE/results/     libcni's cache of results
//	CACHE/rendered     digests of what was made of a template
//	CONF/10-berth.conflist  what was made of it
//
// On the host: the bridge, one veth pair a pod (named "vb" and ten hexadecimal digits), for a pod that may send only so much an ifb
// (that name and "-e", with a hardware address by which GC knows whose bridge it is of), the nftables table "berth-BRIDGE", the
// sysctls ip_forward and forwarding, and accept_ra and route_localnet of its own links.
//
// # Concurrency
//
// All methods may be called from several goroutines; calls for the same pod wait for each other. Add and Del never leave a thread in
// a foreign network namespace.
//
// # Errors
//
// ErrInvalid for a request that breaks a rule, ErrNotReady when the configuration cannot be used, ErrExhausted, ErrPortInUse and
// ErrNotSupported from the bridge. The text names file, plugin, address or port.
package cni
