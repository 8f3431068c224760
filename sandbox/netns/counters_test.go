package netns

import (
	"net"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/test/wait"
)

func TestParseCounters(t *testing.T) {
	got, err := parseCounters([]byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0
eth0.5@x:18446744073709551615 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0
`))
	want := []Interface{{"lo", Traffic{1, 2, 3, 4}, Traffic{5, 6, 7, 8}}, {"eth0.5@x", Traffic{1<<64 - 1, 2, 3, 4}, Traffic{5, 6, 7, 8}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"lo: 1 2 3\n", "lo: x 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n"} {
		if got, err := parseCounters([]byte(bad)); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

func TestCountersAreOfTheNamespace(t *testing.T) {
	p := pins(t, "")
	a, pid := id("a"), namespace(t)
	if _, err := p.Counters(a); err == nil {
		t.Error("counters without a pin")
	}
	if err := p.Pin(a, pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Unpin(a) })
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Counters(a)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if after, err := os.Readlink("/proc/thread-self/ns/net"); after != before {
		t.Fatalf("the thread is in %s, was in %s: %v", after, before, err)
	}
	traffic := func() Interface {
		all, err := c.Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range all {
			if i.Name == "lo" {
				return i
			}
		}
		t.Fatalf("no lo in %v", all)
		return Interface{}
	}
	if got := traffic(); got.Rx.Bytes != 0 {
		t.Errorf("a new namespace has received %d bytes", got.Rx.Bytes)
	}
	script := "ip link set lo up && exec 3<>/dev/udp/127.0.0.1/9 && printf %0972d 0 >&3"
	cmd := exec.Command("nsenter", "--net=/proc/"+strconv.Itoa(pid)+"/ns/net", "bash", "-c", script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	// The datagram, and the answer that nobody listens. What was sent is received a moment later.
	if !wait.Until(20*time.Second, time.Millisecond, func() bool {
		got := traffic()
		return got.Tx.Bytes >= 1000 && got.Tx.Packets > 0 && got.Rx == got.Tx
	}) {
		t.Fatalf("lo = %+v", traffic())
	}
	// More interfaces than fit into one piece.
	few, err := c.Read() // some kernels have more than lo in each namespace
	if err != nil {
		t.Fatal(err)
	}
	for n := range 60 {
		if out, err := exec.Command("ip", "link", "add", "br"+strconv.Itoa(n), "netns", strconv.Itoa(pid), "type", "bridge").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if all, err := c.Read(); err != nil || len(all) != len(few)+60 {
		t.Errorf("%d interfaces, %v, want %d", len(all), err, len(few)+60)
	}
	if _, err := net.InterfaceByName("br59"); err == nil {
		t.Error("an interface is in the test's own namespace")
	}
	c.Close()
	c.Close()
}

func BenchmarkCounters(b *testing.B) {
	fd, err := os.Open("/proc/self/net/dev")
	if err != nil {
		b.Fatal(err)
	}
	defer fd.Close()
	c := &Counters{fd: int(fd.Fd()), buf: make([]byte, 2048)}
	for b.Loop() {
		if _, err := c.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
