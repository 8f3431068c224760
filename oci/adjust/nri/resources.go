package nri

import (
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
)

// fromCRI is limits as plugins get them; nil stays nil.
func fromCRI(r *runtimeapi.LinuxContainerResources) *api.LinuxResources {
	if r == nil {
		return nil
	}
	out := &api.LinuxResources{Memory: &api.LinuxMemory{}, Cpu: &api.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}, Unified: maps.Clone(r.GetUnified())}
	if n := r.GetMemoryLimitInBytes(); n != 0 {
		out.Memory.Limit = api.Int64(n)
	}
	if n := r.GetMemorySwapLimitInBytes(); n != 0 {
		out.Memory.Swap = api.Int64(n)
	}
	if n := r.GetCpuShares(); n != 0 {
		out.Cpu.Shares = api.UInt64(n)
	}
	if n := r.GetCpuQuota(); n != 0 {
		out.Cpu.Quota = api.Int64(n)
	}
	if n := r.GetCpuPeriod(); n != 0 {
		out.Cpu.Period = api.UInt64(n)
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &api.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// toCRI is limits as an update has them. The errors are *UnsupportedError.
func toCRI(r *api.LinuxResources) (*runtimeapi.LinuxContainerResources, error) {
	out := &runtimeapi.LinuxContainerResources{}
	override(out, r)
	err := unsupportedLimits(r)
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"memory.reservation", r.GetMemory().GetReservation() != nil}, {"memory.swappiness", r.GetMemory().GetSwappiness() != nil},
		{"pids", r.GetPids() != nil}, {"devices", len(r.GetDevices()) > 0},
		{"blockio_class", r.GetBlockioClass() != nil}, {"rdt_class", r.GetRdtClass() != nil},
	} {
		if f.set {
			err = errors.Join(err, &UnsupportedError{Field: "linux.resources." + f.name, Reason: "it can only be adjusted when the container is created"})
		}
	}
	return out, err
}

// override puts the limits that a request can set into out.
func override(out *runtimeapi.LinuxContainerResources, r *api.LinuxResources) {
	m, c := r.GetMemory(), r.GetCpu()
	if v := m.GetLimit(); v != nil {
		// The limit for memory and swap together follows where it was the same, and is never below.
		if was := out.MemorySwapLimitInBytes; was > 0 && (v.GetValue() < 0 || was == out.MemoryLimitInBytes || was < v.GetValue()) {
			out.MemorySwapLimitInBytes = v.GetValue()
		}
		out.MemoryLimitInBytes = v.GetValue()
	}
	if v := m.GetSwap(); v != nil {
		out.MemorySwapLimitInBytes = v.GetValue()
	}
	if v := c.GetShares(); v != nil {
		out.CpuShares = int64(v.GetValue())
	}
	if v := c.GetQuota(); v != nil {
		out.CpuQuota = v.GetValue()
	}
	if v := c.GetPeriod(); v != nil {
		out.CpuPeriod = int64(v.GetValue())
	}
	if v := c.GetCpus(); v != "" {
		out.CpusetCpus = v
	}
	if v := c.GetMems(); v != "" {
		out.CpusetMems = v
	}
	for _, h := range r.GetHugepageLimits() {
		found := false
		for _, have := range out.HugepageLimits {
			if have.PageSize == h.GetPageSize() {
				have.Limit, found = h.GetLimit(), true
			}
		}
		if !found {
			out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	if len(r.GetUnified()) > 0 && out.Unified == nil {
		out.Unified = map[string]string{}
	}
	maps.Copy(out.Unified, r.GetUnified())
}

// unsupportedLimits are those that nothing enforces. The errors are *UnsupportedError.
func unsupportedLimits(r *api.LinuxResources) (err error) {
	m, c := r.GetMemory(), r.GetCpu()
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"memory.kernel", m.GetKernel() != nil}, {"memory.kernel_tcp", m.GetKernelTcp() != nil},
		{"memory.disable_oom_killer", m.GetDisableOomKiller().GetValue()},
		{"memory.use_hierarchy false", m.GetUseHierarchy() != nil && !m.GetUseHierarchy().GetValue()}, // true is what there is
		{"cpu.realtime_runtime", c.GetRealtimeRuntime() != nil}, {"cpu.realtime_period", c.GetRealtimePeriod() != nil},
	} {
		if f.set {
			err = errors.Join(err, &UnsupportedError{Field: "linux.resources." + f.name, Reason: "there is no such limit"})
		}
	}
	return err
}

// updatesOf are the updates and evictions that plugins ask for.
func updatesOf(asked []*api.ContainerUpdate, evicted []*api.ContainerEviction) (out []adjust.Update, err error) {
	for _, u := range asked {
		if u == nil {
			continue
		}
		r, bad := toCRI(u.GetLinux().GetResources())
		if bad != nil {
			if !u.GetIgnoreFailure() {
				err = errors.Join(err, fmt.Errorf("update of container %s: %w", u.GetContainerId(), bad))
			}
			continue
		}
		out = append(out, adjust.Update{ContainerID: u.GetContainerId(), Resources: r, MayFail: u.GetIgnoreFailure()})
	}
	for _, e := range evicted {
		out = append(out, evictionOf(e))
	}
	return out, err
}
