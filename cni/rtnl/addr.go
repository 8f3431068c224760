package rtnl

import (
	"fmt"
	"net/netip"

	"encoding/binary"

	"golang.org/x/sys/unix"
)

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// addrHeader is struct ifaddrmsg.
func addrHeader(family, bits, flags uint8, index int) []byte {
	b := append(make([]byte, 0, 64), family, bits, flags, unix.RT_SCOPE_UNIVERSE)
	return binary.NativeEndian.AppendUint32(b, uint32(index))
}

// AddAddress gives an address to a link. IPv6 addresses are usable at once: no duplicate address detection, because the
// reservation on disk has made sure already that nobody else has it. It fails with EEXIST when the link has the address.
func AddAddress(index int, p netip.Prefix) Request {
	var flags uint8
	if p.Addr().Is6() {
		flags = unix.IFA_F_NODAD
	}
	b := addrHeader(family(p.Addr()), uint8(p.Bits()), flags, index)
	b = put(b, unix.IFA_LOCAL, p.Addr().AsSlice())
	b = put(b, unix.IFA_ADDRESS, p.Addr().AsSlice())
	if p.Addr().Is4() && p.Bits() < 31 {
		b = put(b, unix.IFA_BROADCAST, broadcast(p))
	}
	return Request{
		What: fmt.Sprintf("add address %s", p), Type: unix.RTM_NEWADDR,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: b,
	}
}

func broadcast(p netip.Prefix) []byte {
	b := p.Addr().As4()
	host := ^uint32(0) >> p.Bits()
	return binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(b[:])|host)
}

// AddDefaultRoute sends everything through gateway, which must be on the link. It fails with EEXIST when there is such a route.
func AddDefaultRoute(index int, gateway netip.Addr) Request {
	b := append(make([]byte, 0, 64), // struct rtmsg
		family(gateway), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST, 0, 0, 0, 0)
	b = put(b, unix.RTA_GATEWAY, gateway.AsSlice())
	b = putUint32(b, unix.RTA_OIF, uint32(index))
	return Request{
		What: fmt.Sprintf("add default route via %s", gateway), Type: unix.RTM_NEWROUTE,
		Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: b,
	}
}

// Addresses returns the addresses of a link, link-local ones too.
func (c *Conn) Addresses(index int) ([]netip.Prefix, error) {
	bodies, err := c.dump(Request{What: "list addresses", Type: unix.RTM_GETADDR, Body: addrHeader(unix.AF_UNSPEC, 0, 0, 0)})
	if err != nil {
		return nil, err
	}
	var list []netip.Prefix
	for _, body := range bodies {
		if len(body) < unix.SizeofIfAddrmsg {
			return nil, fmt.Errorf("list addresses: %w", errShort)
		}
		if int(binary.NativeEndian.Uint32(body[4:])) != index {
			continue
		}
		at := attributes(body[unix.SizeofIfAddrmsg:])
		value := at[unix.IFA_LOCAL]
		if value == nil {
			value = at[unix.IFA_ADDRESS]
		}
		if a, ok := netip.AddrFromSlice(value); ok {
			list = append(list, netip.PrefixFrom(a, int(body[1])))
		}
	}
	return list, nil
}
