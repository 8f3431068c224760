package cni

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/rtnl"
)

func needNetNS(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 || os.Getenv("BERTH_TEST_ISOLATED") == "" {
		t.Fatal("needs root: the tests run in a namespace of their own")
	}
}

func home(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// setLegacyPolicy is "iptables-legacy -P FORWARD" without the program: it reads the filter table and writes it back with another
// verdict (include/uapi/linux/netfilter_ipv4/ip_tables.h, struct ipt_replace).
func setLegacyPolicy(t *testing.T, verdict int32) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	info := make([]byte, iptInfoSize)
	copy(info, "filter")
	if err := getsockopt(fd, unix.SOL_IP, iptGetInfo, info); err != nil {
		if errors.Is(err, unix.ENOPROTOOPT) || errors.Is(err, unix.ENOENT) {
			t.Skipf("kernel has no legacy filter table: %v", err)
		}
		t.Fatal(err)
	}
	u32 := binary.NativeEndian.Uint32
	entriesCount, size := u32(info[iptInfoSize-8:]), int(u32(info[iptInfoSize-4:]))
	got := make([]byte, 40+size)
	copy(got, "filter")
	binary.NativeEndian.PutUint32(got[32:], uint32(size))
	if err := getsockopt(fd, unix.SOL_IP, iptGetEntries, got); err != nil {
		t.Fatal(err)
	}
	entries := got[40:]
	binary.NativeEndian.PutUint32(entries[int(u32(info[32+4+20+4*iptForward:]))+112+iptTarget:], uint32(verdict))
	counters := make([]byte, 16*entriesCount)
	replace := make([]byte, 32)
	copy(replace, "filter")
	replace = append(replace, info[32:36]...) // valid hooks
	replace = binary.NativeEndian.AppendUint32(replace, entriesCount)
	replace = binary.NativeEndian.AppendUint32(replace, uint32(size))
	replace = append(replace, info[36:76]...) // hook entries, underflows
	replace = binary.NativeEndian.AppendUint32(replace, entriesCount)
	replace = binary.NativeEndian.AppendUint64(replace, uint64(uintptr(unsafe.Pointer(&counters[0]))))
	replace = append(replace, entries...)
	_, _, errno := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_IP, 64, uintptr(unsafe.Pointer(&replace[0])), uintptr(len(replace)), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	_ = counters[0]
}

func TestLegacyForwardPolicy(t *testing.T) {
	needNetNS(t)
	if got := legacyDrops(); len(got) != 0 {
		t.Fatalf("legacyDrops of a fresh host = %q", got)
	}
	setLegacyPolicy(t, -1) // NF_DROP
	defer setLegacyPolicy(t, -2)
	if got := legacyDrops(); len(got) != 1 || got[0] != "legacy iptables chain FORWARD" {
		t.Errorf("legacyDrops = %q, want iptables's FORWARD", got)
	}
	setLegacyPolicy(t, -2) // NF_ACCEPT
	if got := legacyDrops(); len(got) != 0 {
		t.Errorf("legacyDrops = %q, want none", got)
	}
}

func TestKernelWithoutNAT(t *testing.T) {
	needNetNS(t)
	cfg, err := BridgeConfig{Name: "nonat0"}.withDefaults("000000")
	if err != nil {
		t.Fatal(err)
	}
	b, err := newBridge(cfg, Config{CacheDir: t.TempDir()}, home(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	b.probe = probe{answered: true, nat: fmt.Errorf("write table: %w", ErrNotSupported)}
	if _, err := b.plan(Request{SandboxID: "a", PortMappings: []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}}}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("plan with a host port = %v, want ErrNotSupported", err)
	}
	if _, err := b.plan(Request{SandboxID: "a"}); err != nil {
		t.Errorf("plan without = %v", err)
	}
	if got := b.conditions(); len(got) != 1 || got[0].Type != "NoAddressTranslation" {
		t.Errorf("conditions = %v, want NoAddressTranslation", got)
	}
	if err := b.ready(); err != nil {
		t.Errorf("ready = %v, want nil", err)
	}
}

