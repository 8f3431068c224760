package hostport

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var subnets = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}

func mapping(proto uint8, host string, pod string) Mapping {
	m := Mapping{Protocol: proto, Pod: netip.MustParseAddrPort(pod)}
	h := netip.MustParseAddrPort(host)
	m.HostPort = h.Port()
	if !h.Addr().IsUnspecified() {
		m.HostIP = h.Addr()
	}
	return m
}

func newTable(t *testing.T) *Table {
	t.Helper()
	needRoot(t)
	table := New(Config{Table: "berth-hpt", Bridge: "hpt0", Subnets: subnets})
	err := table.Install()
	if errors.Is(err, ErrNotSupported) {
		t.Skipf("the kernel lacks NAT in nftables: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Delete(); err != nil {
			t.Error(err)
		}
		if there, err := table.there(); err != nil || there {
			t.Errorf("table is there after Delete: %v, %v", there, err)
		}
	})
	return table
}

// listing is what the nft command prints, or "" where there is none.
func listing(t *testing.T) string {
	t.Helper()
	nft, err := exec.LookPath("nft")
	if err != nil {
		return ""
	}
	out, err := exec.Command(nft, "-n", "list", "table", "inet", "berth-hpt").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list: %v\n%s", err, out)
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

func TestTableReadsAsDocumented(t *testing.T) {
	table := newTable(t)
	if err := table.Add("a", []Mapping{
		mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.2:80"), mapping(unix.IPPROTO_UDP, "[::]:53", "[fd77::2]:5353"),
		mapping(unix.IPPROTO_SCTP, "192.0.2.1:9", "10.77.0.2:99"), mapping(unix.IPPROTO_TCP, "[2001:db8::1]:9", "[fd77::2]:99"),
	}); err != nil {
		t.Fatal(err)
	}
	got := listing(t)
	if got == "" {
		t.Fatal("the command nft is needed, of package nftables")
	}
	for _, want := range []string{
		"elements = { 6 . 8080 : 10.77.0.2 . 80 }", "elements = { 17 . 53 : fd77::2 . 5353 }",
		"elements = { 192.0.2.1 . 132 . 9 : 10.77.0.2 . 99 }", "elements = { 2001:db8::1 . 6 . 9 : fd77::2 . 99 }",
		"6 . 8080 . 10.77.0.2 . 80", "17 . 53 . fd77::2 . 5353",
		"fib daddr type 2 jump hostports", "ip6 daddr ::1 return",
		"dnat ip to meta l4proto . th dport map @any4", "dnat ip6 to ip6 daddr . meta l4proto . th dport map @host6",
		`oifname "hpt0" ip saddr 127.0.0.0/8 masquerade`,
		`oifname "hpt0" ip saddr 10.77.0.0/16 meta l4proto . ct original proto-dst . ip daddr . th dport @published4 masquerade`,
		"ip saddr 10.77.0.0/16 ip daddr != 10.77.0.0/16 ip daddr != 224.0.0.0/4 masquerade",
		"ip6 saddr fd77::/64 ip6 daddr != fd77::/64 ip6 daddr != ff00::/8 masquerade",
		`iifname "hpt0" ip daddr 127.0.0.0/8 drop`, `iifname "hpt0" ip saddr 127.0.0.0/8 drop`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("table has no %q", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
}

// An answer that is late does not say that the kernel has no nftables, and the next one is not taken for it.
func TestLateAnswer(t *testing.T) {
	table := newTable(t)
	table.mu.Lock()
	c, err := table.connect(-time.Second)
	if err != nil {
		t.Fatal(err)
	}
	table.write(c)
	err = table.flushTable()
	table.mu.Unlock()
	if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrNotSupported) {
		t.Errorf("flushTable = %v, want os.ErrDeadlineExceeded", err)
	}
	if err := table.Probe(); err != nil {
		t.Error(err)
	}
}

func TestPortInUseNamesItsOwner(t *testing.T) {
	table := newTable(t)
	a := []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.2:80")}
	for range 2 {
		if err := table.Add("a", a); err != nil {
			t.Fatal(err)
		}
	}
	b := []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8081", "10.77.0.3:80"), mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.3:80")}
	err := table.Add("b", b)
	if !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), ":8080/tcp") || !strings.Contains(err.Error(), "by a") {
		t.Fatalf("Add of a's port = %v", err)
	}
	if got := listing(t); strings.Contains(got, "8081") {
		t.Errorf("a refused Add left a port: %s", got)
	}
	for range 2 {
		if err := table.Remove("a", a); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Add("b", b); err != nil {
		t.Fatal(err)
	}
}

func TestElementsOfAnEarlierProcess(t *testing.T) {
	a := []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.2:80"), mapping(unix.IPPROTO_TCP, "[::]:8080", "[fd77::2]:80")}
	if err := newTable(t).Add("a", a); err != nil {
		t.Fatal(err)
	}
	later := New(Config{Table: "berth-hpt", Bridge: "hpt0", Subnets: subnets})
	if err := later.Add("b", []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.9:80")}); !errors.Is(err, ErrInUse) {
		t.Errorf("Add of a port in the kernel only = %v, want ErrInUse", err)
	}
	if err := later.Remove("a", append(a, mapping(unix.IPPROTO_UDP, "0.0.0.0:1", "10.77.0.2:1"))); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); strings.Contains(got, "8080") {
		t.Errorf("Remove left %s", got)
	}
}

func TestTableRemovedBehindOurBackIsWrittenAgain(t *testing.T) {
	table := newTable(t)
	if err := table.Add("a", []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.2:80")}); err != nil {
		t.Fatal(err)
	}
	if err := table.Delete(); err != nil {
		t.Fatal(err)
	}
	if err := table.Add("b", []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8081", "10.77.0.3:80")}); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); got != "" && (!strings.Contains(got, "8080") || !strings.Contains(got, "8081")) {
		t.Errorf("after Add: %s", got)
	}
	if err := table.Delete(); err != nil {
		t.Fatal(err)
	}
	if err := table.Remove("a", nil); err != nil {
		t.Error(err)
	}
	if err := table.Ensure(); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); got != "" && (strings.Contains(got, "8080") || !strings.Contains(got, "8081")) {
		t.Errorf("after Ensure: %s", got)
	}
}

func TestKeepLeavesOnlyWhatIsWantedOrBusy(t *testing.T) {
	table := newTable(t)
	a := []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8080", "10.77.0.2:80")}
	c := []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8082", "10.77.0.4:80")}
	if err := table.Add("a", a); err != nil {
		t.Fatal(err)
	}
	b := []Mapping{mapping(unix.IPPROTO_TCP, "0.0.0.0:8081", "10.77.0.3:80")}
	if err := table.Add("b", b); err != nil {
		t.Fatal(err)
	}
	if err := table.Keep(map[string][]Mapping{"c": c}, func(owner string) bool { return owner == "b" }); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); got != "" && (strings.Contains(got, "8080") || !strings.Contains(got, "8081") || !strings.Contains(got, "8082")) {
		t.Errorf("after Keep: %s", got)
	}
	if err := table.Check("c", c); err != nil {
		t.Error(err)
	}
	if table.Check("a", a) == nil {
		t.Error("Check of a port that Keep took away is nil")
	}
	if got := table.Owner(c[0]); got != "c" {
		t.Errorf("Owner = %q, want c", got)
	}
}
