package cni_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
	"github.com/berthd/berth/test/wait"
)

// host is one host with a bridge; newDaemon starts another daemon on it, as after a crash of the former.
type host struct {
	cfg     cni.Config
	daemons []*cni.Dispatcher
}

func newHost(t *testing.T) *host {
	t.Helper()
	cnitest.NeedRoot(t)
	h := &host{cfg: bridgeConfig(t)}
	t.Cleanup(func() {
		if left := leftovers(t, h.cfg, h.daemons); len(left) > 0 {
			t.Errorf("left on the host: %q", left)
		}
	})
	return h
}

func (h *host) newDaemon(t *testing.T) *cni.Dispatcher {
	t.Helper()
	d := open(t, h.cfg)
	h.daemons = append(h.daemons, d)
	return d
}

func podRequest(t *testing.T, ports ...cni.PortMapping) cni.Request {
	t.Helper()
	return cni.Request{
		SandboxID: cnitest.SandboxID(), Namespace: "default", Name: "web-0", UID: "0b1c", NetNS: cnitest.NewNetNS(t).Path, PortMappings: ports,
	}
}

func attach(t *testing.T, d *cni.Dispatcher, req cni.Request) cni.Attachment {
	t.Helper()
	a, err := d.Plan(t.Context(), req)
	must(t, err)
	must(t, d.Add(t.Context(), req, &a))
	return a
}

func reserved(t *testing.T, cfg cni.Config) []string {
	t.Helper()
	files, err := os.ReadDir(filepath.Join(cfg.CacheDir, cfg.Bridge.Name))
	must(t, err)
	var list []string
	for _, f := range files {
		if _, err := netip.ParseAddr(f.Name()); err == nil {
			list = append(list, f.Name())
		}
	}
	return list
}

func TestAddressIsHeldUntilTheLinkIsGone(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	a := attach(t, d, podRequest(t))
	start := time.Now()
	must(t, d.Del(t.Context(), a))
	if d := time.Since(start); d > 5*time.Millisecond {
		t.Logf("Del took %s", d)
	}
	var held []string
	if !wait.Until(30*time.Second, 0, func() bool {
		held = reserved(t, h.cfg)
		_, err := net.InterfaceByName(a.HostIf)
		if err == nil && len(held) != 2 {
			// The list was made before the link was seen, so this is no race.
			t.Fatalf("link %s is there, reserved is %v", a.HostIf, held)
		}
		return len(held) == 0
	}) {
		t.Fatalf("after 30 s reserved is %v", held)
	}
	b := attach(t, d, podRequest(t))
	if slices.Equal(a.IPs, b.IPs) {
		t.Errorf("next pod got %v at once again", b.IPs)
	}
	must(t, d.Del(t.Context(), b))
}

func TestStaticAddress(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	req := podRequest(t)
	want := netip.PrefixFrom(h.cfg.Bridge.Subnets[0].Addr(), 16)
	for range 50 {
		want = netip.PrefixFrom(want.Addr().Next(), 16)
	}
	req.IPs = []netip.Prefix{want}
	a := attach(t, d, req)
	if a.IPs[0] != want || len(a.IPs) != 2 {
		t.Errorf("Add gave %v, want %s and one of IPv6", a.IPs, want)
	}
	again := podRequest(t)
	again.IPs = req.IPs
	b, err := d.Plan(t.Context(), again)
	must(t, err)
	if err := d.Add(t.Context(), again, &b); err == nil || !strings.Contains(err.Error(), want.Addr().String()) {
		t.Errorf("Add with a's address = %v, want an error that names it", err)
	}
	for _, foreign := range []string{"192.0.2.7/24", h.cfg.Bridge.Subnets[0].Addr().Next().String() + "/16"} {
		again.IPs = []netip.Prefix{netip.MustParsePrefix(foreign)}
		if err := d.Add(t.Context(), again, &b); !errors.Is(err, cni.ErrInvalid) {
			t.Errorf("Add with %s = %v, want ErrInvalid", foreign, err)
		}
	}
	must(t, d.Del(t.Context(), a))
}

