package cni_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

const patience = 20 * time.Second

// place is somewhere that packets come from or go to: a namespace, or the host when ns is nil.
type place struct {
	name string
	ns   *cnitest.NetNS
	a    cni.Attachment // of a pod
}

func (p place) do(t *testing.T, f func() error) {
	t.Helper()
	if p.ns != nil {
		p.ns.Do(t, f)
	} else if err := f(); err != nil {
		t.Fatal(err)
	}
}

// ip is the pod's IPv4 address for 0, its IPv6 address for 1.
func (p place) ip(i int) netip.Addr { return p.a.IPs[i].Addr() }

// serve answers every connection and datagram to port with the place's name and the client's address.
func (p place) serve(t *testing.T, port uint16) {
	t.Helper()
	p.serveAt(t, fmt.Sprintf(":%d", port))
}

func (p place) serveAt(t *testing.T, address string) {
	t.Helper()
	p.do(t, func() error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintf(c, "%s saw %s", p.name, c.RemoteAddr())
				c.Close()
			}
		}()
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo(fmt.Appendf(nil, "%s saw %s", p.name, from), from)
			}
		}()
		return nil
	})
}

// ask connects from p and returns the server's name and the client address that it saw.
func (p place) ask(t *testing.T, network, address string) (server, client string, err error) {
	t.Helper()
	p.do(t, func() error {
		var c net.Conn
		if c, err = net.DialTimeout(network, address, patience); err != nil {
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err = c.Write([]byte("hello")); err != nil {
			return nil
		}
		buf := make([]byte, 200)
		n, readErr := c.Read(buf)
		if n == 0 {
			err = readErr
			return nil
		}
		server, client, _ = strings.Cut(string(buf[:n]), " saw ")
		client, _, _ = net.SplitHostPort(client)
		return nil
	})
	return server, client, err
}

// world is a host with a bridge, two pods, and a machine outside.
type world struct {
	d                 *cni.Dispatcher
	cfg               cni.Config
	host, outside     place
	web, other        place
	hostIPs, outerIPs [2]netip.Addr // IPv4, IPv6
}

var outerNumber int

// newWorld makes a world in which web has the host ports.
func newWorld(t *testing.T, ports ...cni.PortMapping) *world {
	t.Helper()
	cnitest.NeedRoot(t)
	up(t, "lo")
	w := &world{cfg: bridgeConfig(t), host: place{name: "host"}}
	w.d = open(t, w.cfg)
	t.Cleanup(func() {
		if left := leftovers(t, w.cfg, []*cni.Dispatcher{w.d}); len(left) > 0 {
			t.Errorf("left on the host: %q", left)
		}
	})
	outerNumber++
	ns := cnitest.NewNetNS(t)
	w.outside = place{name: "outside", ns: &ns}
	near, far := fmt.Sprintf("up%d", outerNumber), "eth0"
	fd, err := os.Open(ns.Path)
	must(t, err)
	defer fd.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = near
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: far, PeerNamespace: netlink.NsFd(fd.Fd())}))
	t.Cleanup(func() {
		if l, err := netlink.LinkByName(near); err == nil {
			must(t, netlink.LinkDel(l))
		}
	})
	prefixes := func(last int) (list [2]netip.Prefix) {
		list[0] = netip.MustParsePrefix(fmt.Sprintf("192.0.%d.%d/24", outerNumber, last))
		list[1] = netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::%d/64", outerNumber, last))
		return list
	}
	addresses(t, near, prefixes(1))
	ns.Do(t, func() error { addresses(t, far, prefixes(2)); up(t, "lo"); return nil })
	for i := range 2 {
		w.hostIPs[i], w.outerIPs[i] = prefixes(1)[i].Addr(), prefixes(2)[i].Addr()
	}
	w.other = w.pod(t, "other")
	w.web = w.pod(t, "web", ports...)
	return w
}

func up(t *testing.T, name string) netlink.Link {
	l, err := netlink.LinkByName(name)
	must(t, err)
	must(t, netlink.LinkSetUp(l))
	return l
}

