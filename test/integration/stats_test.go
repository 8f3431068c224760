package integration_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func statsOf(c *harness.Container) *runtimeapi.ContainerStats {
	c.T.Helper()
	r, err := c.Runtime.ContainerStats(c.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: c.ID})
	if err != nil {
		c.T.Fatalf("ContainerStats: %v", err)
	}
	return r.GetStats()
}

func podStatsOf(p *harness.Pod) *runtimeapi.LinuxPodSandboxStats {
	p.T.Helper()
	r, err := p.Runtime.PodSandboxStats(p.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.ID})
	if err != nil {
		p.T.Fatalf("PodSandboxStats: %v", err)
	}
	return r.GetStats().GetLinux()
}

// TestStatsOfKnownLoads: what is measured is what was done, and what the kernel's files say.
func TestStatsOfKnownLoads(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("loads"))
	idle := pod.Run(d.Sleeper("idle"))
	busy := pod.Run(d.Shell("busy", "while :; do :; done", harness.Resources(&resources{CpuPeriod: 100000, CpuQuota: 50000})))
	eater := pod.Run(d.Container("eater", []string{"probe", "eat", "20"}, harness.Resources(&resources{MemoryLimitInBytes: 64 << 20})))
	writer := pod.Run(d.Shell("writer", "dd if=/dev/zero of=/file bs=1M count=10 2>/dev/null; mkdir /d; echo >/d/1; echo written; exec sleep 1000",
		harness.Resources(&resources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 96 << 20})))
	eater.WaitOutput("ate 20 MiB")
	writer.WaitOutput("written")

	before := statsOf(busy)
	d.Eventually(20*time.Second, "the busy container has used 2 s more", func() bool {
		return statsOf(busy).GetCpu().GetUsageCoreNanoSeconds().GetValue() > before.GetCpu().GetUsageCoreNanoSeconds().GetValue()+2e9
	})
	// A measurement is wrong when the daemon pauses between the time and what was used, so there may be several.
	nanoCores := func(c *harness.Container, least, most uint64) {
		t.Helper()
		var cores *runtimeapi.UInt64Value
		defer func() {
			if t.Failed() {
				t.Logf("%s used %v nanocores at last", c.Config.Metadata.Name, cores)
			}
		}()
		d.Eventually(time.Minute, fmt.Sprintf("%s uses %d to %d nanocores", c.Config.Metadata.Name, least, most), func() bool {
			cores = statsOf(c).GetCpu().GetUsageNanoCores()
			return cores != nil && least <= cores.GetValue() && cores.GetValue() <= most
		})
	}
	nanoCores(busy, 20e6, 600e6) // half a processor
	s := statsOf(busy)
	if isUnified() {
		t.Log("the processor's file is another on version 2")
	} else {
		usage, err := strconv.ParseUint(readFile(t, filepath.Join("/sys/fs/cgroup/cpuacct", cgroupOf(busy, "cpuacct"), "cpuacct.usage")), 10, 64)
		if got := s.GetCpu().GetUsageCoreNanoSeconds().GetValue(); err != nil || got > usage || usage-got > 10e9 {
			t.Errorf("usage %d, the kernel says %d, %v", got, usage, err)
		}
	}
	nanoCores(idle, 0, 100e6)

	m := statsOf(eater).GetMemory()
	if rss := m.GetRssBytes().GetValue(); rss < 20<<20 || rss > 40<<20 || m.GetUsageBytes().GetValue() < rss || m.GetWorkingSetBytes().GetValue() < 20<<20 {
		t.Errorf("a container that took 20 MiB: %v", m)
	}
	if available := m.GetAvailableBytes().GetValue(); available != 64<<20-m.GetWorkingSetBytes().GetValue() || m.GetPageFaults().GetValue() < 5120 {
		t.Errorf("available %d of 64 MiB, used %d, page faults %d", available, m.GetWorkingSetBytes().GetValue(), m.GetPageFaults().GetValue())
	}
	if m := statsOf(idle).GetMemory(); m.GetAvailableBytes() != nil || m.GetRssBytes().GetValue() > 10<<20 {
		t.Errorf("a container without a limit: %v", m)
	}
	file := cgroupFile(t, cgroupOf(eater, "memory"), "memory", "memory.usage_in_bytes", "memory.current")
	if kernel, err := strconv.ParseUint(readFile(t, file), 10, 64); err != nil || m.GetUsageBytes().GetValue() > kernel+4<<20 || kernel > m.GetUsageBytes().GetValue()+4<<20 {
		t.Errorf("usage %d, the kernel says %d, %v", m.GetUsageBytes().GetValue(), kernel, err)
	}
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil {
		for name, psi := range map[string]*runtimeapi.PsiStats{"cpu": s.GetCpu().GetPsi(), "memory": s.GetMemory().GetPsi(), "io": s.GetIo().GetPsi()} {
			if psi.GetSome() == nil || psi.GetFull() == nil {
				t.Errorf("pressure of %s = %v", name, psi)
			}
		}
		// It waits for the half of each period that its quota withholds.
		if some := s.GetCpu().GetPsi().GetSome(); some.GetTotal() < 1e8 {
			t.Errorf("a container that is throttled has waited %d ns", some.GetTotal())
		}
	}

	d.Eventually(30*time.Second, "the written layer is measured", func() bool { return statsOf(writer).GetWritableLayer() != nil })
	w := statsOf(writer).GetWritableLayer()
	if used := w.GetUsedBytes().GetValue(); used < 10<<20 || used > 11<<20 || w.GetInodesUsed().GetValue() < 4 || w.GetInodesUsed().GetValue() > 20 || w.GetFsId().GetMountpoint() == "" {
		t.Errorf("a container that wrote 10 MiB: %v", w)
	}

	if _, err := os.Stat(cgroupFile(t, cgroupOf(writer, "memory"), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")); err == nil {
		if swap := statsOf(writer).GetSwap(); swap.GetTimestamp() == 0 || swap.GetSwapUsageBytes() == nil || swap.GetSwapUsageBytes().GetValue()+swap.GetSwapAvailableBytes().GetValue() != 32<<20 {
			t.Errorf("a container that may swap 32 MiB: %v", swap)
		}
	}

	p := podStatsOf(pod)
	if _, err := os.Stat("/proc/pressure/cpu"); err == nil && (p.GetCpu().GetPsi().GetSome().GetTotal() == 0 || p.GetMemory().GetPsi().GetFull() == nil || p.GetIo().GetPsi().GetFull() == nil) {
		t.Errorf("pressure of the pod: %v, %v, %v", p.GetCpu().GetPsi(), p.GetMemory().GetPsi(), p.GetIo().GetPsi())
	}
	if p.GetCpu().GetUsageCoreNanoSeconds().GetValue() < s.GetCpu().GetUsageCoreNanoSeconds().GetValue() || p.GetMemory().GetUsageBytes().GetValue() < m.GetUsageBytes().GetValue() ||
		len(p.GetContainers()) != 4 {
		t.Errorf("the pod: %v", p)
	}
	// idle: sh and sleep; busy: sh; eater: probe; writer: sleep.
	if n := p.GetProcess().GetProcessCount().GetValue(); n != 5 {
		t.Errorf("%d processes, want 5", n)
	}
}

