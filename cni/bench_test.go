package cni_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

const settle = 50 * time.Millisecond

// floor is what the least that any program does for a pod's network costs: netlink requests one after the other, IPv4 only.
type floor struct {
	host   *netlink.Handle
	bridge netlink.Link
	home   *os.File
}

func newFloor(b *testing.B) *floor {
	b.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "flr0"
	must(b, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	link, err := netlink.LinkByName("flr0")
	must(b, err)
	must(b, netlink.LinkSetUp(link))
	b.Cleanup(func() { must(b, netlink.LinkDel(link)) })
	host, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(b, err)
	b.Cleanup(host.Close)
	home, err := os.Open("/proc/thread-self/ns/net")
	must(b, err)
	b.Cleanup(func() { home.Close() })
	return &floor{host, link, home}
}

func must(b testing.TB, err error) {
	if err != nil {
		b.Helper()
		b.Fatal(err)
	}
}

// add is the network part of the floor measurement of the project's budgets.
func (f *floor) add(b *testing.B, ns string, i int) {
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(b, err)
	defer unix.Close(fd)
	runtime.LockOSThread()
	must(b, unix.Setns(fd, unix.CLONE_NEWNET))
	pod, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(b, err)
	must(b, unix.Setns(int(f.home.Fd()), unix.CLONE_NEWNET))
	runtime.UnlockOSThread()
	defer pod.Close()
	lo, err := pod.LinkByName("lo")
	must(b, err)
	must(b, pod.LinkSetUp(lo))
	name := fmt.Sprintf("flv%d", i)
	must(b, pod.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: name, PeerNamespace: netlink.NsFd(f.home.Fd()),
	}))
	eth0, err := pod.LinkByName("eth0")
	must(b, err)
	must(b, pod.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 250, byte(i/250), byte(2+i%250)), Mask: net.CIDRMask(16, 32)}}))
	must(b, pod.LinkSetUp(eth0))
	_, everything, _ := net.ParseCIDR("0.0.0.0/0")
	must(b, pod.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: everything, Gw: net.IPv4(10, 250, 0, 1)}))
	peer, err := f.host.LinkByName(name)
	must(b, err)
	must(b, f.host.LinkSetMaster(peer, f.bridge))
	must(b, f.host.LinkSetUp(peer))
}

func (f *floor) del(b *testing.B, i int) {
	peer, err := f.host.LinkByName(fmt.Sprintf("flv%d", i))
	must(b, err)
	must(b, f.host.LinkDel(peer))
}

// median is in milliseconds.
func median(list []time.Duration) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return float64(list[len(list)/2].Nanoseconds()) / 1e6
}

// BenchmarkPod attaches and detaches one pod at a time, in turn with the floor in the same process, and reports medians: of the
// floor, of the bridge, and how many times the floor the bridge takes. The bridge gives IPv4 and IPv6, the floor IPv4 only.
func BenchmarkPod(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Fatal("needs root: namespaces and links are made")
	}
	cfg := bridgeConfig(b)
	d := open(b, cfg)
	defer func() { must(b, d.Close()) }()
	f := newFloor(b)
	dir := b.TempDir()
	var floorAdd, floorDel, add, del, portsAdd, portsDel []time.Duration
	timed := func(list *[]time.Duration, do func()) {
		start := time.Now()
		do()
		*list = append(*list, time.Since(start))
	}
	for i := range b.N {
		for _, kind := range []string{"floor", "bridge", "ports"} {
			path := filepath.Join(dir, fmt.Sprint(kind, i))
			must(b, cnitest.Pin(path))
			if kind == "floor" {
				timed(&floorAdd, func() { f.add(b, path, i) })
				timed(&floorDel, func() { f.del(b, i) })
			} else {
				req := cni.Request{SandboxID: cnitest.SandboxID(), Namespace: "default", Name: "web", NetNS: path}
				adds, dels := &add, &del
				if kind == "ports" {
					adds, dels = &portsAdd, &portsDel
					req.PortMappings = []cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp"}}
				}
				var a cni.Attachment
				timed(adds, func() {
					var err error
					a, err = d.Plan(b.Context(), req)
					must(b, err)
					must(b, d.Add(b.Context(), req, &a))
				})
				timed(dels, func() { must(b, d.Del(b.Context(), a)) })
			}
			must(b, unix.Unmount(path, unix.MNT_DETACH))
			must(b, d.Idle(b.Context()))
			time.Sleep(settle) // the kernel ends the namespace, holding the lock that the next one needs
		}
	}
	if b.N > 1 { // the first pod makes the bridge and the table
		add, portsAdd, floorAdd = add[1:], portsAdd[1:], floorAdd[1:]
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(floorAdd), "floor-add-ms")
	b.ReportMetric(median(add), "add-ms")
	b.ReportMetric(median(portsAdd), "add-with-port-ms")
	b.ReportMetric(median(add)/median(floorAdd), "add-x")
	b.ReportMetric(median(floorDel), "floor-del-ms")
	b.ReportMetric(median(del), "del-ms")
	b.ReportMetric(median(portsDel), "del-with-port-ms")
	b.ReportMetric(median(del)/median(floorDel), "del-x")
}

// BenchmarkPodsAtOnce attaches and detaches pods ten at a time.
func BenchmarkPodsAtOnce(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Fatal("needs root: namespaces and links are made")
	}
	d := open(b, bridgeConfig(b))
	defer func() { must(b, d.Close()) }()
	dir := b.TempDir()
	paths := make([]string, b.N)
	for i := range paths {
		paths[i] = filepath.Join(dir, fmt.Sprint(i))
		must(b, cnitest.Pin(paths[i]))
	}
	next := make(chan string, b.N)
	for _, p := range paths {
		next <- p
	}
	close(next)
	b.ResetTimer()
	done := make(chan error)
	for range 10 {
		go func() {
			var err error
			for path := range next {
				req := cni.Request{SandboxID: cnitest.SandboxID(), NetNS: path}
				var a cni.Attachment
				if a, err = d.Plan(b.Context(), req); err == nil {
					err = d.Add(b.Context(), req, &a)
				}
				if err == nil {
					err = d.Del(b.Context(), a)
				}
				if err != nil {
					break
				}
			}
			done <- err
		}()
	}
	for range 10 {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	must(b, d.Idle(b.Context()))
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pods/s")
	for _, p := range paths {
		must(b, unix.Unmount(p, unix.MNT_DETACH))
	}
}