func addresses(t *testing.T, name string, list [2]netip.Prefix) {
	l := up(t, name)
	for _, p := range list {
		must(t, netlink.AddrAdd(l, &netlink.Addr{
			IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}, Flags: unix.IFA_F_NODAD,
		}))
	}
}

func (w *world) pod(t *testing.T, name string, ports ...cni.PortMapping) place {
	t.Helper()
	ns := cnitest.NewNetNS(t)
	req := cni.Request{SandboxID: cnitest.SandboxID(), Namespace: "default", Name: name, NetNS: ns.Path, PortMappings: ports}
	a, err := w.d.Plan(t.Context(), req)
	must(t, err)
	must(t, w.d.Add(t.Context(), req, &a))
	t.Cleanup(func() { must(t, w.d.Del(context.Background(), a)) })
	return place{name, &ns, a}
}

func at(ip netip.Addr, port uint16) string { return netip.AddrPortFrom(ip, port).String() }

func TestPodsAndHostReachEachOtherAtOnce(t *testing.T) {
	w := newWorld(t)
	w.other.serve(t, 80)
	w.outside.serve(t, 82)
	for i := range w.hostIPs { // each on its own: a wildcard socket for datagrams answers from another address
		w.host.serveAt(t, at(w.hostIPs[i], 81))
		w.host.serveAt(t, at(w.other.a.Gateways[i], 81))
	}
	for i, v6 := range []bool{false, true} {
		fresh := w.pod(t, fmt.Sprint("fresh", v6)) // asks in its first millisecond: no duplicate address detection
		fresh.serve(t, 83)
		gateway := fresh.a.Gateways[i]
		for _, tc := range []struct {
			name           string
			from           place
			to             string
			server, client string
		}{
			{"pod to pod", fresh, at(w.other.ip(i), 80), "other", fresh.ip(i).String()},
			{"pod to gateway", fresh, at(gateway, 81), "host", fresh.ip(i).String()},
			{"pod to host's address", fresh, at(w.hostIPs[i], 81), "host", fresh.ip(i).String()},
			{"host to pod", w.host, at(fresh.ip(i), 83), fresh.name, gateway.String()},
			{"pod to outside", fresh, at(w.outerIPs[i], 82), "outside", w.hostIPs[i].String()},
			{"pod to itself", fresh, at(fresh.ip(i), 83), fresh.name, fresh.ip(i).String()},
			{"pod to its own loopback", fresh, map[bool]string{false: "127.0.0.1:83", true: "[::1]:83"}[v6], fresh.name, map[bool]string{false: "127.0.0.1", true: "::1"}[v6]},
		} {
			for _, network := range []string{"tcp", "udp"} {
				server, client, err := tc.from.ask(t, network, tc.to)
				if err != nil || server != tc.server || client != tc.client {
					t.Errorf("%s by %s to %s: server %q saw %q, %v; want %q, %q", tc.name, network, tc.to, server, client, err, tc.server, tc.client)
				}
			}
		}
	}
}

func TestHostPorts(t *testing.T) {
	cnitest.NeedRoot(t)
	const filter, filter6, reverse = "net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/ipv4/conf/all/rp_filter"
	for name, sysctls := range map[string]map[string]string{
		"bridged packets unfiltered": {filter: "0", filter6: "0"},
		"bridged packets filtered":   {filter: "1", filter6: "1"},
		"strict reverse path":        {filter: "0", filter6: "0", reverse: "1"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			for key, value := range sysctls {
				path := "/proc/sys/" + key
				old, err := os.ReadFile(path)
				if errors.Is(err, os.ErrNotExist) && value == "0" {
					continue // no br_netfilter: not filtered
				}
				if err != nil {
					t.Skipf("kernel has no br_netfilter: %v", err)
				}
				must(t, os.WriteFile(path, []byte(value), 0))
				t.Cleanup(func() { must(t, os.WriteFile(path, old, 0)) })
			}
			testHostPorts(t)
		})
	}
}