func TestStatsOfTheNetwork(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("traffic"))
	c := pod.Run(d.Shell("c", "echo up; nc -l -p 5000 >/dev/null; echo done; exec sleep 1000"))
	host := d.RunPod(d.Pod("host", harness.Namespaces(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD)))
	n := podStatsOf(pod).GetNetwork()
	if n.GetDefaultInterface().GetName() != "eth0" || len(n.GetInterfaces()) != 0 || n.GetTimestamp() == 0 {
		t.Fatalf("network = %v", n)
	}
	before := n.GetDefaultInterface().GetRxBytes().GetValue()
	c.WaitOutput("up")
	var conn net.Conn
	d.Eventually(10*time.Second, "the container listens", func() (ok bool) {
		var err error
		conn, err = net.Dial("tcp", net.JoinHostPort(pod.IPs()[0], "5000"))
		return err == nil
	})
	if _, err := conn.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	c.WaitOutput("done")
	got := podStatsOf(pod).GetNetwork().GetDefaultInterface()
	if rx := got.GetRxBytes().GetValue() - before; rx < 1<<20 || rx > 3<<19 || got.GetTxBytes().GetValue() == 0 || got.GetRxErrors().GetValue() != 0 {
		t.Errorf("after a MiB came in: %v, %d before", got, before)
	}
	if n := podStatsOf(host).GetNetwork(); n != nil {
		t.Errorf("a pod in the host's network counts %v", n)
	}
	d.Restart()
	if again := podStatsOf(pod).GetNetwork().GetDefaultInterface(); again.GetRxBytes().GetValue() < got.GetRxBytes().GetValue() {
		t.Errorf("after a restart: %v", again)
	}
	pod.Stop()
	if p := podStatsOf(pod); p.GetNetwork() != nil || p.GetCpu() != nil {
		t.Errorf("a stopped pod uses %v", p)
	}
}

