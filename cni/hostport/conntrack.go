package hostport

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flows selects conntrack entries.
type flows func(*netlink.ConntrackFlow) bool

// MatchConntrackFlow is netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool { return f(flow) }

// forgetFlowsToHost removes the entries of datagrams that the host itself has got at a port which is now a pod's: conntrack
// would go on giving it what the same client sends.
func forgetFlowsToHost(mappings []Mapping) error {
	local := make(map[netip.Addr]bool)
	return forget(mappings, func(m Mapping, flow *netlink.ConntrackFlow) bool {
		if len(local) == 0 {
			addrs, _ := net.InterfaceAddrs()
			for _, a := range addrs {
				if p, err := netip.ParsePrefix(a.String()); err == nil {
					local[p.Addr()] = true
				}
			}
		}
		dst, _ := netip.AddrFromSlice(flow.Forward.DstIP)
		dst = dst.Unmap()
		return flow.Forward.DstPort == m.HostPort && local[dst] && (!m.HostIP.IsValid() || m.HostIP == dst)
	})
}

// forgetFlowsToPod removes the entries of datagrams that went to a pod which no longer has the port.
func forgetFlowsToPod(mappings []Mapping) error {
	return forget(mappings, func(m Mapping, flow *netlink.ConntrackFlow) bool {
		src, _ := netip.AddrFromSlice(flow.Reverse.SrcIP)
		return flow.Forward.DstPort == m.HostPort && src.Unmap() == m.Pod.Addr()
	})
}

// forget removes the entries that match one of the UDP mappings.
func forget(mappings []Mapping, match func(Mapping, *netlink.ConntrackFlow) bool) error {
	byFamily := make(map[netlink.InetFamily][]Mapping)
	for _, m := range mappings {
		if m.Protocol != unix.IPPROTO_UDP {
			continue
		}
		if m.Pod.Addr().Is4() {
			byFamily[unix.AF_INET] = append(byFamily[unix.AF_INET], m)
		} else {
			byFamily[unix.AF_INET6] = append(byFamily[unix.AF_INET6], m)
		}
	}
	for family, list := range byFamily {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, flows(func(flow *netlink.ConntrackFlow) bool {
			if flow.Forward.Protocol != unix.IPPROTO_UDP {
				return false
			}
			for _, m := range list {
				if match(m, flow) {
					return true
				}
			}
			return false
		}))
		// An entry that ended meanwhile is no error, nor is a kernel that cannot list its entries.
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) &&
			!errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("remove conntrack entries of host ports %v: %w", list, err)
		}
	}
	return nil
}