func testHostPorts(t *testing.T) {
	var ports []cni.PortMapping
	for _, protocol := range []string{"TCP", "udp"} {
		ports = append(ports, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: protocol})
	}
	w := newWorld(t, ports...)
	w.web.serve(t, 80)
	w.host.serve(t, 80)      // the host has a server on the container's port,
	w.outside.serve(t, 8080) // and somebody else one on the host port
	for i, v6 := range []bool{false, true} {
		gateway := w.web.a.Gateways[i].String()
		for _, tc := range []struct {
			name   string
			from   place
			to     netip.Addr
			client string // "" is not checked
		}{
			{"from outside", w.outside, w.hostIPs[i], w.outerIPs[i].String()},
			{"from the host by its address", w.host, w.hostIPs[i], w.hostIPs[i].String()},
			{"from the host by the gateway's", w.host, w.web.a.Gateways[i], gateway},
			{"from the host by loopback", w.host, [2]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}[i], gateway},
			{"from another pod by the host's address", w.other, w.hostIPs[i], gateway},
			{"from another pod by the gateway's", w.other, w.web.a.Gateways[i], gateway},
			{"from the pod itself", w.web, w.hostIPs[i], gateway},
		} {
			if tc.to == netip.IPv6Loopback() {
				if _, _, err := tc.from.ask(t, "tcp", at(tc.to, 8080)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("[::1]:8080 = %v, want connection refused", err)
				}
				continue
			}
			for _, network := range []string{"tcp", "udp"} {
				server, client, err := tc.from.ask(t, network, at(tc.to, 8080))
				if err != nil || server != "web" || client != tc.client {
					t.Errorf("%s, %s, IPv6 %v: server %q saw %q, %v; want web, %q", tc.name, network, v6, server, client, err, tc.client)
				}
			}
		}
		// Forwarded traffic to the same port is not for the pod: CVE-2025-67499.
		for _, network := range []string{"tcp", "udp"} {
			server, _, err := w.other.ask(t, network, at(w.outerIPs[i], 8080))
			if err != nil || server != "outside" {
				t.Errorf("forwarded %s, IPv6 %v: server %q, %v; want outside", network, v6, server, err)
			}
		}
	}
	b, err := os.ReadFile("/sys/class/net/" + w.web.a.HostIf + "/brport/hairpin_mode")
	if err == nil && strings.TrimSpace(string(b)) != "1" {
		t.Errorf("hairpin mode = %s, want 1", b)
	}
}

func TestHostPortEndsWithThePod(t *testing.T) {
	w := newWorld(t)
	port := cni.PortMapping{HostPort: 8090, ContainerPort: 90, Protocol: "udp"}
	for _, name := range []string{"first", "second"} {
		p := w.pod(t, name, port)
		p.serve(t, 90)
		// The client keeps its port, so that a stale conntrack entry would lead to the former pod, or nowhere.
		w.outside.do(t, func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{Port: 5555}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.hostIPs[0], 8090)))
			if err != nil {
				return err
			}
			defer c.Close()
			buf := make([]byte, 200)
			_ = c.SetDeadline(time.Now().Add(patience))
			if _, err = c.Write([]byte("hello")); err != nil {
				return err
			}
			n, err := c.Read(buf)
			if err != nil || !strings.HasPrefix(string(buf[:n]), name+" saw") {
				t.Errorf("answer %q, %v; want from %s", buf[:n], err, name)
			}
			return nil
		})
		must(t, w.d.Del(t.Context(), p.a))
	}
	if server, _, err := w.outside.ask(t, "tcp", at(w.hostIPs[0], 8090)); err == nil {
		t.Errorf("port of a deleted pod is answered by %s", server)
	}
}

