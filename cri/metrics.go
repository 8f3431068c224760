package cri

import (
	"cmp"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
)

// metric is one metric by the name that cAdvisor gave it: the kubelet shows it at /metrics/cadvisor, and people's dashboards and
// alerts know it.
type metric struct {
	name, help string
	labels     []string // besides metricLabels
	counter    func(*facts) []value
	gauge      func(*facts) []value
}

// metricLabels are those that every metric has, as cAdvisor means them: id is the cgroup, name the ID.
var metricLabels = []string{"container", "id", "image", "name", "namespace", "pod"}

// value is one number. At is when it was found, if not now.
type value struct {
	n      uint64
	labels []string
	at     time.Time
}

// facts are what metrics are made of, about one container or one sandbox.
type facts struct {
	now        time.Time
	started    time.Time
	stats      sandbox.Stats
	details    sandbox.Details
	resources  *runtimeapi.LinuxContainerResources
	layer      imageservice.LayerUsage
	layerKnown bool
	filesystem imageservice.Filesystem
	interfaces []interfaceUsage
}

// interfaceUsage is the traffic of one network interface.
type interfaceUsage struct {
	name   string
	rx, tx traffic
}

type traffic struct{ bytes, packets, errors, dropped uint64 }

func one(n uint64) []value { return []value{{n: n}} }

// seconds of a metric are whole: the CRI has no fractions.
func wholeSeconds(d time.Duration) []value { return one(uint64(d / time.Second)) }

// zeroUnlimited is 0 for what has no limit, as cAdvisor has it.
func zeroUnlimited(n uint64) []value {
	if n == sandbox.Unlimited {
		n = 0
	}
	return one(n)
}

// limit is 0 for a limit of the CRI that is none.
func limit(n int64) []value {
	return one(uint64(max(0, n)))
}

// What the kernel gives a cgroup that nobody has set anything of: such limits are not among a container's resources.
const (
	defaultPeriod = 100_000 // microseconds
	defaultShares = 1024
)

