package cri

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/sandbox/netns"
)

// sample finds the values of a metric: "label,label=value".
func samples(metrics []*runtimeapi.Metric, name string) []string {
	var all []string
	for _, m := range metrics {
		if m.Name == name {
			all = append(all, fmt.Sprintf("%s=%d", strings.Join(m.LabelValues, ","), m.GetValue().GetValue()))
		}
	}
	slices.Sort(all)
	return all
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "p1", Config: podConfig(), State: sandbox.PodReady}, {ID: "p2", Config: podConfig(), State: sandbox.PodNotReady}}
	w.sandboxes.containers = []sandbox.Container{
		{ID: "c1", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerRunning, StartedAt: time.Unix(5, 0)},
		{ID: "c2", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerExited},
		{ID: "c3", SandboxID: "p1", Config: containerConfig("r/\xff:1"), State: sandbox.ContainerRunning},
	}
	w.sandboxes.interfaces = []netns.Interface{{Name: "eth0", Rx: netns.Traffic{Bytes: 1, Dropped: 2}, Tx: netns.Traffic{Packets: 3}}, {Name: "net1"}}
	w.sandboxes.resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 20000, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: -1}
	described, err := w.runtime.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := w.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.PodMetrics) != 1 || answer.PodMetrics[0].PodSandboxId != "p1" || len(answer.PodMetrics[0].ContainerMetrics) != 2 {
		t.Fatalf("metrics = %v", answer)
	}
	pod := answer.PodMetrics[0]
	containers := map[string][]*runtimeapi.Metric{}
	for _, c := range pod.ContainerMetrics {
		containers[c.ContainerId] = c.Metrics
	}
	for _, tc := range []struct {
		metrics []*runtimeapi.Metric
		name    string
		want    []string
	}{
		{pod.Metrics, "container_network_receive_bytes_total", []string{",/pod,,p1,ns,n,eth0=1", ",/pod,,p1,ns,n,net1=0"}},
		{pod.Metrics, "container_network_transmit_packets_total", []string{",/pod,,p1,ns,n,eth0=3", ",/pod,,p1,ns,n,net1=0"}},
		{containers["c1"], "container_memory_working_set_bytes", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=60"}},
		{containers["c1"], "container_cpu_usage_seconds_total", []string{"c,/kubepods/c1,r/x:1,c1,ns,n,total=0"}},
		{containers["c1"], "container_cpu_user_seconds_total", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=2"}},
		{containers["c1"], "container_threads_max", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=0"}},
		{containers["c1"], "container_start_time_seconds", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=5"}},
		{containers["c1"], "container_spec_cpu_quota", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=20000"}},
		{containers["c1"], "container_spec_cpu_period", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=100000"}},
		{containers["c1"], "container_spec_cpu_shares", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=1024"}}, // the kernel's, when nobody asks for any
		{containers["c1"], "container_spec_memory_swap_limit_bytes", []string{"c,/kubepods/c1,r/x:1,c1,ns,n=0"}},
		{containers["c1"], "container_fs_usage_bytes", []string{"c,/kubepods/c1,r/x:1,c1,ns,n,/dev/vda=4096"}},
		{containers["c1"], "container_fs_writes_total", []string{"c,/kubepods/c1,r/x:1,c1,ns,n,/dev/vda=7"}},
		{containers["c1"], "container_blkio_device_usage_total", []string{"c,/kubepods/c1,r/x:1,c1,ns,n,/dev/vda,254,0,Read=100", "c,/kubepods/c1,r/x:1,c1,ns,n,/dev/vda,254,0,Write=0"}},
		{containers["c1"], "container_memory_failures_total", []string{"c,/kubepods/c1,r/x:1,c1,ns,n,pgfault,container=3", "c,/kubepods/c1,r/x:1,c1,ns,n,pgfault,hierarchy=3",
			"c,/kubepods/c1,r/x:1,c1,ns,n,pgmajfault,container=1", "c,/kubepods/c1,r/x:1,c1,ns,n,pgmajfault,hierarchy=1"}},
		{containers["c3"], "container_fs_usage_bytes", nil}, // its layer has not been measured
		{containers["c3"], "container_sockets", []string{"c,/kubepods/c3,r/\uFFFD:1,c3,ns,n=3"}},
	} {
		if got := samples(tc.metrics, tc.name); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	checkMetrics(t, described.Descriptors, answer.PodMetrics)
	for _, m := range containers["c1"] {
		if cached := m.Name == "container_fs_usage_bytes"; cached && m.Timestamp != 8e9 || !cached && m.Timestamp != 0 {
			t.Errorf("%s is of %d", m.Name, m.Timestamp)
		}
	}
	w.sandboxes.resources = nil // nothing was asked for
	if answer, err = w.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"container_spec_cpu_period": "=100000", "container_spec_cpu_shares": "=1024", "container_spec_memory_limit_bytes": "=0"} {
		if got := samples(answer.PodMetrics[0].ContainerMetrics[0].Metrics, name); len(got) != 1 || !strings.HasSuffix(got[0], want) {
			t.Errorf("%s without limits: %q, want %q", name, got, want)
		}
	}
	w.sandboxes.fail["ContainerDetails"] = sandbox.ErrNotFound
	answer, err = w.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(answer.PodMetrics) != 1 || len(answer.PodMetrics[0].ContainerMetrics) != 0 {
		t.Errorf("containers that end meanwhile: %v, %v", answer, err)
	}
	w.sandboxes.fail["PodStats"] = sandbox.ErrNotFound
	if answer, err = w.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{}); err != nil || len(answer.PodMetrics) != 0 {
		t.Errorf("a sandbox that goes meanwhile: %v, %v", answer, err)
	}
	w.sandboxes.fail["Filesystem"] = fmt.Errorf("trouble")
	if _, err = w.runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("no file system: %v", err)
	}
}

// checkMetrics holds metrics against the rules of the CRI and of Prometheus, which drops a whole answer for one pair of equal samples.
func checkMetrics(t *testing.T, described []*runtimeapi.MetricDescriptor, pods []*runtimeapi.PodSandboxMetrics) {
	t.Helper()
	labels := map[string]int{}
	for _, d := range described {
		if _, twice := labels[d.Name]; twice || d.Help == "" || !strings.HasPrefix(d.Name, "container_") {
			t.Errorf("descriptor %v", d)
		}
		keys := slices.Clone(d.LabelKeys)
		slices.Sort(keys)
		if len(slices.Compact(keys)) != len(d.LabelKeys) {
			t.Errorf("%s has the labels %q", d.Name, d.LabelKeys)
		}
		labels[d.Name] = len(d.LabelKeys)
	}
	seen := map[string]bool{}
	types := map[string]runtimeapi.MetricType{}
	check := func(metrics []*runtimeapi.Metric) {
		for _, m := range metrics {
			key := m.Name + "\x00" + strings.Join(m.LabelValues, "\x00")
			if n, ok := labels[m.Name]; !ok || len(m.LabelValues) != n || m.Value == nil || seen[key] {
				t.Errorf("%v: %d labels are described, seen before: %v", m, n, seen[key])
			}
			seen[key] = true
			if before, ok := types[m.Name]; ok && before != m.MetricType {
				t.Errorf("%s has two types", m.Name)
			}
			types[m.Name] = m.MetricType
		}
	}
	for _, p := range pods {
		check(p.Metrics)
		for _, c := range p.ContainerMetrics {
			check(c.Metrics)
		}
	}
}