func TestHostPortOfAServiceThatTheHostHadBefore(t *testing.T) {
	w := newWorld(t)
	w.host.serve(t, 8091)
	ask := func(want string) {
		t.Helper()
		w.outside.do(t, func() error {
			c, err := net.DialUDP("udp", &net.UDPAddr{Port: 5556}, net.UDPAddrFromAddrPort(netip.AddrPortFrom(w.hostIPs[0], 8091)))
			if err != nil {
				return err
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			buf := make([]byte, 200)
			_, _ = c.Write([]byte("hello"))
			if n, err := c.Read(buf); err != nil || !strings.HasPrefix(string(buf[:n]), want+" saw") {
				t.Errorf("answer %q, %v; want from %s", buf[:n], err, want)
			}
			return nil
		})
	}
	ask("host")
	p := w.pod(t, "taker", cni.PortMapping{HostPort: 8091, ContainerPort: 91, Protocol: "udp"})
	p.serve(t, 91)
	ask("taker")
}

func TestHostIP(t *testing.T) {
	w := newWorld(t)
	v4, v6 := w.hostIPs[0], w.hostIPs[1]
	p := w.pod(t, "bound",
		cni.PortMapping{HostPort: 7001, ContainerPort: 80, Protocol: "tcp", HostIP: v4},
		cni.PortMapping{HostPort: 7002, ContainerPort: 80, Protocol: "tcp", HostIP: v6},
		cni.PortMapping{HostPort: 7003, ContainerPort: 80, Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1")},
		cni.PortMapping{HostPort: 7004, ContainerPort: 80, Protocol: "tcp", HostIP: netip.IPv4Unspecified()},
		cni.PortMapping{HostPort: 7005, ContainerPort: 80, Protocol: "tcp", HostIP: netip.IPv6Unspecified()},
	)
	p.serve(t, 80)
	q := w.pod(t, "same port, other address", cni.PortMapping{HostPort: 7001, ContainerPort: 80, Protocol: "tcp", HostIP: netip.MustParseAddr("127.0.0.1")})
	q.serve(t, 80)
	loop := netip.MustParseAddr("127.0.0.1")
	for _, tc := range []struct {
		to   string
		want string
	}{
		{at(v4, 7001), "bound"}, {at(v6, 7001), ""}, {at(loop, 7001), q.name},
		{at(v6, 7002), "bound"}, {at(v4, 7002), ""},
		{at(loop, 7003), "bound"}, {at(v4, 7003), ""},
		{at(v4, 7004), "bound"}, {at(loop, 7004), "bound"}, {at(v6, 7004), ""},
		{at(v6, 7005), "bound"}, {at(v4, 7005), ""},
	} {
		server, _, err := w.host.ask(t, "tcp", tc.to)
		if server != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("host to %s: %q, %v; want %q", tc.to, server, err, tc.want)
		}
	}
}

func TestSCTPPort(t *testing.T) {
	w := newWorld(t, cni.PortMapping{HostPort: 9000, ContainerPort: 99, Protocol: "sctp"})
	// The kernel may have no SCTP sockets: raw ones show that the packet comes, and where to.
	var in int
	w.web.do(t, func() (err error) {
		in, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return errors.Join(err, unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	})
	defer unix.Close(in)
	init := binary.BigEndian.AppendUint16(nil, 6000)
	init = binary.BigEndian.AppendUint16(init, 9000)
	init = append(init, make([]byte, 8)...)                              // verification tag, checksum
	init = append(init, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1) // chunk INIT
	init = append(init, 0, 0, 0, 1)
	binary.LittleEndian.PutUint32(init[8:], crc32.Checksum(init, crc32.MakeTable(crc32.Castagnoli)))
	w.outside.do(t, func() error {
		out, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		defer unix.Close(out)
		return unix.Sendto(out, init, 0, &unix.SockaddrInet4{Addr: w.hostIPs[0].As4()})
	})
	buf := make([]byte, 200)
	n, _, err := unix.Recvfrom(in, buf, 0)
	if err != nil || n < 24 || binary.BigEndian.Uint16(buf[22:]) != 99 {
		t.Errorf("pod received %x, %v; want an INIT to port 99", buf[:max(n, 0)], err)
	}
}

// CVE-2020-8558: route_localnet must not show the host's loopback services to pods.
func TestPodDoesNotReachTheHostsLoopback(t *testing.T) {
	w := newWorld(t)
	w.host.serveAt(t, "127.0.0.1:7777")
	w.other.do(t, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Without lo the pod sends 127.0.0.1 to its gateway.
		return errors.Join(netlink.LinkSetDown(lo), os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0))
	})
	if b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + w.cfg.Bridge.Name + "/route_localnet"); err != nil || string(b) != "1\n" {
		t.Fatalf("route_localnet of the bridge = %q, %v; want 1", b, err)
	}
	w.other.do(t, func() error {
		for _, network := range []string{"tcp", "udp"} {
			c, err := net.DialTimeout(network, "127.0.0.1:7777", 300*time.Millisecond)
			if err != nil {
				continue
			}
			_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
			_, _ = c.Write([]byte("hello"))
			if n, _ := c.Read(make([]byte, 100)); n > 0 {
				t.Errorf("pod reached the host's 127.0.0.1 by %s", network)
			}
			c.Close()
		}
		return nil
	})
}

