package cni_test

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

// bucketOfLink returns the token bucket filter of a link, nil when there is none.
func bucketOfLink(t *testing.T, name string) *netlink.Tbf {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	list, err := netlink.QdiscList(l)
	must(t, err)
	for _, q := range list {
		if tbf, ok := q.(*netlink.Tbf); ok {
			return tbf
		}
	}
	return nil
}

// wantBucket compares a link's filter; rate and burst in bytes.
func wantBucket(t *testing.T, name string, rate, burst float64) {
	t.Helper()
	q := bucketOfLink(t, name)
	if q == nil {
		t.Errorf("%s has no token bucket filter", name)
		return
	}
	got := float64(q.Buffer) * 64e-9 * rate // the kernel says it as time, in 64 ns
	if float64(q.Rate) != rate || math.Abs(got-burst) > burst/1000+1 || q.Limit != uint32(burst+rate/40) {
		t.Errorf("%s: rate %d, burst %.0f, limit %d; want %.0f, %.0f, %.0f", name, q.Rate, got, q.Limit, rate, burst, burst+rate/40)
	}
}

// shaped attaches a pod with limits. It skips the test when the kernel lacks what they need, which the error names.
func (w *world) shaped(t *testing.T, req cni.Request) place {
	t.Helper()
	ns := cnitest.NewNetNS(t)
	req.SandboxID, req.NetNS = cnitest.SandboxID(), ns.Path
	a, err := w.d.Plan(t.Context(), req)
	must(t, err)
	err = w.d.Add(t.Context(), req, &a)
	if errors.Is(err, cni.ErrNotSupported) {
		t.Skipf("the kernel lacks a queueing discipline: %v", err)
	}
	must(t, err)
	t.Cleanup(func() { must(t, w.d.Del(context.Background(), a)) })
	return place{"shaped", &ns, a}
}

// send lets one place send size bytes to a server at another, and returns how long it took until they were there.
func send(t *testing.T, from, to place, address string, size int64) time.Duration {
	t.Helper()
	const patience = time.Minute
	type arrival struct {
		at    time.Time
		count int64
		err   error
	}
	arrived := make(chan arrival, 1)
	to.do(t, func() error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			c, err := l.Accept()
			if err != nil {
				arrived <- arrival{err: err}
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(patience))
			n, err := io.Copy(io.Discard, c)
			arrived <- arrival{time.Now(), n, err}
		}()
		return nil
	})
	var start time.Time
	from.do(t, func() error {
		start = time.Now()
		c, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		_, err = c.Write(make([]byte, size))
		return err
	})
	select {
	case a := <-arrived:
		if a.err != nil || a.count != size {
			t.Fatalf("%d of %d bytes arrived: %v", a.count, size, a.err)
		}
		return a.at.Sub(start)
	case <-time.After(patience):
		t.Fatal("the bytes did not arrive")
		return 0
	}
}

func TestBandwidthOfThePodIsLimited(t *testing.T) {
	const (
		in, out = 1_500_000, 2_000_000 // bytes a second
		burst   = 100_000
		size    = 2_000_000
	)
	w := newWorld(t)
	p := w.shaped(t, cni.Request{Bandwidth: &cni.Bandwidth{IngressRate: 8 * in, IngressBurst: 8 * burst, EgressRate: 8 * out, EgressBurst: 8 * burst}})
	wantBucket(t, p.a.HostIf, in, burst)
	wantBucket(t, p.a.Ifb, out, burst)
	must(t, w.d.Check(t.Context(), p.a))
	for i := range w.hostIPs {
		for name, way := range map[string]struct {
			from, to place
			address  string
			rate     float64
		}{
			"to the pod":   {w.other, p, at(p.ip(i), 85), in},
			"from the pod": {p, w.other, at(w.other.ip(i), 86), out},
		} {
			least := time.Duration(float64(time.Second) * (size - burst) / way.rate)
			if took := send(t, way.from, way.to, way.address, size); took < least {
				t.Errorf("%d bytes %s by IPv%d took %s, want %s at least", size, name, 4+2*i, took, least)
			}
		}
	}
	for _, other := range []string{w.other.a.HostIf, w.web.a.HostIf} {
		if q := bucketOfLink(t, other); q != nil {
			t.Errorf("a pod without limits has %v", q)
		}
	}
	must(t, w.d.Del(t.Context(), p.a))
	must(t, w.d.Idle(t.Context()))
	for _, name := range []string{p.a.HostIf, p.a.Ifb} {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("Del left %s", name)
		}
	}
}