func TestFullSubnet(t *testing.T) {
	h := newHost(t)
	h.cfg.Bridge.Subnets[0] = netip.PrefixFrom(h.cfg.Bridge.Subnets[0].Addr(), 30)
	d := h.newDaemon(t)
	a := attach(t, d, podRequest(t))
	req := podRequest(t)
	b, err := d.Plan(t.Context(), req)
	must(t, err)
	if err := d.Add(t.Context(), req, &b); !errors.Is(err, cni.ErrExhausted) || !strings.Contains(err.Error(), "/30") {
		t.Errorf("Add in a full subnet = %v, want ErrExhausted that names it", err)
	}
	must(t, d.Del(t.Context(), a))
	must(t, d.Idle(t.Context()))
	must(t, d.Add(t.Context(), req, &b))
	must(t, d.Del(t.Context(), b))
}

func TestPodWithoutIPv6(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	req := podRequest(t)
	(&cnitest.NetNS{Path: req.NetNS}).Do(t, func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
	a := attach(t, d, req)
	if len(a.IPs) != 1 || !a.IPs[0].Addr().Is4() || len(a.Gateways) != 1 {
		t.Errorf("Add gave %v via %v, want one IPv4 address", a.IPs, a.Gateways)
	}
	must(t, d.Check(t.Context(), a))
	must(t, d.Del(t.Context(), a))
}

func TestWhatACrashLeavesIsCollected(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	port := cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}
	kept := attach(t, d, podRequest(t, cni.PortMapping{HostPort: 8081, ContainerPort: 80, Protocol: "tcp"}))
	lost := attach(t, d, podRequest(t, port))
	dir := filepath.Join(h.cfg.CacheDir, h.cfg.Bridge.Name)
	// Killed between reservation and link, and between a reservation's file and its contents.
	must(t, os.WriteFile(filepath.Join(dir, h.cfg.Bridge.Subnets[0].Addr().Next().Next().Next().Next().Next().Next().String()), []byte("gone\r\neth0"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "fd77::77"), nil, 0o600))
	// A link of the user's in the bridge.
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "mine0"
	link, err := netlink.LinkByName(h.cfg.Bridge.Name)
	must(t, err)
	attrs.MasterIndex = link.Attrs().Index
	mine := &netlink.Veth{LinkAttrs: attrs, PeerName: "mine1"}
	must(t, netlink.LinkAdd(mine))

	d = h.newDaemon(t)
	must(t, d.GC(t.Context(), []cni.Attachment{kept}))
	if _, err := net.InterfaceByName(lost.HostIf); err == nil {
		t.Error("GC left the link of a lost pod")
	}
	if _, err := net.InterfaceByName("mine0"); err != nil {
		t.Error("GC took a link that is not berth's")
	}
	must(t, netlink.LinkDel(mine))
	if got := reserved(t, h.cfg); len(got) != 2 {
		t.Errorf("reserved = %v, want the two addresses %v", got, kept.IPs)
	}
	must(t, d.Check(t.Context(), kept))
	again := attach(t, d, podRequest(t, port)) // the lost pod's port is free
	must(t, d.Del(t.Context(), again))
	must(t, d.Del(t.Context(), kept))
}

// An address that a pod has is never another's, whatever became of its reservation.
func TestReservationsLostWhilePodsLive(t *testing.T) {
	for name, lose := range map[string]func(dir string, ip netip.Addr) error{
		"removed": func(dir string, ip netip.Addr) error { return os.Remove(filepath.Join(dir, ip.String())) },
		"empty":   func(dir string, ip netip.Addr) error { return os.Truncate(filepath.Join(dir, ip.String()), 0) },
		"not a pod's": func(dir string, ip netip.Addr) error {
			return os.WriteFile(filepath.Join(dir, ip.String()), []byte("garbage"), 0o600)
		},
		"a folder": func(dir string, ip netip.Addr) error {
			return errors.Join(os.Remove(filepath.Join(dir, ip.String())), os.MkdirAll(filepath.Join(dir, ip.String(), "below"), 0o700))
		},
		"all removed": func(dir string, _ netip.Addr) error { return os.RemoveAll(dir) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			d := h.newDaemon(t)
			kept, ended := attach(t, d, podRequest(t)), attach(t, d, podRequest(t))
			must(t, d.Del(t.Context(), ended))
			must(t, d.Idle(t.Context()))
			dir := filepath.Join(h.cfg.CacheDir, h.cfg.Bridge.Name)
			for _, ip := range kept.IPs {
				must(t, lose(dir, ip.Addr()))
			}
			must(t, os.RemoveAll(filepath.Join(dir, "last_reserved_ip.0"))) // the search for an address begins at the first
			must(t, os.RemoveAll(filepath.Join(dir, "last_reserved_ip.1")))
			d = h.newDaemon(t)
			must(t, d.GC(t.Context(), []cni.Attachment{kept, ended})) // what ended meanwhile may be among them
			must(t, d.Check(t.Context(), kept))
			if got := reserved(t, h.cfg); len(got) != len(kept.IPs) {
				t.Errorf("reserved = %v, want %v", got, kept.IPs)
			}
			next := attach(t, d, podRequest(t))
			for _, ip := range next.IPs {
				if slices.Contains(kept.IPs, ip) {
					t.Errorf("two pods have the address %s", ip)
				}
			}
			must(t, d.Del(t.Context(), next))
			must(t, d.Del(t.Context(), kept))
		})
	}
}