// CVE-2020-10749: router advertisements of a pod change neither the host nor other pods.
func TestRouterAdvertisementOfAPodIsIgnored(t *testing.T) {
	w := newWorld(t)
	ra := []byte{134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0} // router for 1800 s
	ra = append(ra, 3, 4, 64, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0)
	bad := netip.MustParseAddr("2001:bad::")
	ra = append(ra, bad.AsSlice()...)
	w.web.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := eth0.Addrs()
		if err != nil {
			return err
		}
		from := &unix.SockaddrInet6{ZoneId: uint32(eth0.Index)}
		for _, a := range addrs {
			if p := netip.MustParsePrefix(a.String()); p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
				from.Addr = p.Addr().As16()
			}
		}
		to := &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(eth0.Index)}
		return errors.Join(unix.Bind(fd, from), unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), unix.Sendto(fd, ra, 0, to))
	})
	time.Sleep(200 * time.Millisecond)
	for _, p := range []place{w.host, w.other} {
		p.do(t, func() error {
			addrs, err := net.InterfaceAddrs()
			for _, a := range addrs {
				if netip.MustParsePrefix(a.String()).Masked().Addr() == bad {
					t.Errorf("%s took address %s", p.name, a)
				}
			}
			if v, _ := os.ReadFile("/proc/sys/net/ipv6/conf/eth0/accept_ra"); p.ns != nil && string(v) != "0\n" {
				t.Errorf("accept_ra of %s's eth0 = %q, want 0", p.name, v)
			}
			routes, routeErr := netlink.RouteList(nil, netlink.FAMILY_V6)
			for _, r := range routes {
				if r.Protocol == unix.RTPROT_RA {
					t.Errorf("%s took route %v", p.name, r)
				}
			}
			return errors.Join(err, routeErr)
		})
	}
	for _, name := range []string{w.web.a.HostIf, w.cfg.Bridge.Name} {
		if v, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "accept_ra")); err != nil || string(v) != "0\n" {
			t.Errorf("accept_ra of %s = %q, %v; want 0", name, v, err)
		}
	}
}

func TestPortInUseIsRefusedBeforeAnythingIsMade(t *testing.T) {
	w := newWorld(t, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"})
	ns := cnitest.NewNetNS(t)
	req := cni.Request{
		SandboxID: cnitest.SandboxID(), NetNS: ns.Path,
		PortMappings: []cni.PortMapping{{HostPort: 8080, ContainerPort: 81, Protocol: "tcp"}},
	}
	a, err := w.d.Plan(t.Context(), req)
	must(t, err)
	err = w.d.Add(t.Context(), req, &a)
	if !errors.Is(err, cni.ErrPortInUse) || !strings.Contains(err.Error(), ":8080/tcp") || !strings.Contains(err.Error(), w.web.a.SandboxID) {
		t.Errorf("Add = %v, want ErrPortInUse that names port and pod", err)
	}
	must(t, w.d.Idle(t.Context()))
	if _, err := net.InterfaceByName(a.HostIf); err == nil {
		t.Error("a refused Add left its link")
	}
}