// containerMetrics are those of running containers.
var containerMetrics = []metric{
	{name: "container_last_seen", help: "Last time a container was seen by the exporter, in seconds since 1970.",
		gauge: func(f *facts) []value { return one(uint64(f.now.Unix())) }},
	{name: "container_start_time_seconds", help: "Start time of the container, in seconds since 1970.",
		gauge: func(f *facts) []value { return one(uint64(max(0, f.started.Unix()))) }},

	{name: "container_cpu_usage_seconds_total", help: "Cumulative processor time consumed, in seconds.", labels: []string{"cpu"},
		counter: func(f *facts) []value {
			return []value{{n: uint64(f.stats.CPU / time.Second), labels: []string{"total"}}}
		}},
	{name: "container_cpu_user_seconds_total", help: "Cumulative processor time consumed by user code, in seconds.",
		counter: func(f *facts) []value { return wholeSeconds(f.details.User) }},
	{name: "container_cpu_system_seconds_total", help: "Cumulative processor time consumed by the kernel, in seconds.",
		counter: func(f *facts) []value { return wholeSeconds(f.details.System) }},
	{name: "container_cpu_cfs_periods_total", help: "Number of elapsed periods of the processor quota.",
		counter: func(f *facts) []value { return one(f.details.Periods) }},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Number of periods in which the container was throttled.",
		counter: func(f *facts) []value { return one(f.details.ThrottledPeriods) }},
	{name: "container_cpu_cfs_throttled_seconds_total", help: "Time for which the container was throttled, in seconds.",
		counter: func(f *facts) []value { return wholeSeconds(f.details.Throttled) }},

	{name: "container_memory_usage_bytes", help: "Memory in use in bytes, whenever it was last accessed.",
		gauge: func(f *facts) []value { return one(f.stats.Memory.Usage) }},
	{name: "container_memory_working_set_bytes", help: "Working set in bytes: memory in use without inactive file pages.",
		gauge: func(f *facts) []value { return one(f.stats.Memory.WorkingSet) }},
	{name: "container_memory_rss", help: "Anonymous memory in bytes.", gauge: func(f *facts) []value { return one(f.stats.Memory.RSS) }},
	{name: "container_memory_cache", help: "Page cache in bytes.", gauge: func(f *facts) []value { return one(f.stats.Memory.Cache) }},
	{name: "container_memory_mapped_file", help: "Mapped files in bytes.", gauge: func(f *facts) []value { return one(f.stats.Memory.Mapped) }},
	{name: "container_memory_total_active_file_bytes", help: "Active file pages in bytes.", gauge: func(f *facts) []value { return one(f.stats.Memory.ActiveFile) }},
	{name: "container_memory_total_inactive_file_bytes", help: "Inactive file pages in bytes.", gauge: func(f *facts) []value { return one(f.stats.Memory.Inactive) }},
	{name: "container_memory_swap", help: "Swap in use in bytes.", gauge: func(f *facts) []value { return one(f.stats.Swap.Usage) }},
	{name: "container_memory_kernel_usage", help: "Kernel memory in bytes.", gauge: func(f *facts) []value { return one(f.details.MemoryKernel) }},
	{name: "container_memory_max_usage_bytes", help: "The most memory that was in use, in bytes.", gauge: func(f *facts) []value { return one(f.details.MemoryPeak) }},
	{name: "container_memory_failcnt", help: "Number of times that memory hit its limit.", counter: func(f *facts) []value { return one(f.details.MemoryHits) }},
	{name: "container_memory_failures_total", help: "Cumulative count of page faults.", labels: []string{"failure_type", "scope"}, counter: memoryFailures},
	{name: "container_oom_events_total", help: "Number of processes killed for want of memory.", counter: func(f *facts) []value { return one(f.details.OOMKills) }},
	{name: "container_hugetlb_usage_bytes", help: "Huge pages in use in bytes.", labels: []string{"pagesize"},
		gauge: hugepages(func(h sandbox.HugepageUsage) uint64 { return h.Usage })},
	{name: "container_hugetlb_max_usage_bytes", help: "The most huge pages that were in use, in bytes.", labels: []string{"pagesize"},
		gauge: hugepages(func(h sandbox.HugepageUsage) uint64 { return h.Peak })},

	{name: "container_fs_usage_bytes", help: "What the container has written to its root filesystem, in bytes.", labels: []string{"device"},
		gauge: func(f *facts) []value {
			if !f.layerKnown {
				return nil
			}
			return []value{{n: f.layer.Bytes, labels: []string{f.filesystem.Device}, at: f.layer.At}}
		}},
	{name: "container_fs_limit_bytes", help: "Size of the filesystem that the container writes to, in bytes.", labels: []string{"device"},
		gauge: onFilesystem(func(f imageservice.Filesystem) uint64 { return f.Bytes })},
	{name: "container_fs_inodes_total", help: "Inodes of the filesystem that the container writes to.", labels: []string{"device"},
		gauge: onFilesystem(func(f imageservice.Filesystem) uint64 { return f.Inodes })},
	{name: "container_fs_inodes_free", help: "Free inodes of the filesystem that the container writes to.", labels: []string{"device"},
		gauge: onFilesystem(func(f imageservice.Filesystem) uint64 { return f.InodesFree })},
	{name: "container_fs_reads_bytes_total", help: "Cumulative count of bytes read from a device.", labels: []string{"device"},
		counter: devices(func(d sandbox.DeviceIO) uint64 { return d.ReadBytes })},
	{name: "container_fs_reads_total", help: "Cumulative count of reads from a device.", labels: []string{"device"},
		counter: devices(func(d sandbox.DeviceIO) uint64 { return d.Reads })},
	{name: "container_fs_writes_bytes_total", help: "Cumulative count of bytes written to a device.", labels: []string{"device"},
		counter: devices(func(d sandbox.DeviceIO) uint64 { return d.WriteBytes })},
	{name: "container_fs_writes_total", help: "Cumulative count of writes to a device.", labels: []string{"device"},
		counter: devices(func(d sandbox.DeviceIO) uint64 { return d.Writes })},
	{name: "container_blkio_device_usage_total", help: "Cumulative count of bytes read from and written to a device.",
		labels: []string{"device", "major", "minor", "operation"}, counter: deviceOperations},

	{name: "container_processes", help: "Number of processes.", gauge: func(f *facts) []value { return one(f.details.Processes) }},
	{name: "container_threads", help: "Number of threads.", gauge: func(f *facts) []value { return one(f.details.Threads) }},
	{name: "container_threads_max", help: "The most threads that there may be; 0 is no limit.", gauge: func(f *facts) []value { return zeroUnlimited(f.details.MaxThreads) }},
	{name: "container_file_descriptors", help: "Number of open file descriptors.", gauge: func(f *facts) []value { return one(f.details.Descriptors) }},
	{name: "container_sockets", help: "Number of open sockets.", gauge: func(f *facts) []value { return one(f.details.Sockets) }},
	{name: "container_ulimits_soft", help: "Soft limits of the container's first process.", labels: []string{"ulimit"},
		gauge: func(f *facts) []value {
			return []value{{n: f.details.OpenFiles, labels: []string{"max_open_files"}}}
		}},

	{name: "container_spec_cpu_period", help: "Period of the processor quota in microseconds.", gauge: func(f *facts) []value { return limit(cmp.Or(f.resources.GetCpuPeriod(), defaultPeriod)) }},
	{name: "container_spec_cpu_quota", help: "Processor quota in microseconds a period.",
		gauge: func(f *facts) []value {
			if f.resources.GetCpuQuota() <= 0 {
				return nil
			}
			return limit(f.resources.GetCpuQuota())
		}},
	{name: "container_spec_cpu_shares", help: "Share of the processors, relative to other containers.",
		gauge: func(f *facts) []value { return limit(cmp.Or(f.resources.GetCpuShares(), defaultShares)) }},
	{name: "container_spec_memory_limit_bytes", help: "Memory limit in bytes; 0 is none.", gauge: func(f *facts) []value { return limit(f.resources.GetMemoryLimitInBytes()) }},
	{name: "container_spec_memory_swap_limit_bytes", help: "Limit of memory and swap together, in bytes; 0 is none.",
		gauge: func(f *facts) []value { return limit(f.resources.GetMemorySwapLimitInBytes()) }},
	{name: "container_spec_memory_reservation_limit_bytes", help: "Memory that is kept for the container, in bytes; 0 is none.",
		gauge: func(f *facts) []value { return one(f.details.MemoryReserved) }},

	{name: "container_pressure_cpu_waiting_seconds_total", help: "Time for which tasks waited for a processor, in seconds.",
		counter: stalled(func(s sandbox.Stats) *sandbox.PSI { return s.Pressure.CPU }, some)},
	{name: "container_pressure_cpu_stalled_seconds_total", help: "Time for which all tasks waited for a processor, in seconds.",
		counter: stalled(func(s sandbox.Stats) *sandbox.PSI { return s.Pressure.CPU }, full)},
	{name: "container_pressure_memory_waiting_seconds_total", help: "Time for which tasks waited for memory, in seconds.",
		counter: stalled(func(s sandbox.Stats) *sandbox.PSI { return s.Pressure.Memory }, some)},
	{name: "container_pressure_memory_stalled_seconds_total", help: "Time for which all tasks waited for memory, in seconds.",
		counter: stalled(func(s sandbox.Stats) *sandbox.PSI { return s.Pressure.Memory }, full)},
	{name: "container_pressure_io_waiting_seconds_total", help: "Time for which tasks waited for input and output, in seconds.",
		counter: stalled(func(s sandbox.Stats) *sandbox.PSI { return s.Pressure.IO }, some)},
	{name: "container_pressure_io_stalled_seconds_total", help: "Time for which all tasks waited for input and output, in seconds.",
		counter: stalled(func(s sandbox.Stats) *sandbox.PSI { return s.Pressure.IO }, full)},
}

