package cni

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"net"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/rtnl"
)

// A link is limited where packets leave it. Those to the pod leave the host's end of its pair. Those from the pod arrive there, so
// they take a detour through an intermediate functional block, a link whose only purpose is to be left.

const (
	ifbKind       = "ifb"
	ifbSuffix     = "-e"
	shapeLatency  = 0.025 // seconds that a packet waits beyond the burst, as in CNI's bandwidth plugin
	maxBurst      = 4     // seconds at the rate; about what the kernel makes of a burst without bounds
	ethernetSize  = 18    // bytes of a header, with a VLAN tag
	bitsPerByte   = 8
	shapePriority = 1
)

// ifbName returns the name of the link that the packets of a pod are led through.
func ifbName(hostIf string) string { return hostIf + ifbSuffix }

// ifbMAC marks those links of a bridge, which are not its ports. It is nobody's address.
func ifbMAC(bridge string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("ifb " + bridge))
	return append(macPrefix[:2:2], sum[:4]...)
}

// isIfb reports whether a link is one that ifbName named for that bridge.
func isIfb(l rtnl.Link, bridge string) bool {
	return l.Kind == ifbKind && strings.HasSuffix(l.Name, ifbSuffix) && bytes.Equal(l.MAC, ifbMAC(bridge))
}

// links are the names of the host's links of an attachment.
func (a Attachment) links() []string {
	if a.Ifb == "" {
		return []string{a.HostIf}
	}
	return []string{a.HostIf, a.Ifb}
}

// checkIfb looks at the link that the pod's packets are led through, where there is one.
func (b *bridge) checkIfb(a Attachment) error {
	if a.Ifb == "" {
		return nil
	}
	var l rtnl.Link
	err := b.withConn(func(c *rtnl.Conn) (err error) {
		l, err = c.Link(a.Ifb)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAttached, err)
	}
	if !l.IsUp() || !isIfb(l, b.cfg.Name) {
		return fmt.Errorf("link %s is down or not berth's: %w", a.Ifb, ErrNotAttached)
	}
	return nil
}

// bucket is what a token bucket filter is told.
type bucket struct {
	rate  uint64 // bytes a second
	burst uint32 // bytes
	limit uint32 // bytes that wait
}

// bucketOf computes a filter for packets of links with that MTU. A burst has room for the biggest packet, else none would pass.
func bucketOf(rate, burst uint64, mtu int) bucket {
	k := bucket{rate: max(rate/bitsPerByte, 1)}
	b := min(burst/bitsPerByte, k.rate*maxBurst, math.MaxUint32/2)
	b = max(b, uint64(mtu+ethernetSize))
	k.burst = uint32(b)
	k.limit = uint32(min(float64(b)+float64(k.rate)*shapeLatency, math.MaxUint32))
	return k
}

// shape limits the bandwidth of a pod whose pair is there.
func (b *bridge) shape(limits Bandwidth, a Attachment, mtu int) error {
	if limits.EgressRate > 0 && a.Ifb == "" {
		return invalid("bandwidth", limits.EgressRate, "was not planned")
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(a.HostIf)
	if err != nil {
		return fmt.Errorf("look up link %s: %w", a.HostIf, err)
	}
	if limits.IngressRate > 0 {
		if err := addBucket(link, bucketOf(limits.IngressRate, limits.IngressBurst, mtu)); err != nil {
			return fmt.Errorf("limit bandwidth to the pod: %w", err)
		}
	}
	if limits.EgressRate > 0 {
		if err := b.detour(h, link, a.Ifb, bucketOf(limits.EgressRate, limits.EgressBurst, mtu)); err != nil {
			return fmt.Errorf("limit bandwidth from the pod: %w", err)
		}
	}
	return nil
}

// detour leads what comes from a pod through a new link with the filter.
func (b *bridge) detour(h *netlink.Handle, from netlink.Link, name string, k bucket) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = name, from.Attrs().MTU, ifbMAC(b.cfg.Name)
	ifb := &netlink.Ifb{LinkAttrs: attrs}
	err := h.LinkAdd(ifb)
	if errors.Is(err, unix.EEXIST) { // of an earlier try
		if err = h.LinkDel(ifb); err == nil {
			err = h.LinkAdd(ifb)
		}
	}
	if err != nil {
		return fmt.Errorf("add link %s: %w", name, lacking(err, "CONFIG_IFB"))
	}
	if err := writeSysctl(ipv6Sysctl(name, "disable_ipv6"), "1"); err != nil { // it says nothing itself
		return err
	}
	if err := addBucket(ifb, k); err != nil {
		return err
	}
	if err := h.LinkSetUp(ifb); err != nil {
		return fmt.Errorf("set up link %s: %w", name, err)
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	err = h.QdiscAdd(ingress)
	if errors.Is(err, unix.EEXIST) {
		if err = h.QdiscDel(ingress); err == nil {
			err = h.QdiscAdd(ingress)
		}
	}
	if err != nil {
		return fmt.Errorf("add ingress queue of %s: %w", from.Attrs().Name, lacking(err, "CONFIG_NET_SCH_INGRESS"))
	}
	all := &netlink.U32{ // without a selector it matches all packets
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from.Attrs().Index, Parent: ingress.Handle, Priority: shapePriority, Protocol: unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{netlink.NewMirredAction(ifb.Index)},
	}
	if err := h.FilterAdd(all); err != nil {
		return fmt.Errorf("lead packets of %s to %s: %w", from.Attrs().Name, name, lacking(err, "CONFIG_NET_CLS_U32 or CONFIG_NET_ACT_MIRRED"))
	}
	return nil
}

// addBucket makes a token bucket filter the queue of a link. Handle.QdiscReplace cannot say the burst in bytes, and so no more than the
// four seconds that fit into the other form, which is less than a packet at low rates.
func addBucket(link netlink.Link, k bucket) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	req.AddData(&nl.TcMsg{
		Family: nl.FAMILY_ALL, Ifindex: int32(link.Attrs().Index), Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	})
	req.AddData(nl.NewRtAttr(nl.TCA_KIND, nl.ZeroTerminated("tbf")))
	parms := nl.TcTbfQopt{Rate: nl.TcRateSpec{Rate: uint32(min(k.rate, math.MaxUint32))}, Limit: k.limit}
	options := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	options.AddRtAttr(nl.TCA_TBF_PARMS, parms.Serialize())
	if k.rate > math.MaxUint32 {
		options.AddRtAttr(nl.TCA_TBF_RATE64, nl.Uint64Attr(k.rate))
	}
	options.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(k.burst))
	req.AddData(options)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("add token bucket filter to %s: %w", link.Attrs().Name, lacking(err, "CONFIG_NET_SCH_TBF"))
	}
	return nil
}

// lacking names what a kernel does not have that answers like this.
func lacking(err error, feature string) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("%w: the kernel lacks %s: %w", ErrNotSupported, feature, err)
	}
	return err
}
