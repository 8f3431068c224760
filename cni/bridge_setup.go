package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/ipam"
)

const (
	bridgeKind  = "bridge"
	fallbackMTU = 1500
)

// setUp makes the bridge, its addresses, the sysctls and the nftables table, once, and returns what it found out. It takes over a
// bridge that is there.
func (b *bridge) setUp() (*bridgeFacts, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.facts != nil {
		return b.facts, nil
	}
	facts, err := b.build()
	if err != nil {
		return nil, fmt.Errorf("set up bridge %s: %w", b.cfg.Name, err)
	}
	b.facts = facts
	return facts, nil
}

// forget makes the next setUp look again, if nobody else has done so already.
func (b *bridge) forget(facts *bridgeFacts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.facts == facts {
		b.facts = nil
	}
}

// build is setUp's work. Preconditions: b.mu held.
func (b *bridge) build() (*bridgeFacts, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	facts := &bridgeFacts{mtu: b.cfg.MTU}
	for _, subnet := range b.cfg.Subnets {
		if subnet.Addr().Is6() && !hasIPv6() {
			continue // Conditions says so
		}
		facts.ranges = append(facts.ranges, ipam.Range{Subnet: subnet.Masked(), Gateway: gatewayOf(subnet)})
	}
	if len(facts.ranges) == 0 {
		return nil, errors.New("no subnet that this kernel can serve")
	}
	if facts.mtu == 0 {
		facts.mtu = uplinkMTU(h)
	}
	link, err := b.ensureLink(h, facts)
	if err != nil {
		return nil, err
	}
	facts.index = link.Attrs().Index
	for _, r := range facts.ranges {
		address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(r.Gateway, r.Subnet.Bits()))}
		if r.Subnet.Addr().Is6() {
			address.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(link, address); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("add address %s: %w", r.Gateway, err)
		}
	}
	if err := enableForwarding(h); err != nil {
		return nil, err
	}
	// route_localnet comes after the table, which guards it.
	if facts.nat = b.ports.Ensure(); facts.nat == nil {
		if err := writeSysctl(ipv4Sysctl(b.cfg.Name, "route_localnet"), "1"); err != nil {
			return nil, err
		}
	} else if !errors.Is(facts.nat, ErrNotSupported) {
		return nil, facts.nat
	}
	return facts, nil
}

// ensureLink makes the bridge, or takes it over. Its hardware address is fixed: otherwise the kernel changes it with the ports, and
// pods lose their gateway for a while.
func (b *bridge) ensureLink(h *netlink.Handle, facts *bridgeFacts) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = b.cfg.Name, facts.mtu
	attrs.HardwareAddr = b.mac()
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("add link: %w", err)
	}
	link, err := h.LinkByName(b.cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("look up link: %w", err)
	}
	if link.Type() != bridgeKind {
		return nil, fmt.Errorf("link %s is a %s, not a bridge", b.cfg.Name, link.Type())
	}
	if b.cfg.MTU == 0 {
		facts.mtu = link.Attrs().MTU // as it was made first
	} else if link.Attrs().MTU != facts.mtu {
		if err := h.LinkSetMTU(link, facts.mtu); err != nil {
			return nil, fmt.Errorf("set MTU %d: %w", facts.mtu, err)
		}
	}
	for _, key := range []string{"accept_ra", "accept_dad"} {
		if err := writeSysctl(ipv6Sysctl(b.cfg.Name, key), "0"); err != nil {
			return nil, err
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("set link up: %w", err)
	}
	return link, nil
}

// mac is the bridge's hardware address.
func (b *bridge) mac() net.HardwareAddr {
	subnet := b.cfg.Subnets[0]
	return podMAC([]netip.Prefix{netip.PrefixFrom(gatewayOf(subnet), subnet.Bits())})
}

// gatewayOf returns the first address of a subnet behind the network's own.
func gatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hasIPv6 reports whether new links of this host get IPv6.
func hasIPv6() bool {
	for _, name := range []string{"all", "default"} {
		if v, ok := readSysctl(ipv6Sysctl(name, "disable_ipv6")); !ok || v == "1" {
			return false
		}
	}
	return true
}

// uplinkMTU returns the MTU of the link of the default route, so that pods need no path MTU discovery to get out.
func uplinkMTU(h *netlink.Handle) int {
	routes, err := h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fallbackMTU
	}
	for _, r := range routes {
		if r.LinkIndex == 0 || r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := h.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU >= 1280 && link.Attrs().Flags&net.FlagLoopback == 0 {
			return min(link.Attrs().MTU, 65535)
		}
	}
	return fallbackMTU
}

// enableForwarding makes the host a router. A host that has its own IPv6 default route from announcements would lose it, unless
// accept_ra is 2 on that link, Documentation/networking/ip-sysctl.rst.
func enableForwarding(h *netlink.Handle) error {
	if err := raiseSysctl(sysctlRoot+"ipv4/ip_forward", "1"); err != nil {
		return err
	}
	forwarding := ipv6Sysctl("all", "forwarding")
	if v, ok := readSysctl(forwarding); !ok || v != "0" {
		return nil
	}
	routes, err := h.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		link, err := h.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue
		}
		path := ipv6Sysctl(link.Attrs().Name, "accept_ra")
		if v, _ := readSysctl(path); v != "1" {
			continue
		}
		if err := writeSysctl(path, "2"); err != nil {
			return err
		}
	}
	return writeSysctl(forwarding, "1")
}
