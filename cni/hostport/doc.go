// Package hostport keeps the nftables table of one bridge: the masquerade of its subnets, and the ports of the host that lead to
// its pods.
//
// # The table
//
// It is written whole, in one transaction, when it is not there, and after that only its maps change: a pod without host ports
// costs no nftables work at all, and a port is found by one hash look-up, however many there are.
//
//	table inet TABLE {
//		map any4       { type inet_proto . inet_service : ipv4_addr . inet_service }
//		map host4      { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//		set published4 { type inet_proto . inet_service . ipv4_addr . inet_service }
//		... any6, host6, published6
//		chain prerouting  { type nat hook prerouting priority dstnat; fib daddr type local jump hostports }
//		chain output      { type nat hook output priority dstnat; fib daddr type local jump hostports }
//		chain hostports   { ip6 daddr ::1 return
//		                    dnat ip to ip daddr . meta l4proto . th dport map @host4
//		                    dnat ip to meta l4proto . th dport map @any4 ... }
//		chain postrouting { type nat hook postrouting priority srcnat
//		                    oifname BRIDGE ip saddr 127.0.0.0/8 masquerade
//		                    oifname BRIDGE ip saddr SUBNET
//		                      meta l4proto . ct original proto-dst . ip daddr . th dport @published4 masquerade
//		                    ip saddr SUBNET ip daddr != SUBNET ip daddr != 224.0.0.0/4 masquerade ... }
//		chain guard       { type filter hook prerouting priority raw
//		                    iifname BRIDGE ip daddr 127.0.0.0/8 drop
//		                    iifname BRIDGE ip saddr 127.0.0.0/8 drop }
//	}
//
// "fib daddr type local" keeps forwarded traffic out (CVE-2025-67499). The guard closes the hole that route_localnet on the
// bridge, without which 127.0.0.1:PORT cannot be answered, would open to the host's loopback services (CVE-2020-8558). The set
// published makes the pods of the subnet reach each other's and their own host ports with an answer that comes back the same way,
// and leaves a service proxy's translations alone, so that pods see each other's addresses there.
//
// [::1]:PORT does not lead to a pod: IPv6 has no route_localnet.
//
// # State
//
// A Table remembers the mappings of every owner; the kernel's table is a copy, written again when somebody has removed it. After a
// restart of the process the owner of the Table gives it what is valid with Keep.
//
// UDP has no end of connection: conntrack entries that a mapping makes wrong are removed with the change.
//
// # Concurrency and errors
//
// A Table may be used from several goroutines. ErrNotSupported: the kernel has no nftables NAT. ErrInUse: somebody else has the
// host port.
package hostport
