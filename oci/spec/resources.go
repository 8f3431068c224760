package spec

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const fieldResources = "config.linux.resources."

// Bounds of the kernel's bandwidth control (kernel/sched/core.c, tg_set_cfs_bandwidth), in microseconds.
const (
	minPeriod = 1000
	maxPeriod = 1000000
)

// unifiedKey is the name of a control file of a controller. The files of the cgroup itself, cgroup.*, are berth's.
var unifiedKey = regexp.MustCompile(`^(cpu|cpuset|io|memory|pids|hugetlb|rdma|misc)(\.[A-Za-z0-9_]+)+$`)

// pageSize is how the kernel names its sizes of huge pages.
var pageSize = regexp.MustCompile(`^[1-9][0-9]{0,9}(KB|MB|GB)$`)

// resources translates the limits of the request.
func (b *builder) resources() error {
	r, err := Resources(b.in.Container.GetLinux().GetResources(), b.in.Host)
	if err != nil {
		return err
	}
	r.Spec.Devices = b.spec.Linux.Resources.Devices
	b.spec.Linux.Resources = r.Spec
	b.notes = append(b.notes, r.Notes...)
	return nil
}

// Limits are resources as the cgroups take them.
type Limits struct {
	Spec  *specs.LinuxResources
	Notes []Note
}

