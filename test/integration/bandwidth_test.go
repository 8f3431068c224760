package integration_test

import (
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

const ingressBandwidth, egressBandwidth = "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"

// rateOf returns the bytes a second that leave a link at most, 0 when nothing limits them.
func rateOf(t *testing.T, name string) uint64 {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("link %s: %v", name, err)
	}
	var list []netlink.Qdisc
	for range 10 { // somebody's change may disturb the kernel's answer
		if list, err = netlink.QdiscList(l); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range list {
		if tbf, ok := q.(*netlink.Tbf); ok {
			return tbf.Rate
		}
	}
	return 0
}

// TestBandwidth: annotations limit a pod, which works as others do, and keeps its limits when the daemon is killed.
func TestBandwidth(t *testing.T) {
	d := harness.Start(t)
	pod, err := d.TryRunPod(d.Pod("limited", func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations[ingressBandwidth], c.Annotations[egressBandwidth] = "80M", "16M"
	}))
	if err != nil && strings.Contains(err.Error(), "the kernel lacks CONFIG_") {
		t.Skipf("the kernel lacks a queueing discipline: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	names := d.Process.Daemon()
	veth, ifb := names.VethName(pod.ID), names.IfbName(pod.ID)
	want := func() {
		t.Helper()
		if in, out := rateOf(t, veth), rateOf(t, ifb); in != 10_000_000 || out != 2_000_000 {
			t.Errorf("bytes a second: %d to the pod, %d from it; want 10000000, 2000000", in, out)
		}
	}
	want()
	pod.Run(server(d, "limited"))
	wantPage(d, pod.IPs()[0]+":80", "page of limited")
	d.Kill()
	d.Start()
	want()
	wantPage(d, "["+pod.IPs()[1]+"]:80", "page of limited")
	pod.Remove()
	d.Eventually(10*time.Second, "the links are gone", func() bool {
		_, err := netlink.LinkByName(veth)
		_, ifbErr := netlink.LinkByName(ifb)
		return err != nil && ifbErr != nil
	})
	d.AsBefore()

	free := d.RunPod(d.Pod("free"))
	if rate := rateOf(t, names.VethName(free.ID)); rate != 0 {
		t.Errorf("a pod without annotations gets %d bytes a second", rate)
	}
	if _, err := netlink.LinkByName(names.IfbName(free.ID)); err == nil {
		t.Error("a pod without annotations has an ifb")
	}
	_, err = d.TryRunPod(d.Pod("bad", func(c *runtimeapi.PodSandboxConfig) { c.Annotations[egressBandwidth] = "lots" }))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a bad annotation: %v, want InvalidArgument", err)
	}
}