func TestBridgeThatIsNoLongerConfigured(t *testing.T) {
	h := newHost(t)
	a := attach(t, h.newDaemon(t), podRequest(t, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}))
	old := h.cfg
	next := bridgeConfig(t)
	next.CacheDir, next.Instance = old.CacheDir, old.Instance
	d := open(t, next)
	must(t, d.GC(t.Context(), []cni.Attachment{a}))
	must(t, d.Check(t.Context(), a))
	b := attach(t, d, podRequest(t))
	if b.Network == a.Network {
		t.Errorf("new pod is in %s", b.Network)
	}
	must(t, d.Del(t.Context(), a))
	must(t, d.GC(t.Context(), []cni.Attachment{b}))
	if _, err := net.InterfaceByName(old.Bridge.Name); err == nil {
		t.Error("the former bridge is there, although it has no pods")
	}
	if _, err := os.Stat(filepath.Join(old.CacheDir, old.Bridge.Name)); err == nil {
		t.Error("the former bridge's folder is there")
	}
	must(t, d.Del(t.Context(), b))
	if left := leftovers(t, next, []*cni.Dispatcher{d}); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

func TestBridgeRemovedBehindOurBack(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	a := attach(t, d, podRequest(t))
	remove := func() {
		link, err := netlink.LinkByName(h.cfg.Bridge.Name)
		must(t, err)
		must(t, netlink.LinkDel(link))
	}
	remove()
	if err := d.Check(t.Context(), a); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("Check = %v, want ErrNotAttached", err)
	}
	b := attach(t, d, podRequest(t))
	must(t, d.Check(t.Context(), b))
	must(t, d.Del(t.Context(), a))
	must(t, d.Del(t.Context(), b))
	must(t, d.Idle(t.Context()))
	remove()
	must(t, d.Status(t.Context()))
	if _, err := net.InterfaceByName(h.cfg.Bridge.Name); err != nil {
		t.Errorf("Status has not set the bridge up again: %v", err)
	}
}

func TestTableRemovedBehindOurBack(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	a := attach(t, d, podRequest(t, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}))
	nft, err := nftables.New()
	must(t, err)
	name := "berth-" + h.cfg.Bridge.Name
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	nft.DelTable(table)
	must(t, nft.Flush())
	must(t, d.Status(t.Context()))
	elements, err := nft.GetSetElements(&nftables.Set{Table: table, Name: "any4", KeyType: nftables.TypeInteger, IsMap: true})
	if err != nil || len(elements) != 1 {
		t.Errorf("after Status any4 has %v, %v; want the pod's port", elements, err)
	}
	must(t, d.Del(t.Context(), a))
}

func TestLinksRemovedBehindOurBack(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	req := podRequest(t)
	a := attach(t, d, req)
	link, err := netlink.LinkByName(a.HostIf)
	must(t, err)
	must(t, netlink.LinkDel(link))
	if err := d.Check(t.Context(), a); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("Check = %v, want ErrNotAttached", err)
	}
	b := a
	must(t, d.Add(t.Context(), req, &b)) // a retry makes it again
	if !slices.Equal(a.IPs, b.IPs) {
		t.Errorf("Add after the loss gave %v, had %v", b.IPs, a.IPs)
	}
	must(t, d.Check(t.Context(), b))
	must(t, d.Del(t.Context(), b))
}