func TestBandwidthAnnotationsOfTheBridge(t *testing.T) {
	const in, out = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
	w := newWorld(t)
	both := w.shaped(t, cni.Request{Annotations: map[string]string{in: "10M", out: "100G"}})
	wantBucket(t, both.a.HostIf, 1.25e6, 5e6)                   // four seconds, not the 256 MiB that no burst stands for
	wantBucket(t, both.a.Ifb, 12.5e9, float64(math.MaxInt32/8)) // more than 32 bits
	only := w.shaped(t, cni.Request{Annotations: map[string]string{in: "2k"}})
	if only.a.Ifb != "" {
		t.Errorf("a pod that may send what it likes has %s", only.a.Ifb)
	}
	mtu, err := net.InterfaceByName(only.a.HostIf)
	must(t, err)
	wantBucket(t, only.a.HostIf, 250, float64(mtu.MTU+18)) // a packet passes
	send(t, w.host, only, at(only.ip(0), 87), 100)

	must(t, netlink.LinkDel(&netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: both.a.Ifb}}))
	if err := w.d.Check(t.Context(), both.a); !errors.Is(err, cni.ErrNotAttached) || !strings.Contains(err.Error(), both.a.Ifb) {
		t.Errorf("Check without the ifb = %v, want ErrNotAttached that names it", err)
	}
}

func TestIfbOfACrashIsCollected(t *testing.T) {
	w := newWorld(t)
	limits := cni.Request{Bandwidth: &cni.Bandwidth{EgressRate: 1e6, EgressBurst: 1e6}}
	p, lost := w.shaped(t, limits), w.shaped(t, limits)
	stranger := &netlink.Ifb{LinkAttrs: netlink.LinkAttrs{Name: "vb00000000ff-e"}} // of another bridge
	must(t, netlink.LinkAdd(stranger))
	t.Cleanup(func() { _ = netlink.LinkDel(stranger) })
	pair, err := netlink.LinkByName(lost.a.HostIf)
	must(t, err)
	must(t, netlink.LinkDel(pair)) // killed between the two
	must(t, w.d.GC(t.Context(), []cni.Attachment{p.a, w.web.a, w.other.a}))
	for name, want := range map[string]bool{p.a.Ifb: true, lost.a.Ifb: false, stranger.Name: true} {
		if _, err := os.Stat("/proc/sys/net/ipv4/conf/" + name); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
	must(t, netlink.LinkDel(stranger))
	bridge, err := netlink.LinkByName(w.cfg.Bridge.Name)
	must(t, err)
	must(t, netlink.LinkDel(bridge)) // GC finds the links of a bridge that is gone
	must(t, w.d.GC(t.Context(), nil))
	if _, err := netlink.LinkByName(p.a.Ifb); err == nil {
		t.Errorf("GC left %s", p.a.Ifb)
	}
	for _, name := range []string{p.a.HostIf, w.web.a.HostIf, w.other.a.HostIf} {
		if l, err := netlink.LinkByName(name); err == nil {
			must(t, netlink.LinkDel(l))
		}
	}
}

func TestRefusedAddLeavesNoIfb(t *testing.T) {
	w := newWorld(t, cni.PortMapping{HostPort: 8089, ContainerPort: 80, Protocol: "tcp"})
	ns := cnitest.NewNetNS(t)
	req := cni.Request{
		SandboxID: cnitest.SandboxID(), NetNS: ns.Path, Annotations: map[string]string{"kubernetes.io/egress-bandwidth": "1M"},
		PortMappings: []cni.PortMapping{{HostPort: 8089, ContainerPort: 81, Protocol: "tcp"}},
	}
	a, err := w.d.Plan(t.Context(), req)
	must(t, err)
	if err = w.d.Add(t.Context(), req, &a); err == nil || a.Ifb == "" || len(a.Ifb) >= unix.IFNAMSIZ {
		t.Errorf("Add = %v, ifb %q", err, a.Ifb)
	}
	must(t, w.d.Idle(t.Context()))
	if _, err := net.InterfaceByName(a.Ifb); err == nil {
		t.Errorf("a refused Add left %s", a.Ifb)
	}
}
