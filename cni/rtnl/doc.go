// Package rtnl speaks rtnetlink in batches: several requests leave in one datagram, and the kernel has done them all when the
// call returns. A long list of requests takes several datagrams, because the answers to each must fit into the socket's buffer.
//
// A Conn is one netlink socket. It belongs to the network namespace in which it was opened for as long as it lives, whichever
// thread uses it, so that no thread has to stay in a foreign namespace: DialIn visits the namespace just long enough to open the
// socket.
//
// The package builds only the messages that berth's bridge sends for every pod; what is done once a daemon (routes, bridge
// options) goes through github.com/vishvananda/netlink.
//
// A Conn may be used from several goroutines; each call holds it alone. The kernel goes on with the requests of a batch after
// one of them has failed, so a caller that gets an error undoes the whole batch. An exchange that is cut off closes its Conn.
//
// Errors name the request that failed and carry the unix.Errno, to be found with errors.Is.
package rtnl