// noDescriptors makes the process unable to open anything until the returned function is called.
func noDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
}

// A probe that the kernel did not answer says nothing about NAT: it is made again.
func TestProbeThatFailedIsMadeAgain(t *testing.T) {
	needNetNS(t)
	cfg, err := BridgeConfig{Name: "again0"}.withDefaults("000001")
	if err != nil {
		t.Fatal(err)
	}
	open := func() *bridge {
		b, err := newBridge(cfg, Config{CacheDir: t.TempDir()}, home(t))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.close(); err != nil {
				t.Error(err)
			}
		})
		return b
	}
	plan := func(b *bridge) error {
		_, err := b.plan(Request{SandboxID: "a", PortMappings: []PortMapping{{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}}})
		return err
	}
	noNAT := func(b *bridge) bool {
		return slices.ContainsFunc(b.conditions(), func(c Condition) bool { return c.Type == "NoAddressTranslation" })
	}
	b := open()
	if err := b.ports.Probe(); errors.Is(err, ErrNotSupported) {
		t.Skipf("the kernel lacks NAT in nftables: %v", err)
	}
	b.ports.Close()

	restore := noDescriptors(t)
	defer restore()
	err, condition := plan(b), noNAT(b)
	restore()
	if !errors.Is(err, unix.EMFILE) || errors.Is(err, ErrNotSupported) || !condition {
		t.Errorf("without descriptors: plan = %v, NoAddressTranslation %v; want EMFILE, true", err, condition)
	}
	if noNAT(b) {
		t.Error("NoAddressTranslation stays")
	}
	if err := plan(b); err != nil {
		t.Errorf("plan after that = %v", err)
	}

	b = open()
	late := fmt.Errorf("write table: %w", os.ErrDeadlineExceeded)
	b.probe = probe{nat: late, asked: time.Now()}
	if !noNAT(b) {
		t.Error("conditions waits for an answer again at once")
	}
	b.probe.asked = time.Now().Add(-2 * conditionTTL)
	if noNAT(b) {
		t.Error("NoAddressTranslation stays after an answer that was late")
	}
	b.probe = probe{nat: late, asked: time.Now()}
	if err := plan(b); err != nil || noNAT(b) {
		t.Errorf("plan after an answer that was late = %v; want nil, and no condition", err)
	}
}

// A socket whose exchange was cut off may still get the rest of its answers: the next user gets another one.
func TestBrokenConnIsNotUsedAgain(t *testing.T) {
	needNetNS(t)
	b := &bridge{conns: make(chan *rtnl.Conn, idleConns)}
	var broken *rtnl.Conn
	err := b.withConn(func(c *rtnl.Conn) error {
		broken = c
		return errors.Join(c.Close(), c.Do(rtnl.Up(rtnl.Loopback)))
	})
	if err == nil {
		t.Error("Do of a closed Conn = nil")
	}
	for range 2 {
		err = b.withConn(func(c *rtnl.Conn) error {
			if c == broken {
				t.Error("a broken Conn is used again")
			}
			return c.Do(rtnl.Up(rtnl.Loopback))
		})
		if err != nil {
			t.Error(err)
		}
	}
	if len(b.conns) != 1 {
		t.Errorf("%d Conns are kept, want the good one", len(b.conns))
	}
	(<-b.conns).Close()
}