// Resources translates a request's limits, for a container, for a pod, or for an update. Device rules are not among them.
func Resources(req *runtimeapi.LinuxContainerResources, host Host) (Limits, error) {
	if err := checkResources(req); err != nil {
		return Limits{}, err
	}
	if len(req.GetUnified()) > 0 && !host.CgroupV2 {
		return Limits{}, invalid(fieldResources+"unified", slices.Sorted(maps.Keys(req.GetUnified()))[0], "must be empty: this host uses cgroup v1")
	}
	if limit, swap := req.GetMemoryLimitInBytes(), req.GetMemorySwapLimitInBytes(); swap > 0 && limit <= 0 && host.SwapLimit {
		return Limits{}, invalid(fieldResources+"memory_swap_limit_in_bytes", i64toa(swap), "must not be set without memory_limit_in_bytes: it limits both together")
	}
	for _, key := range slices.Sorted(maps.Keys(req.GetUnified())) {
		if controller, _, _ := strings.Cut(key, "."); host.Controllers != nil && !slices.Contains(host.Controllers, controller) {
			return Limits{}, invalid(fieldResources+"unified", key, "must be of a cgroup controller that the host has: %s", strings.Join(host.Controllers, ", "))
		}
	}
	out := Limits{Spec: &specs.LinuxResources{CPU: cpuOf(req), Memory: memoryOf(req, host), Unified: maps.Clone(req.GetUnified())}}
	if host.PidsLimit > 0 {
		limit := host.PidsLimit
		out.Spec.Pids = &specs.LinuxPids{Limit: &limit}
	}
	for _, h := range req.GetHugepageLimits() {
		out.Spec.HugepageLimits = append(out.Spec.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	out.drop(host)
	if swap := req.GetMemorySwapLimitInBytes(); swap > 0 && !host.SwapLimit {
		out.Notes = append(out.Notes, Note{fieldResources + "memory_swap_limit_in_bytes", i64toa(swap), "dropped: the kernel does not account swap"})
	}
	return out, nil
}

// drop takes away what no controller of the host can enforce.
func (l *Limits) drop(host Host) {
	r := l.Spec
	for _, c := range []struct {
		controller, field string
		isSet             bool
		clear             func()
	}{
		{"cpu", "cpu_quota", r.CPU != nil && (r.CPU.Quota != nil || r.CPU.Shares != nil || r.CPU.Period != nil),
			func() { r.CPU.Quota, r.CPU.Shares, r.CPU.Period = nil, nil, nil }},
		{"cpuset", "cpuset_cpus", r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != ""), func() { r.CPU.Cpus, r.CPU.Mems = "", "" }},
		{"memory", "memory_limit_in_bytes", r.Memory != nil, func() { r.Memory = nil }},
		{"hugetlb", "hugepage_limits", len(r.HugepageLimits) > 0, func() { r.HugepageLimits = nil }},
		{"pids", "pids", r.Pids != nil, func() { r.Pids = nil }},
	} {
		if c.isSet && host.Controllers != nil && !slices.Contains(host.Controllers, c.controller) {
			l.Notes = append(l.Notes, Note{fieldResources + c.field, c.controller, "dropped: the host has no such cgroup controller"})
			c.clear()
		}
	}
	if r.CPU != nil && *r.CPU == (specs.LinuxCPU{}) {
		r.CPU = nil
	}
}

func cpuOf(req *runtimeapi.LinuxContainerResources) *specs.LinuxCPU {
	c := specs.LinuxCPU{Cpus: req.GetCpusetCpus(), Mems: req.GetCpusetMems()}
	if n := uint64(req.GetCpuShares()); n != 0 {
		c.Shares = &n
	}
	if n := req.GetCpuQuota(); n != 0 {
		c.Quota = &n
	}
	if n := uint64(req.GetCpuPeriod()); n != 0 {
		c.Period = &n
	}
	if c == (specs.LinuxCPU{}) {
		return nil
	}
	return &c
}

// memoryOf sets the limit for memory and swap together to that for memory, unless the request says otherwise: Kubernetes
// counts on containers not swapping.
func memoryOf(req *runtimeapi.LinuxContainerResources, host Host) *specs.LinuxMemory {
	limit, swap := req.GetMemoryLimitInBytes(), req.GetMemorySwapLimitInBytes()
	if swap == 0 {
		swap = limit
	}
	var m specs.LinuxMemory
	if limit != 0 {
		m.Limit = &limit
	}
	if swap != 0 && host.SwapLimit {
		m.Swap = &swap
	}
	if m == (specs.LinuxMemory{}) {
		return nil
	}
	return &m
}

// checkResources checks limits without the host.
func checkResources(r *runtimeapi.LinuxContainerResources) error {
	for _, n := range []struct {
		field       string
		value       int64
		least, most int64
		unlimited   bool // -1 is a value too
	}{
		{"cpu_period", r.GetCpuPeriod(), minPeriod, maxPeriod, false},
		{"cpu_quota", r.GetCpuQuota(), minPeriod, 1 << 44, true},
		{"cpu_shares", r.GetCpuShares(), 0, 1 << 32, false},
		{"memory_limit_in_bytes", r.GetMemoryLimitInBytes(), 0, 1<<63 - 1, true},
		{"memory_swap_limit_in_bytes", r.GetMemorySwapLimitInBytes(), 0, 1<<63 - 1, true},
		{"oom_score_adj", r.GetOomScoreAdj(), -1000, 1000, false},
	} {
		if v := n.value; v == 0 || v >= n.least && v <= n.most || v == -1 && n.unlimited {
			continue
		}
		if n.unlimited {
			return invalid(fieldResources+n.field, i64toa(n.value), "must be %d to %d, or -1 for no limit", n.least, n.most)
		}
		return invalid(fieldResources+n.field, i64toa(n.value), "must be %d to %d", n.least, n.most)
	}
	if limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes(); limit > 0 && swap > 0 && swap < limit {
		return invalid(fieldResources+"memory_swap_limit_in_bytes", i64toa(swap), "must not be below memory_limit_in_bytes, %d: it limits both together", limit)
	}
	for _, s := range []struct{ field, value string }{{"cpuset_cpus", r.GetCpusetCpus()}, {"cpuset_mems", r.GetCpusetMems()}} {
		if !isCPUList(s.value) {
			return invalid(fieldResources+s.field, s.value, "must be a list of numbers and ranges, such as 0-2,7")
		}
	}
	for _, h := range r.GetHugepageLimits() {
		if !pageSize.MatchString(h.GetPageSize()) {
			return invalid(fieldResources+"hugepage_limits.page_size", h.GetPageSize(), "must be a size such as 2MB or 1GB")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.GetUnified())) {
		if !unifiedKey.MatchString(key) {
			return invalid(fieldResources+"unified", key, "must be a controller's file, such as memory.high")
		}
		if v := r.GetUnified()[key]; strings.ContainsAny(v, "\n\x00") || len(v) > 4096 {
			return invalid(fieldResources+"unified."+key, v, "must be one line")
		}
	}
	return nil
}

// isCPUList tells whether s is a list as in cpuset(7), or empty.
func isCPUList(s string) bool {
	if s == "" {
		return true
	}
	for part := range strings.SplitSeq(s, ",") {
		first, last, ranged := strings.Cut(part, "-")
		if !ranged {
			last = first
		}
		if !digits(first) || !digits(last) || len(first) > 5 || len(last) > 5 {
			return false
		}
		from, _ := strconv.Atoi(first)
		if to, _ := strconv.Atoi(last); to < from {
			return false
		}
	}
	return true
}
