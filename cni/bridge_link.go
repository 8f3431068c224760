package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/rtnl"
)

// connect makes the pair and sets the pod's end up. An interface of the pod that is there already is taken over if it is as planned,
// and made again if it is the end of an earlier try.
func (b *bridge) connect(ns int, facts *bridgeFacts, a *Attachment) error {
	pair := rtnl.Veth{
		Name: a.HostIf, Master: facts.index, MTU: facts.mtu, Peer: a.IfName, PeerMAC: podMAC(a.IPs), PeerNS: ns,
	}
	err := b.withConn(func(c *rtnl.Conn) error {
		err := c.Do(rtnl.AddVeth(pair))
		if errors.Is(err, unix.EEXIST) {
			if b.checkLinks(*a) == nil {
				return nil
			}
			if err = c.Do(rtnl.Del(a.HostIf)); err == nil {
				err = c.Do(rtnl.AddVeth(pair))
			}
		} else if err != nil {
			if fresh, lost := b.lost(c, facts); lost == nil && fresh.index != pair.Master {
				pair.Master = fresh.index
				err = c.Do(rtnl.AddVeth(pair))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	// Neither the host nor the pod takes routes and addresses from what other pods announce (CVE-2020-10749).
	if err := writeSysctl(ipv6Sysctl(a.HostIf, "accept_ra"), "0"); err != nil {
		return err
	}
	return b.configure(ns, a)
}

// lost sets the bridge up again when it has gone, and returns what there is now.
func (b *bridge) lost(c *rtnl.Conn, facts *bridgeFacts) (*bridgeFacts, error) {
	if l, err := c.Link(b.cfg.Name); err == nil && l.Index == facts.index {
		return facts, nil
	}
	b.forget(facts)
	return b.setUp()
}

// configure gives the pod's end its addresses and routes. A pod that has IPv6 switched off gets no IPv6 address.
func (b *bridge) configure(ns int, a *Attachment) error {
	c, err := rtnl.DialIn(ns, int(b.home.Fd()), func() error {
		if v, ok := readSysctl(ipv6Sysctl(a.IfName, "disable_ipv6")); !ok || v == "1" {
			a.dropIPv6()
			return nil
		}
		// The link-local address is usable at once: its hardware address is berth's own.
		return errors.Join(writeSysctl(ipv6Sysctl(a.IfName, "accept_ra"), "0"), writeSysctl(ipv6Sysctl(a.IfName, "accept_dad"), "0"))
	})
	if err != nil {
		return fmt.Errorf("configure %s: %w", a.IfName, err)
	}
	defer c.Close()
	bodies, err := c.Get(rtnl.Up(rtnl.Loopback), rtnl.GetLink(a.IfName))
	if err != nil {
		return err
	}
	if len(bodies) == 0 {
		return fmt.Errorf("configure %s: no such interface", a.IfName)
	}
	if len(a.IPs) == 0 {
		return fmt.Errorf("configure %s: the pod has IPv6 switched off, and the bridge has nothing else", a.IfName)
	}
	link, err := rtnl.ParseLink(bodies[len(bodies)-1])
	if err != nil {
		return err
	}
	requests := []rtnl.Request{rtnl.Up(link.Index)}
	for i, p := range a.IPs {
		address, route := rtnl.AddAddress(link.Index, p), rtnl.AddDefaultRoute(link.Index, a.Gateways[i])
		// EEXIST: an interface that was taken over.
		address.Ignore = []unix.Errno{unix.EEXIST}
		route.Ignore = []unix.Errno{unix.EEXIST}
		requests = append(requests, address, route)
	}
	return c.Do(requests...)
}

// dropIPv6 leaves the IPv4 addresses; what was reserved besides is freed with them.
func (a *Attachment) dropIPv6() {
	var left Attachment
	for i, p := range a.IPs {
		if p.Addr().Is4() {
			left.IPs, left.Gateways = append(left.IPs, p), append(left.Gateways, a.Gateways[i])
		}
	}
	a.IPs, a.Gateways = left.IPs, left.Gateways
}

// deleteLinks ends veth pairs together. It is the reaper's.
func (b *bridge) deleteLinks(names []string) error {
	return b.withConn(func(c *rtnl.Conn) error {
		if len(names) == 1 {
			return c.Do(rtnl.Del(names[0]))
		}
		requests := make([]rtnl.Request, 0, len(names))
		for _, name := range names {
			requests = append(requests, rtnl.SetGroup(name, doomedGroup))
		}
		if err := c.Do(requests...); err != nil {
			return err
		}
		return c.Do(rtnl.DelGroup(doomedGroup))
	})
}

// doomedGroup is the device group of links that are about to be deleted; whoever deletes it deletes nothing that was to live.
const doomedGroup = 0xbe747ed0

// openNetNS opens a pinned network namespace.
func openNetNS(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open network namespace: %w", &os.PathError{Op: "open", Path: path, Err: err})
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("open network namespace %s: %w", path, errors.Join(err, errNotNetNS))
	}
	return fd, nil
}

var errNotNetNS = errors.New("not a namespace")

// podMAC derives the pod's hardware address from its first IPv4 address, or from the end of an IPv6 one, so that a neighbour which
// remembers an address finds it right when another pod has it.
func podMAC(ips []netip.Prefix) net.HardwareAddr {
	for _, p := range ips {
		if p.Addr().Is4() {
			return append(macPrefix[:2:2], p.Addr().AsSlice()...)
		}
	}
	if len(ips) == 0 {
		return nil
	}
	return append(macPrefix[:2:2], ips[0].Addr().AsSlice()[12:]...)
}

// macPrefix begins all hardware addresses that berth gives: locally administered, unicast.
var macPrefix = net.HardwareAddr{0x0a, 0x58}