func TestStatsLists(t *testing.T) {
	d := harness.Start(t)
	one, two := d.RunPod(d.Pod("one")), d.RunPod(d.Pod("two"))
	a, b := one.Run(d.Sleeper("a")), two.Run(d.Sleeper("b"))
	created := two.Create(d.Sleeper("created"))
	gone := two.Run(d.Shell("gone", "exit 0"))
	gone.Wait(10 * time.Second)
	list := func(f *runtimeapi.ContainerStatsFilter) string {
		r, err := d.Runtime.ListContainerStats(d.Context(), &runtimeapi.ListContainerStatsRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range r.Stats {
			if s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetUsageBytes().GetValue() == 0 {
				t.Errorf("stats = %v", s)
			}
			names = append(names, s.GetAttributes().GetMetadata().GetName())
		}
		return strings.Join(names, " ")
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerStatsFilter
		want   string
	}{
		{"all", nil, "b a"},
		{"start of an ID", &runtimeapi.ContainerStatsFilter{Id: a.ID[:20]}, "a"},
		{"pod", &runtimeapi.ContainerStatsFilter{PodSandboxId: two.ID}, "b"},
		{"label", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"container": "b"}}, "b"},
		{"what is not running", &runtimeapi.ContainerStatsFilter{Id: created.ID}, ""},
		{"label and pod", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"container": "b"}, PodSandboxId: one.ID}, ""},
	} {
		if got := list(tc.filter); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	// One that is not started, or has exited, has times and nothing else; one that is unknown is an error.
	for _, c := range []*harness.Container{created, gone} {
		if s := statsOf(c); s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetTimestamp() == 0 || s.GetMemory().GetUsageBytes().GetValue() != 0 {
			t.Errorf("%s: %v", c.Config.Metadata.Name, s)
		}
	}
	_, err := d.Runtime.ContainerStats(d.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "unknown"})
	wantCode(t, "stats of an unknown container", err, codes.NotFound)
	_, err = d.Runtime.PodSandboxStats(d.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "unknown"})
	wantCode(t, "stats of an unknown pod", err, codes.NotFound)
	two.Stop()
	r, err := d.Runtime.ListPodSandboxStats(d.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(r.Stats) != 1 || r.Stats[0].GetAttributes().GetId() != one.ID || len(r.Stats[0].GetLinux().GetContainers()) != 1 {
		t.Errorf("pods: %v, %v", r, err)
	}
	d.Restart()
	d.Eventually(10*time.Second, "the next daemon measures", func() bool { return list(nil) == "a" })
	_ = b
}

// TestStatsWhileThingsEnd: a list never fails because something of it ends.
func TestStatsWhileThingsEnd(t *testing.T) {
	d := harness.Start(t)
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		calls := 0
		for ; ; calls++ {
			select {
			case <-stop:
				done <- calls
				return
			default:
			}
			if _, err := d.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil {
				t.Errorf("ListContainerStats: %v", err)
			}
			if _, err := d.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil {
				t.Errorf("ListPodSandboxStats: %v", err)
			}
		}
	}()
	for i := range 10 {
		pod := d.RunPod(d.Pod("p" + strconv.Itoa(i)))
		pod.Run(d.Shell("short", "exit 0"))
		long := pod.Run(d.Sleeper("long"))
		if i%2 == 0 {
			long.Remove()
		}
		pod.Remove()
	}
	close(stop)
	if calls := <-done; calls == 0 {
		t.Error("nothing was listed")
	}
	d.AsBefore()
}

// BenchmarkListContainerStats is one call about 30 containers in 10 pods.
func BenchmarkListContainerStats(b *testing.B) {
	d := harness.Start(b)
	for i := range 10 {
		pod := d.RunPod(d.Pod("p" + strconv.Itoa(i)))
		for j := range 3 {
			pod.Run(d.Sleeper("c" + strconv.Itoa(j)))
		}
	}
	for b.Loop() {
		r, err := d.Runtime.ListContainerStats(b.Context(), &runtimeapi.ListContainerStatsRequest{})
		if err != nil || len(r.Stats) != 30 {
			b.Fatal(len(r.GetStats()), err)
		}
	}
}

// BenchmarkListPodSandboxStats is one call about 10 pods with 30 containers.
func BenchmarkListPodSandboxStats(b *testing.B) {
	d := harness.Start(b)
	for i := range 10 {
		pod := d.RunPod(d.Pod("p" + strconv.Itoa(i)))
		for j := range 3 {
			pod.Run(d.Sleeper("c" + strconv.Itoa(j)))
		}
	}
	for b.Loop() {
		r, err := d.Runtime.ListPodSandboxStats(b.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(r.Stats) != 10 {
			b.Fatal(len(r.GetStats()), err)
		}
	}
}
