package rtnl_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/cnitest"
	"github.com/berthd/berth/cni/rtnl"
)

func TestMain(m *testing.M) { cnitest.Main(m) }

func dial(t *testing.T) *rtnl.Conn {
	t.Helper()
	c, err := rtnl.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestBatchGoesOnBehindAnError(t *testing.T) {
	cnitest.NeedRoot(t)
	c := dial(t)
	err := c.Do(
		rtnl.Del("nowhere0"), // gone is fine
		rtnl.Up(4711),
		rtnl.AddAddress(rtnl.Loopback, netip.MustParsePrefix("192.0.2.1/32")),
		rtnl.Hairpin("nowhere1"),
	)
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "set link 4711 up") || !strings.Contains(err.Error(), "nowhere1") ||
		strings.Contains(err.Error(), "nowhere0") {
		t.Errorf("Do = %v", err)
	}
	addrs, err := c.Addresses(rtnl.Loopback)
	if err != nil || !slices.Contains(addrs, netip.MustParsePrefix("192.0.2.1/32")) {
		t.Errorf("Addresses = %v, %v; want 192.0.2.1/32 among them", addrs, err)
	}
	again := rtnl.AddAddress(rtnl.Loopback, netip.MustParsePrefix("192.0.2.1/32"))
	if err := c.Do(again); !errors.Is(err, unix.EEXIST) {
		t.Errorf("second AddAddress = %v, want EEXIST", err)
	}
	again.Ignore = []unix.Errno{unix.EEXIST}
	if err := c.Do(again); err != nil {
		t.Error(err)
	}
}

// TestManyRequests: the kernel's answers to one datagram of a thousand requests would not fit into the socket's buffer.
func TestManyRequests(t *testing.T) {
	cnitest.NeedRoot(t)
	c := dial(t)
	var requests []rtnl.Request
	for i := range 1000 {
		requests = append(requests, rtnl.SetGroup(fmt.Sprintf("nowhere%d", i), 79))
	}
	if err := c.Do(requests...); err != nil {
		t.Errorf("Do = %v", err)
	}
	for _, i := range []int{0, 127, 128, 500, 999} {
		requests[i] = rtnl.Up(10000 + i)
	}
	var said []string
	if err := c.Do(requests...); err != nil {
		for line := range strings.Lines(err.Error()) {
			said = append(said, strings.Fields(line)[2])
		}
	}
	if want := []string{"10000", "10127", "10128", "10500", "10999"}; !slices.Equal(said, want) {
		t.Errorf("errors name the links %q, want %q", said, want)
	}
	bodies, err := c.Get(append(requests[1:127:127], requests[129:300]...)...)
	if err != nil || len(bodies) != 0 {
		t.Errorf("Get = %d bodies, %v", len(bodies), err)
	}
	bodies, err = c.Get(append(requests[1:127:127], rtnl.GetLink("lo"), requests[1], rtnl.GetLink("lo"), requests[2])...)
	if err != nil || len(bodies) != 2 {
		t.Errorf("Get = %d bodies, %v; want one of each datagram", len(bodies), err)
	}
	started := time.Now()
	if l, err := c.Link("lo"); err != nil || l.Index != rtnl.Loopback {
		t.Errorf("Link = %+v, %v", l, err)
	}
	if took := time.Since(started); took > 10*time.Second {
		t.Errorf("the next request took %v", took)
	}
}

func TestKernelsReasonIsInTheError(t *testing.T) {
	cnitest.NeedRoot(t)
	c := dial(t)
	err := c.Do(rtnl.Up(rtnl.Loopback), rtnl.AddDefaultRoute(rtnl.Loopback, netip.MustParseAddr("203.0.113.1")))
	if !errors.Is(err, unix.ENETUNREACH) || !strings.Contains(err.Error(), "(Nexthop has invalid gateway)") {
		t.Errorf("Do = %v, want the kernel's own words", err)
	}
}