// podMetrics are those of ready sandboxes: the network is theirs, not the containers'.
var podMetrics = []metric{
	{name: "container_network_receive_bytes_total", help: "Cumulative count of bytes received.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.rx.bytes })},
	{name: "container_network_receive_packets_total", help: "Cumulative count of packets received.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.rx.packets })},
	{name: "container_network_receive_packets_dropped_total", help: "Cumulative count of packets dropped while receiving.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.rx.dropped })},
	{name: "container_network_receive_errors_total", help: "Cumulative count of errors while receiving.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.rx.errors })},
	{name: "container_network_transmit_bytes_total", help: "Cumulative count of bytes sent.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.tx.bytes })},
	{name: "container_network_transmit_packets_total", help: "Cumulative count of packets sent.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.tx.packets })},
	{name: "container_network_transmit_packets_dropped_total", help: "Cumulative count of packets dropped while sending.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.tx.dropped })},
	{name: "container_network_transmit_errors_total", help: "Cumulative count of errors while sending.", labels: []string{"interface"},
		counter: network(func(i interfaceUsage) uint64 { return i.tx.errors })},
}

// memoryFailures counts page faults. A container has no cgroups of its own below it that would be counted apart, so both scopes are the same.
func memoryFailures(f *facts) []value {
	var all []value
	for _, scope := range []string{"container", "hierarchy"} {
		all = append(all, value{n: f.stats.Memory.Faults, labels: []string{"pgfault", scope}}, value{n: f.stats.Memory.MajorFaults, labels: []string{"pgmajfault", scope}})
	}
	return all
}

func hugepages(of func(sandbox.HugepageUsage) uint64) func(*facts) []value {
	return func(f *facts) []value {
		var all []value
		for _, h := range f.details.Hugepages {
			all = append(all, value{n: of(h), labels: []string{h.Size}})
		}
		return all
	}
}

func onFilesystem(of func(imageservice.Filesystem) uint64) func(*facts) []value {
	return func(f *facts) []value {
		return []value{{n: of(f.filesystem), labels: []string{f.filesystem.Device}}}
	}
}

// devices are those that the container has used, and at least the one that it writes to: a container that is idle has zeros.
func (f *facts) devices() []sandbox.DeviceIO {
	if len(f.details.Devices) > 0 || f.details.Devices == nil {
		return f.details.Devices
	}
	none := sandbox.DeviceIO{Name: f.filesystem.Device}
	none.Major, none.Minor = f.filesystem.Major, f.filesystem.Minor
	return []sandbox.DeviceIO{none}
}

func devices(of func(sandbox.DeviceIO) uint64) func(*facts) []value {
	return func(f *facts) []value {
		var all []value
		for _, d := range f.devices() {
			all = append(all, value{n: of(d), labels: []string{d.Name}})
		}
		return all
	}
}

func deviceOperations(f *facts) []value {
	var all []value
	for _, d := range f.devices() {
		major, minor := strconv.FormatUint(uint64(d.Major), 10), strconv.FormatUint(uint64(d.Minor), 10)
		all = append(all, value{n: d.ReadBytes, labels: []string{d.Name, major, minor, "Read"}}, value{n: d.WriteBytes, labels: []string{d.Name, major, minor, "Write"}})
	}
	return all
}

func some(p *sandbox.PSI) time.Duration { return p.Some.Total }
func full(p *sandbox.PSI) time.Duration { return p.Full.Total }

func stalled(of func(sandbox.Stats) *sandbox.PSI, total func(*sandbox.PSI) time.Duration) func(*facts) []value {
	return func(f *facts) []value {
		p := of(f.stats)
		if p == nil {
			return nil
		}
		return wholeSeconds(total(p))
	}
}

func network(of func(interfaceUsage) uint64) func(*facts) []value {
	return func(f *facts) []value {
		var all []value
		for _, i := range f.interfaces {
			all = append(all, value{n: of(i), labels: []string{i.name}})
		}
		return all
	}
}