func TestInterfaceNameIsTakenInThePod(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	req := podRequest(t)
	(&cnitest.NetNS{Path: req.NetNS}).Do(t, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth1"})
	})
	a, err := d.Plan(t.Context(), req)
	must(t, err)
	if err := d.Add(t.Context(), req, &a); !errors.Is(err, unix.EEXIST) || !strings.Contains(err.Error(), "eth0") {
		t.Errorf("Add = %v, want EEXIST that names eth0", err)
	}
}

func TestBridgeNameIsTaken(t *testing.T) {
	h := newHost(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = h.cfg.Bridge.Name
	link := &netlink.Veth{LinkAttrs: attrs, PeerName: "taken1"}
	must(t, netlink.LinkAdd(link))
	d := h.newDaemon(t)
	if err := d.Status(t.Context()); !errors.Is(err, cni.ErrNotReady) || !strings.Contains(err.Error(), h.cfg.Bridge.Name) {
		t.Errorf("Status = %v, want ErrNotReady that names the link", err)
	}
	req := podRequest(t)
	a, err := d.Plan(t.Context(), req)
	must(t, err)
	if err := d.Add(t.Context(), req, &a); err == nil || !strings.Contains(err.Error(), h.cfg.Bridge.Name) {
		t.Errorf("Add = %v, want an error that names the link", err)
	}
	must(t, d.Close())
	h.daemons = nil
	if _, err := net.InterfaceByName(h.cfg.Bridge.Name); err != nil {
		t.Errorf("Close removed a link that is not berth's: %v", err)
	}
	must(t, netlink.LinkDel(link))
}

func TestBridgeLinkIsAsConfigured(t *testing.T) {
	h := newHost(t)
	h.cfg.Bridge.MTU = 1400
	d := h.newDaemon(t)
	req := podRequest(t)
	a := attach(t, d, req)
	gateway := h.cfg.Bridge.Subnets[0].Addr().Next()
	wantMAC := fmt.Sprintf("0a:58:%02x:%02x:%02x:%02x", gateway.As4()[0], gateway.As4()[1], gateway.As4()[2], gateway.As4()[3])
	for _, name := range []string{h.cfg.Bridge.Name, a.HostIf} {
		l, err := net.InterfaceByName(name)
		must(t, err)
		if l.MTU != 1400 || l.Flags&net.FlagUp == 0 {
			t.Errorf("%s: MTU %d, %s; want 1400, up", name, l.MTU, l.Flags)
		}
		if name == h.cfg.Bridge.Name && l.HardwareAddr.String() != wantMAC {
			t.Errorf("%s: hardware address %s, want %s", name, l.HardwareAddr, wantMAC)
		}
	}
	(&cnitest.NetNS{Path: req.NetNS}).Do(t, func() error {
		for _, name := range []string{"lo", "eth0"} {
			l, err := net.InterfaceByName(name)
			if err != nil {
				return err
			}
			if l.Flags&net.FlagUp == 0 || name == "eth0" && l.MTU != 1400 {
				t.Errorf("%s: MTU %d, %s", name, l.MTU, l.Flags)
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		var defaults int
		for _, r := range routes {
			if r.Gw != nil && slices.ContainsFunc(a.Gateways, func(g netip.Addr) bool { return g.AsSlice() != nil && r.Gw.Equal(g.AsSlice()) }) {
				defaults++
			}
		}
		if defaults != 2 {
			t.Errorf("routes %v, want a default route of each family", routes)
		}
		return err
	})
	for path, want := range map[string]string{"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"} {
		if b, err := os.ReadFile("/proc/sys/net/" + path); err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s = %q, %v; want %s", path, b, err, want)
		}
	}
	must(t, d.Del(t.Context(), a))
}

func TestForeignForwardPolicyIsACondition(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	if got := d.Conditions(t.Context()); len(got) != 0 {
		t.Errorf("Conditions of a good host = %v", got)
	}
	nft, err := nftables.New()
	must(t, err)
	table := nft.AddTable(&nftables.Table{Name: "firewall", Family: nftables.TableFamilyIPv4})
	drop := nftables.ChainPolicyDrop
	nft.AddChain(&nftables.Chain{
		Name: "FORWARD", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward,
		Priority: nftables.ChainPriorityFilter, Policy: &drop,
	})
	must(t, nft.Flush())
	defer func() {
		nft.DelTable(table)
		must(t, nft.Flush())
	}()
	d = h.newDaemon(t)
	got := d.Conditions(t.Context())
	if len(got) != 1 || got[0].Type != "ForwardingBlocked" || !strings.Contains(got[0].Message, "ip firewall FORWARD") {
		t.Errorf("Conditions = %v, want ForwardingBlocked that names the chain", got)
	}
	must(t, d.Status(t.Context()))
	must(t, d.Del(t.Context(), attach(t, d, podRequest(t))))
}

func TestNothingLeaks(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	home, err := os.Readlink("/proc/thread-self/ns/net")
	must(t, err)
	cycle := func() {
		for range 10 {
			req := podRequest(t, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "udp"})
			must(t, d.Del(t.Context(), attach(t, d, req)))
		}
		must(t, d.Idle(t.Context()))
	}
	descriptors := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	elsewhere := func() (all []string) {
		threads, err := filepath.Glob("/proc/self/task/*/ns/net")
		must(t, err)
		for _, path := range threads {
			if ns, err := os.Readlink(path); err == nil && ns != home {
				all = append(all, path+" in "+ns)
			}
		}
		return all
	}
	cycle()
	before := descriptors()
	cycle()
	// Threads and sockets end behind the calls.
	if !wait.Until(patience, 10*time.Millisecond, func() bool { return descriptors() <= before && len(elsewhere()) == 0 }) {
		t.Fatalf("descriptors: %d, then %d; threads that are not in %s: %q", before, descriptors(), home, elsewhere())
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := bridgeConfig(t)
	for name, spoil := range map[string]func(*cni.Config){
		"bridge name":                  func(c *cni.Config) { c.Bridge.Name = "a/b" },
		"bridge name that is libcni's": func(c *cni.Config) { c.Bridge.Name = "results" },
		"two IPv4 subnets": func(c *cni.Config) {
			c.Bridge.Subnets = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("10.1.0.0/16")}
		},
		"tiny subnet":           func(c *cni.Config) { c.Bridge.Subnets = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/31")} },
		"multicast subnet":      func(c *cni.Config) { c.Bridge.Subnets = []netip.Prefix{netip.MustParsePrefix("224.0.0.0/16")} },
		"MTU":                   func(c *cni.Config) { c.Bridge.MTU = 68 },
		"relative cache folder": func(c *cni.Config) { c.CacheDir = "x" },
	} {
		cfg := good
		spoil(&cfg)
		if _, err := cni.Open(t.Context(), cfg); err == nil {
			t.Errorf("Open with a bad %s is nil", name)
		}
	}
}

func TestHostWithoutIPv6(t *testing.T) {
	h := newHost(t)
	const path = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
	must(t, os.WriteFile(path, []byte("1"), 0))
	defer func() { must(t, os.WriteFile(path, []byte("0"), 0)) }()
	d := h.newDaemon(t)
	a := attach(t, d, podRequest(t, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}))
	if len(a.IPs) != 1 || !a.IPs[0].Addr().Is4() {
		t.Errorf("Add gave %v, want one IPv4 address", a.IPs)
	}
	if got := d.Conditions(t.Context()); len(got) != 1 || got[0].Type != "NoIPv6" {
		t.Errorf("Conditions = %v, want NoIPv6", got)
	}
	must(t, d.Check(t.Context(), a))
	must(t, d.Del(t.Context(), a))
}

// A pod that ends takes its namespace with it while the link is being deleted behind Del.
func TestNamespaceEndsDuringDel(t *testing.T) {
	h := newHost(t)
	d := h.newDaemon(t)
	errs := make(chan error)
	dir := t.TempDir()
	for w := range 8 {
		go func() {
			var err error
			for i := 0; i < 15 && err == nil; i++ {
				path := filepath.Join(dir, fmt.Sprintf("%d-%d", w, i))
				req := cni.Request{SandboxID: cnitest.SandboxID(), NetNS: path, PortMappings: []cni.PortMapping{{HostPort: uint16(9000 + w), ContainerPort: 80, Protocol: "udp"}}}
				var a cni.Attachment
				if err = cnitest.Pin(path); err == nil {
					a, err = d.Plan(t.Context(), req)
				}
				if err == nil {
					err = d.Add(t.Context(), req, &a)
				}
				if err == nil && i%2 == 0 { // the namespace ends first
					err = unix.Unmount(path, unix.MNT_DETACH)
				}
				if err == nil {
					err = d.Del(t.Context(), a)
				}
				if err == nil && i%2 == 1 {
					err = unix.Unmount(path, unix.MNT_DETACH)
				}
			}
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