func TestPairIsMadeInBridgeAndNamespaceAtOnce(t *testing.T) {
	cnitest.NeedRoot(t)
	c := dial(t)
	if err := c.Do(rtnl.Request{What: "add bridge", Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE, Body: bridge("rtb0")}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Do(rtnl.Del("rtb0")); err != nil {
			t.Error(err)
		}
	}()
	master, err := c.Link("rtb0")
	if err != nil || master.Kind != "bridge" {
		t.Fatalf("Link = %+v, %v", master, err)
	}
	ns := cnitest.NewNetNS(t)
	fd, err := os.Open(ns.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	mac := []byte{0x0a, 0x58, 1, 2, 3, 4}
	for _, name := range []string{"rtv0", "rtv1"} {
		if err := c.Do(rtnl.AddVeth(rtnl.Veth{
			Name: name, Master: master.Index, MTU: 1300, Peer: name, PeerMAC: mac, PeerNS: int(fd.Fd()),
		})); err != nil {
			t.Fatal(err)
		}
	}
	ports, err := c.Ports(master.Index)
	if err != nil || len(ports) != 2 || !ports[0].IsUp() || ports[0].MTU != 1300 || ports[0].Kind != "veth" {
		t.Fatalf("Ports = %+v, %v", ports, err)
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	pod, err := rtnl.DialIn(int(fd.Fd()), int(home.Fd()), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	far, err := pod.Link("rtv0")
	if err != nil || far.IsUp() || far.MTU != 1300 || !slices.Equal(far.MAC, mac) || far.Peer != ports[0].Index {
		t.Errorf("far end %+v, %v", far, err)
	}
	if err := c.Do(rtnl.SetGroup("rtv0", 77), rtnl.SetGroup("rtv1", 77), rtnl.SetGroup("nowhere0", 77), rtnl.DelGroup(77)); err != nil {
		t.Fatal(err)
	}
	if ports, err := c.Ports(master.Index); err != nil || len(ports) != 0 {
		t.Errorf("Ports after DelGroup = %+v, %v", ports, err)
	}
	if err := c.Do(rtnl.DelGroup(77)); err != nil {
		t.Errorf("DelGroup of an empty group = %v", err)
	}
	if _, err := c.Link("rtv0"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("Link of a deleted link = %v, want ENODEV", err)
	}
}

// bridge is the body of a request for a bridge.
func bridge(name string) []byte {
	b := make([]byte, 16)
	b = append(b, byte(4+len(name)+1), 0, unix.IFLA_IFNAME, 0)
	b = append(append(b, name...), 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return append(b, 16, 0, unix.IFLA_LINKINFO, 0, 11, 0, 1, 0, 'b', 'r', 'i', 'd', 'g', 'e', 0, 0)[:len(b)+16]
}

// TestListsThatChangeMeanwhile: a list that takes the kernel several datagrams is asked for again when links come and go between them, and lacks none
// of those that were there all the time.
func TestListsThatChangeMeanwhile(t *testing.T) {
	cnitest.NeedRoot(t)
	const ports, lists = 100, 200
	c, other := dial(t), dial(t)
	made := []rtnl.Request{}
	for _, name := range []string{"rtb1", "rtb2"} {
		made = append(made, rtnl.Request{What: "add bridge", Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE, Body: bridge(name)})
	}
	if err := c.Do(made...); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Do(rtnl.Del("rtb1"), rtnl.Del("rtb2")); err != nil {
			t.Error(err)
		}
	}()
	master, err := c.Link("rtb1")
	if err != nil {
		t.Fatal(err)
	}
	ns := cnitest.NewNetNS(t)
	fd, err := os.Open(ns.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	defer c.Do(rtnl.DelGroup(78))
	for i := range ports {
		name := fmt.Sprintf("rtp%d", i)
		pair := rtnl.AddVeth(rtnl.Veth{Name: name, Master: master.Index, Peer: name, PeerNS: int(fd.Fd())})
		if err := c.Do(pair, rtnl.SetGroup(name, 78)); err != nil {
			t.Fatal(err)
		}
	}
	var stop atomic.Bool
	churned := make(chan error, 1)
	go func() {
		for !stop.Load() {
			if err := other.Do(rtnl.Del("rtb2"), made[1]); err != nil {
				churned <- err
				return
			}
		}
		churned <- nil
	}()
	for range lists {
		if found, err := c.Ports(master.Index); err != nil || len(found) != ports {
			t.Errorf("Ports = %d links, %v; want %d", len(found), err, ports)
			break
		}
		if found, err := c.LinksOfKind("veth"); err != nil || len(found) != ports {
			t.Errorf("LinksOfKind = %d links, %v; want %d", len(found), err, ports)
			break
		}
	}
	stop.Store(true)
	if err := <-churned; err != nil {
		t.Error(err)
	}
}

func TestDialInRefusesWhatIsNoNamespace(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := rtnl.DialIn(int(f.Fd()), int(f.Fd()), nil); !errors.Is(err, unix.EINVAL) {
		t.Errorf("DialIn = %v, want EINVAL", err)
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add(make([]byte, 16))
	f.Add(append(make([]byte, 16), 8, 0, 3, 0, 'l', 'o', 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = rtnl.ParseLink(b) // does not panic
	})
}
