package rtnl

import (
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Values of include/uapi/linux/{if_link,veth,rtnetlink}.h that x/sys/unix does not carry.
const (
	vethInfoPeer      = 1
	iflaInfoKind      = 1
	iflaInfoData      = 2
	iflaInfoSlaveKind = 4
	iflaInfoSlaveData = 5
	iflaBrportMode    = 4 // hairpin
	rtextSkipStats    = 1 << 3
	iflaInfoKindVeth  = "veth"
)

// Loopback is the index of lo in every network namespace.
const Loopback = 1

// linkHeader is struct ifinfomsg.
func linkHeader(family uint8, index int, flags, change uint32) []byte {
	b := make([]byte, 4, 256)
	b[0] = family
	b = binary.NativeEndian.AppendUint32(b, uint32(index))
	b = binary.NativeEndian.AppendUint32(b, flags)
	return binary.NativeEndian.AppendUint32(b, change)
}

// Up sets the link with that index up. It is done already: no error.
func Up(index int) Request {
	return Request{
		What: fmt.Sprintf("set link %d up", index),
		Type: unix.RTM_NEWLINK,
		Body: linkHeader(unix.AF_UNSPEC, index, unix.IFF_UP, unix.IFF_UP),
	}
}

// Veth describes a pair: the near end in the socket's namespace, the far end in another.
type Veth struct {
	Name    string // near end
	Master  int    // index of the bridge that the near end joins
	MTU     int    // of both ends; 0: the kernel's default
	Peer    string // far end
	PeerMAC net.HardwareAddr
	PeerNS  int // descriptor of the far end's network namespace
}

// AddVeth makes the pair in one step: the near end is in its bridge and up when the kernel answers, the far end is down (a
// veth cannot be set up before its peer is there). It fails with EEXIST when either name is taken, and then makes nothing.
func AddVeth(v Veth) Request {
	b := linkHeader(unix.AF_UNSPEC, 0, unix.IFF_UP, unix.IFF_UP)
	b = putString(b, unix.IFLA_IFNAME, v.Name)
	b = putUint32(b, unix.IFLA_MASTER, uint32(v.Master))
	if v.MTU > 0 {
		b = putUint32(b, unix.IFLA_MTU, uint32(v.MTU))
	}
	b = nest(b, unix.IFLA_LINKINFO, func(b []byte) []byte {
		b = put(b, iflaInfoKind, []byte(iflaInfoKindVeth))
		return nest(b, iflaInfoData, func(b []byte) []byte {
			return nest(b, vethInfoPeer, func(b []byte) []byte {
				b = append(b, linkHeader(unix.AF_UNSPEC, 0, 0, 0)...)
				b = putString(b, unix.IFLA_IFNAME, v.Peer)
				if v.MTU > 0 {
					b = putUint32(b, unix.IFLA_MTU, uint32(v.MTU))
				}
				if len(v.PeerMAC) > 0 {
					b = put(b, unix.IFLA_ADDRESS, v.PeerMAC)
				}
				return putUint32(b, unix.IFLA_NET_NS_FD, uint32(v.PeerNS))
			})
		})
	})
	return Request{
		What: fmt.Sprintf("add veth pair %s, %s", v.Name, v.Peer),
		Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: b,
	}
}

// Hairpin lets a bridge send a frame back through the port that it came from.
func Hairpin(name string) Request {
	b := putString(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_IFNAME, name)
	b = nest(b, unix.IFLA_LINKINFO, func(b []byte) []byte {
		b = put(b, iflaInfoSlaveKind, []byte("bridge"))
		return nest(b, iflaInfoSlaveData, func(b []byte) []byte { return put(b, iflaBrportMode, []byte{1}) })
	})
	return Request{What: "set hairpin mode of " + name, Type: unix.RTM_NEWLINK, Body: b}
}

// SetGroup puts a link into a device group. A link that is gone is no error.
func SetGroup(name string, group uint32) Request {
	b := putString(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_IFNAME, name)
	b = putUint32(b, unix.IFLA_GROUP, group)
	return Request{
		What: "set group of link " + name, Type: unix.RTM_SETLINK, Body: b,
		Ignore: []unix.Errno{unix.ENODEV},
	}
}

// DelGroup deletes every link of a device group in one step, which costs the kernel hardly more than deleting one. An empty
// group is no error.
func DelGroup(group uint32) Request {
	b := putUint32(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_GROUP, group)
	return Request{
		What: fmt.Sprintf("delete links of group %#x", group), Type: unix.RTM_DELLINK, Body: b,
		Ignore: []unix.Errno{unix.ENODEV},
	}
}

// Del deletes a link; its peer goes with it. A link that is gone is no error.
func Del(name string) Request {
	return Request{
		What: "delete link " + name, Type: unix.RTM_DELLINK,
		Body:   putString(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_IFNAME, name),
		Ignore: []unix.Errno{unix.ENODEV},
	}
}

// Link is what the kernel says of a link.
type Link struct {
	Index  int
	Name   string
	Kind   string // "bridge", "veth", "" for hardware
	Flags  uint32 // IFF_*
	MTU    int
	Master int // index of the bridge, 0: none
	Peer   int // index of a veth's other end, in that end's namespace
	MAC    net.HardwareAddr
}

// IsUp reports whether the link is set up.
func (l Link) IsUp() bool { return l.Flags&unix.IFF_UP != 0 }

// GetLink asks for one link by name; it fails with ENODEV when there is none.
func GetLink(name string) Request {
	b := putString(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_IFNAME, name)
	b = putUint32(b, unix.IFLA_EXT_MASK, rtextSkipStats)
	return Request{What: "look up link " + name, Type: unix.RTM_GETLINK, Body: b}
}

// Link returns the link with that name, or an error that is unix.ENODEV.
func (c *Conn) Link(name string) (Link, error) {
	bodies, err := c.Get(GetLink(name))
	if err != nil {
		return Link{}, err
	}
	if len(bodies) == 0 {
		return Link{}, fmt.Errorf("look up link %s: %w", name, errShort)
	}
	return ParseLink(bodies[0])
}

// Ports returns the links that are in the bridge with that index.
func (c *Conn) Ports(bridge int) ([]Link, error) {
	b := putUint32(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_MASTER, uint32(bridge))
	b = putUint32(b, unix.IFLA_EXT_MASK, rtextSkipStats)
	bodies, err := c.dump(Request{What: "list bridge ports", Type: unix.RTM_GETLINK, Body: b})
	if err != nil {
		return nil, err
	}
	var ports []Link
	for _, body := range bodies {
		l, err := ParseLink(body)
		if err != nil {
			return nil, err
		}
		if l.Master == bridge { // a kernel that does not filter lists all links
			ports = append(ports, l)
		}
	}
	return ports, nil
}

// LinksOfKind returns the links of one kind.
func (c *Conn) LinksOfKind(kind string) ([]Link, error) {
	b := nest(linkHeader(unix.AF_UNSPEC, 0, 0, 0), unix.IFLA_LINKINFO, func(b []byte) []byte { return putString(b, iflaInfoKind, kind) })
	b = putUint32(b, unix.IFLA_EXT_MASK, rtextSkipStats)
	bodies, err := c.dump(Request{What: "list links of kind " + kind, Type: unix.RTM_GETLINK, Body: b})
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, body := range bodies {
		l, err := ParseLink(body)
		if err != nil {
			return nil, err
		}
		if l.Kind == kind { // a kernel that knows no such kind lists all links
			links = append(links, l)
		}
	}
	return links, nil
}

// ParseLink reads the body of an RTM_NEWLINK message.
func ParseLink(body []byte) (Link, error) {
	if len(body) < unix.SizeofIfInfomsg {
		return Link{}, fmt.Errorf("read link: %w", errShort)
	}
	at := attributes(body[unix.SizeofIfInfomsg:])
	return Link{
		Index:  int(int32(binary.NativeEndian.Uint32(body[4:]))),
		Flags:  binary.NativeEndian.Uint32(body[8:]),
		Name:   string(cutZero(at[unix.IFLA_IFNAME])),
		Kind:   string(cutZero(attributes(at[unix.IFLA_LINKINFO])[iflaInfoKind])),
		MTU:    int(uint32Of(at[unix.IFLA_MTU])),
		Master: int(uint32Of(at[unix.IFLA_MASTER])),
		Peer:   int(uint32Of(at[unix.IFLA_LINK])),
		MAC:    net.HardwareAddr(at[unix.IFLA_ADDRESS]),
	}, nil
}
