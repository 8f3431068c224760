package integration_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// cadvisorMetrics are those that the kubelet shows for each container on any Linux host, whatever runs in it.
var cadvisorMetrics = []string{
	"container_cpu_usage_seconds_total", "container_cpu_user_seconds_total", "container_cpu_system_seconds_total", "container_cpu_cfs_periods_total",
	"container_cpu_cfs_throttled_periods_total", "container_cpu_cfs_throttled_seconds_total", "container_memory_usage_bytes", "container_memory_working_set_bytes",
	"container_memory_rss", "container_memory_cache", "container_memory_mapped_file", "container_memory_swap", "container_memory_kernel_usage",
	"container_memory_max_usage_bytes", "container_memory_failcnt", "container_memory_failures_total", "container_oom_events_total", "container_fs_usage_bytes",
	"container_fs_limit_bytes", "container_fs_inodes_total", "container_fs_inodes_free", "container_processes", "container_threads", "container_threads_max",
	"container_file_descriptors", "container_sockets", "container_ulimits_soft", "container_last_seen", "container_start_time_seconds", "container_spec_cpu_period",
	"container_spec_cpu_quota", "container_spec_cpu_shares", "container_spec_memory_limit_bytes", "container_spec_memory_swap_limit_bytes",
	"container_spec_memory_reservation_limit_bytes",
}

var networkMetrics = []string{
	"container_network_receive_bytes_total", "container_network_receive_errors_total", "container_network_receive_packets_dropped_total", "container_network_receive_packets_total",
	"container_network_transmit_bytes_total", "container_network_transmit_errors_total", "container_network_transmit_packets_dropped_total", "container_network_transmit_packets_total",
}

// diskMetrics are there where the kernel counts what devices do, pressureMetrics where it has PSI, and hugepageMetrics where it has huge pages.
var diskMetrics = []string{"container_blkio_device_usage_total", "container_fs_reads_bytes_total", "container_fs_reads_total", "container_fs_writes_bytes_total",
	"container_fs_writes_total"}

var pressureMetrics = []string{"container_pressure_cpu_stalled_seconds_total", "container_pressure_cpu_waiting_seconds_total",
	"container_pressure_io_stalled_seconds_total", "container_pressure_io_waiting_seconds_total", "container_pressure_memory_stalled_seconds_total",
	"container_pressure_memory_waiting_seconds_total"}

var hugepageMetrics = []string{"container_hugetlb_max_usage_bytes", "container_hugetlb_usage_bytes"}

// metricsOf are the metrics of one pod, by name and then by what the last labels say.
func metricsOf(pod *harness.Pod, containerID string) map[string]map[string]uint64 {
	pod.T.Helper()
	described, err := pod.Runtime.ListMetricDescriptors(pod.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		pod.T.Fatal(err)
	}
	keys := map[string]int{}
	for _, d := range described.Descriptors {
		keys[d.Name] = len(d.LabelKeys)
	}
	r, err := pod.Runtime.ListPodSandboxMetrics(pod.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		pod.T.Fatal(err)
	}
	all := map[string]map[string]uint64{}
	add := func(metrics []*runtimeapi.Metric) {
		for _, m := range metrics {
			if len(m.LabelValues) != keys[m.Name] {
				pod.T.Errorf("%v, described with %d labels", m, keys[m.Name])
				continue
			}
			if all[m.Name] == nil {
				all[m.Name] = map[string]uint64{}
			}
			all[m.Name][strings.Join(m.LabelValues[6:], ",")] = m.GetValue().GetValue()
		}
	}
	for _, p := range r.PodMetrics {
		if p.PodSandboxId != pod.ID {
			continue
		}
		add(p.Metrics)
		for _, c := range p.ContainerMetrics {
			if c.ContainerId == containerID {
				add(c.Metrics)
			}
		}
	}
	return all
}

