package spec

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MergeResources is what a container may use after an update: what the update sets, and the rest as it was. Neither is changed. A limit
// for memory and swap together that the update leaves out stays, but is never below the one for memory, and stays equal to
// it where it was: such a container does not swap.
func MergeResources(was, update *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if was != nil {
		out = proto.CloneOf(was)
	}
	for _, n := range []struct {
		to   *int64
		from int64
	}{
		{&out.CpuPeriod, update.GetCpuPeriod()}, {&out.CpuQuota, update.GetCpuQuota()}, {&out.CpuShares, update.GetCpuShares()},
		{&out.OomScoreAdj, update.GetOomScoreAdj()},
		{&out.MemoryLimitInBytes, update.GetMemoryLimitInBytes()}, {&out.MemorySwapLimitInBytes, update.GetMemorySwapLimitInBytes()},
	} {
		if n.from != 0 {
			*n.to = n.from
		}
	}
	if update.GetMemoryLimitInBytes() != 0 && update.GetMemorySwapLimitInBytes() == 0 && was.GetMemorySwapLimitInBytes() > 0 {
		limit := out.MemoryLimitInBytes
		if limit < 0 || was.MemorySwapLimitInBytes == was.MemoryLimitInBytes || was.MemorySwapLimitInBytes < limit {
			out.MemorySwapLimitInBytes = limit
		}
	}
	if update.GetCpusetCpus() != "" {
		out.CpusetCpus = update.CpusetCpus
	}
	if update.GetCpusetMems() != "" {
		out.CpusetMems = update.CpusetMems
	}
	for _, h := range update.GetHugepageLimits() {
		i := slices.IndexFunc(out.HugepageLimits, func(o *runtimeapi.HugepageLimit) bool { return o.PageSize == h.PageSize })
		if i < 0 {
			i = len(out.HugepageLimits)
			out.HugepageLimits = append(out.HugepageLimits, nil)
		}
		out.HugepageLimits[i] = proto.CloneOf(h)
	}
	if len(update.GetUnified()) > 0 {
		if out.Unified == nil {
			out.Unified = map[string]string{}
		}
		maps.Copy(out.Unified, update.Unified)
	}
	return out
}

// Update translates an update for the cgroup of a running container: what it sets, as it is in merged, and nothing else.
// The errors are *InvalidError.
func Update(merged, update *runtimeapi.LinuxContainerResources, host Host) (Limits, error) {
	if err := checkResources(update); err != nil {
		return Limits{}, err
	}
	out, err := Resources(merged, host)
	if err != nil {
		return Limits{}, err
	}
	r := out.Spec
	r.Pids = nil
	if cpu := r.CPU; cpu != nil {
		if update.GetCpuShares() == 0 {
			cpu.Shares = nil
		}
		if update.GetCpuQuota() == 0 && update.GetCpuPeriod() == 0 { // version 2 sets both at once
			cpu.Quota, cpu.Period = nil, nil
		}
		if update.GetCpusetCpus() == "" {
			cpu.Cpus = ""
		}
		if update.GetCpusetMems() == "" {
			cpu.Mems = ""
		}
	}
	if update.GetMemoryLimitInBytes() == 0 && update.GetMemorySwapLimitInBytes() == 0 {
		r.Memory = nil
	}
	r.HugepageLimits = slices.DeleteFunc(r.HugepageLimits, func(l specs.LinuxHugepageLimit) bool {
		return !slices.ContainsFunc(update.GetHugepageLimits(), func(h *runtimeapi.HugepageLimit) bool { return h.GetPageSize() == l.Pagesize })
	})
	maps.DeleteFunc(r.Unified, func(key, _ string) bool { _, ok := update.GetUnified()[key]; return !ok })
	return out, nil
}

// SetResources puts limits in the place of those of a specification. What a request cannot say stays: device rules, and what plugins added.
// The errors are *InvalidError.
func SetResources(s *specs.Spec, req *runtimeapi.LinuxContainerResources, host Host) error {
	limits, err := Resources(req, host)
	if err != nil {
		return err
	}
	made, before := limits.Spec, s.Linux.Resources
	made.Devices, made.BlockIO, made.Network, made.Rdma = before.Devices, before.BlockIO, before.Network, before.Rdma
	if before.Pids != nil {
		made.Pids = before.Pids
	}
	if m := before.Memory; m != nil && (m.Reservation != nil || m.Swappiness != nil) {
		if made.Memory == nil {
			made.Memory = &specs.LinuxMemory{}
		}
		made.Memory.Reservation, made.Memory.Swappiness = m.Reservation, m.Swappiness
	}
	s.Linux.Resources = made
	score := oomScore(req, host)
	s.Process.OOMScoreAdj = &score
	return nil
}

// oomScore is the score that the container gets: without CAP_SYS_RESOURCE none below the daemon's own can be given.
func oomScore(req *runtimeapi.LinuxContainerResources, host Host) int {
	score := int(req.GetOomScoreAdj())
	if score < host.OOMScoreAdj && !slices.Contains(host.Capabilities, "CAP_SYS_RESOURCE") {
		return host.OOMScoreAdj
	}
	return score
}

// CheckResources checks limits without the host: a pod's, which are for the record. The errors are *InvalidError.
func CheckResources(r *runtimeapi.LinuxContainerResources) error { return checkResources(r) }