// An administrator's host that got its IPv6 default route by announcement keeps it when it becomes a router.
func TestForwardingKeepsAnnouncedRoutes(t *testing.T) {
	needNetNS(t)
	b, err := newBridge(BridgeConfig{Name: "fwd0", Subnets: []netip.Prefix{netip.MustParsePrefix("10.201.0.0/16")}},
		Config{CacheDir: t.TempDir()}, home(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	path := ipv6Sysctl("all", "forwarding")
	if err := writeSysctl(path, "0"); err != nil {
		t.Fatal(err)
	}
	addAnnouncedRoute(t)
	if _, err := b.setUp(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{path: "1", ipv6Sysctl("ra0", "accept_ra"): "2", ipv6Sysctl("ra1", "accept_ra"): "1"} {
		if got, _ := readSysctl(path); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
}

// addAnnouncedRoute makes the links ra0 and ra1, and a default route on ra0 as the kernel makes it of an announcement.
func addAnnouncedRoute(t *testing.T) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "ra0"
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: "ra1"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(pair); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"ra0", "ra1"} {
		l, err := netlink.LinkByName(name)
		if err == nil {
			err = errors.Join(netlink.LinkSetUp(l), writeSysctl(ipv6Sysctl(name, "accept_ra"), "1"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := netlink.LinkByName("ra0")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(netip.MustParsePrefix("::/0")), Gw: net.ParseIP("fe80::1"), Protocol: unix.RTPROT_RA}
	for range 2000 { // the link-local address comes with the carrier
		if err = netlink.RouteAdd(route); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(err)
}

func TestQuantity(t *testing.T) {
	for text, want := range map[string]uint64{
		"1k": 1000, "10M": 10_000_000, "1.5G": 1_500_000_000, "2Ki": 2048, "1000": 1000, "1P": 1e15,
		"": 0, "M": 0, "1m": 0, "-1M": 0, "1e6": 0, "1 M": 0, "99999999999P": 0, "1..5M": 0, "0x10": 0,
	} {
		if got, ok := quantity(text); got != want || ok != (want > 0) {
			t.Errorf("quantity(%q) = %d, %v; want %d", text, got, ok, want)
		}
	}
}

func TestBandwidthOfAnnotations(t *testing.T) {
	got, err := bandwidthOf(map[string]string{egressAnnotation: "10M", "other": "x"})
	if err != nil || got == nil || *got != (Bandwidth{EgressRate: 10_000_000, EgressBurst: unlimitedBurst}) {
		t.Errorf("bandwidthOf = %+v, %v", got, err)
	}
	if got, err := bandwidthOf(nil); got != nil || err != nil {
		t.Errorf("bandwidthOf(nil) = %+v, %v", got, err)
	}
	if _, err := bandwidthOf(map[string]string{ingressAnnotation: "1"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("bandwidthOf a bit a second = %v, want ErrInvalid", err)
	}
}

func TestBucketOf(t *testing.T) {
	for _, tc := range []struct {
		rate, burst uint64
		want        bucket
	}{
		{8_000_000, 800_000, bucket{1_000_000, 100_000, 125_000}},
		{8_000_000, 0, bucket{1_000_000, 1518, 26_518}},                // room for a packet
		{8_000_000, unlimitedBurst, bucket{1_000_000, 4e6, 4_025_000}}, // what the kernel can count
		{minRate, unlimitedBurst, bucket{125, 1518, 1521}},
		{1, 1, bucket{1, 1518, 1518}},
		{maxRate, unlimitedBurst, bucket{maxRate / 8, unlimitedBurst / 8, math.MaxUint32}},
		{maxRate, math.MaxUint64, bucket{maxRate / 8, math.MaxUint32 / 2, math.MaxUint32}},
	} {
		if got := bucketOf(tc.rate, tc.burst, 1500); got != tc.want {
			t.Errorf("bucketOf(%d, %d) = %+v, want %+v", tc.rate, tc.burst, got, tc.want)
		}
	}
}

func TestLackingNamesTheFeature(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENOENT, unix.EOPNOTSUPP} {
		if err := lacking(errno, "CONFIG_X"); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "the kernel lacks CONFIG_X") {
			t.Errorf("lacking(%v) = %v", errno, err)
		}
	}
	if err := lacking(unix.EPERM, "CONFIG_X"); err != unix.EPERM {
		t.Errorf("lacking(EPERM) = %v", err)
	}
}

func TestInstancesHaveTheirOwnSubnets(t *testing.T) {
	seen := make(map[netip.Prefix]bool)
	for i := range 20 {
		cfg, err := BridgeConfig{}.withDefaults(fmt.Sprintf("%06x", i*7919))
		if err != nil {
			t.Fatal(err)
		}
		if len(cfg.Name) > 15 || cfg.Name == defaultBridge {
			t.Errorf("name %q", cfg.Name)
		}
		for _, p := range cfg.Subnets {
			if p != p.Masked() || is6(p) && seen[p] || !p.Addr().IsPrivate() { // of the 1,792 of IPv4 two may meet
				t.Errorf("subnet %s", p)
			}
			seen[p] = true
		}
	}
	cfg, err := BridgeConfig{}.withDefaults("")
	if err != nil || cfg.Name != "berth0" || cfg.Subnets[0].String() != "10.88.0.0/16" {
		t.Errorf("defaults = %+v, %v", cfg, err)
	}
}

func TestNoFoldersOfPluginsAreNone(t *testing.T) {
	if got := (Live{BinDirs: []string{}}).withDefaults().BinDirs; len(got) > 0 {
		t.Errorf("an empty list means %q", got)
	}
	if got := (Live{}).withDefaults().BinDirs; len(got) == 0 {
		t.Error("no list means none")
	}
}

func TestReaperRetriesAndDoesNotLetOneLinkHoldUpOthers(t *testing.T) {
	var mu sync.Mutex
	stuck, batches := true, 0
	r := startReaper(func(names []string) error {
		mu.Lock()
		defer mu.Unlock()
		batches++
		for _, name := range names {
			if name == "bad" && stuck {
				return errors.New("scripted")
			}
		}
		return nil
	})
	defer r.close()
	released := make(chan string, 2)
	for _, name := range []string{"bad", "good"} {
		r.push(name, func(ctx context.Context) error { released <- name; return nil })
	}
	select {
	case name := <-released:
		if name != "good" {
			t.Errorf("released %s first", name)
		}
	case <-time.After(time.Minute):
		t.Fatal("good was not released")
	}
	if !r.has("bad") {
		t.Error("bad is not queued any more")
	}
	mu.Lock()
	stuck = false
	mu.Unlock()
	if err := r.idle(t.Context()); err != nil {
		t.Fatal(err)
	}
	if name := <-released; name != "bad" {
		t.Errorf("released %s", name)
	}
}

func TestHostIfNamesAreStableAndFit(t *testing.T) {
	name := hostIf("", strings.Repeat("a", 64))
	if len(name) != 12 || name != hostIf("", strings.Repeat("a", 64)) || name == hostIf("0badc0", strings.Repeat("a", 64)) {
		t.Errorf("hostIf = %q", name)
	}
}

// Whatever a plugin answers to ADD: what is taken from it are addresses, of interfaces that are there.
func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"v"},{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"192.0.2.1/24","gateway":"192.0.2.254","interface":1}]}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","ips":[{"address":"::ffff:192.0.2.1/128","interface":-1}]}`))
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[null],"ips":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","ips":[null],"routes":[null]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"192.0.2.1/24","routes":[{"dst":"0.0.0.0/0"}]}}`))
	f.Add([]byte(`{"ips":[{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		result, err := create.CreateFromBytes(raw)
		if err != nil {
			return
		}
		a := Attachment{IfName: "eth0"}
		if err := a.take(result); err != nil {
			return
		}
		for _, ip := range a.IPs {
			if !ip.IsValid() {
				t.Errorf("%q gives %v", raw, a.IPs)
			}
		}
		if len(a.IPs) == 0 || !json.Valid(a.Result) {
			t.Errorf("%q gives %+v", raw, a)
		}
	})
}