func TestMetricsOfCadvisor(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("metrics"))
	c := pod.Run(d.Shell("c", "exec 7</dev/null; dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; nc -l -p 5000 & echo up; while :; do :; done",
		harness.Resources(&resources{CpuPeriod: 50000, CpuQuota: 10000, CpuShares: 512, MemoryLimitInBytes: 64 << 20})))
	c.WaitOutput("up")
	var m map[string]map[string]uint64
	d.Eventually(20*time.Second, "the container has been throttled and listens, and its layer is measured", func() bool {
		m = metricsOf(pod, c.ID)
		return m["container_cpu_cfs_throttled_periods_total"][""] > 3 && len(m["container_fs_usage_bytes"]) > 0 && m["container_sockets"][""] > 0
	})
	all := slices.Concat(cadvisorMetrics, networkMetrics, diskMetrics, pressureMetrics, hugepageMetrics)
	if len(all) != 56 {
		t.Fatalf("%d names, want the 56 of cAdvisor", len(all))
	}
	has := func(path string) bool { _, err := os.Stat(path); return err == nil }
	sizes, _ := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-*")
	for _, name := range all {
		switch {
		case slices.Contains(pressureMetrics, name) && !has("/proc/pressure/cpu"):
		case slices.Contains(hugepageMetrics, name) && len(sizes) == 0:
		case slices.Contains(diskMetrics, name) && isUnified() && !has("/sys/fs/cgroup/io.stat"):
		case len(m[name]) == 0:
			t.Errorf("%s is missing", name)
		}
	}
	for name, want := range map[string]uint64{"container_spec_cpu_period": 50000, "container_spec_cpu_quota": 10000, "container_spec_cpu_shares": 512,
		"container_spec_memory_limit_bytes": 64 << 20, "container_processes": 2, "container_oom_events_total": 0} {
		if got := m[name][""]; got != want {
			t.Errorf("%s = %d, want %d", name, got, want)
		}
	}
	for name, least := range map[string]uint64{"container_cpu_cfs_periods_total": 4, "container_memory_working_set_bytes": 1 << 16, "container_memory_max_usage_bytes": 3 << 20,
		"container_file_descriptors": 6, "container_sockets": 1, "container_threads": 2, "container_start_time_seconds": uint64(time.Now().Add(-time.Hour).Unix())} {
		if got := m[name][""]; got < least {
			t.Errorf("%s = %d, want at least %d", name, got, least)
		}
	}
	for device, used := range m["container_fs_usage_bytes"] {
		if used < 3<<20 || used > 4<<20 || device == "" || m["container_fs_limit_bytes"][device] < used {
			t.Errorf("%d bytes are written to %q of %d bytes", used, device, m["container_fs_limit_bytes"][device])
		}
	}
	if rx, ok := m["container_network_receive_bytes_total"]["eth0"]; !ok || len(m["container_network_receive_bytes_total"]) != 1 {
		t.Errorf("received: %v, %d", m["container_network_receive_bytes_total"], rx)
	}
	c.Stop(0)
	if m := metricsOf(pod, c.ID); len(m["container_processes"]) != 0 || len(m["container_network_receive_bytes_total"]) != 1 {
		t.Errorf("of a stopped container: %v", m)
	}
	pod.Stop()
	if m := metricsOf(pod, c.ID); len(m) != 0 {
		t.Errorf("of a stopped pod: %v", m)
	}
}

// TestStatusSaysWhatTheKernelKeeps: it rounds memory to pages and clamps shares.
func TestStatusSaysWhatTheKernelKeeps(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("status"))
	c := pod.Create(d.Sleeper("c", harness.Resources(&resources{MemoryLimitInBytes: 50_000_001, CpuShares: 1, CpuQuota: 20000, CpuPeriod: 100000})))
	if got := c.Status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 50_000_001 || got.GetCpuShares() != 1 {
		t.Errorf("of a created container: %v", got)
	}
	c.Start()
	if got := c.Status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 49999872 || got.GetCpuShares() != 2 && !isUnified() || got.GetCpuQuota() != 20000 || got.GetCpuPeriod() != 100000 {
		t.Errorf("of a running container: %v", got)
	}
	free := pod.Run(d.Sleeper("free"))
	if got := free.Status().GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 0 || got.GetCpuQuota() != 0 || got.GetCpuShares() != 0 || got.GetMemorySwapLimitInBytes() != 0 || got.GetCpusetCpus() != "" {
		t.Errorf("of a container without limits: %v", got)
	}
}
