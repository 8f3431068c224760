package sandbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/store"
)

// resourcesAge is for how long what was read from the kernel counts as known: an outsider may have changed it since.
const resourcesAge = 10 * time.Second

// limits are what a container may use.
type limits struct {
	asked   atomic.Pointer[runtimeapi.LinuxContainerResources] // by an update; nil: by the container's configuration
	applied atomic.Pointer[applied]                            // nil: not read since they were changed
	mu      sync.Mutex                                         // held while both change
}

// set takes limits that have just been applied.
func (l *limits) set(asked *runtimeapi.LinuxContainerResources) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked.Store(asked)
	l.applied.Store(nil)
}

// recall takes the limits out of a record; none is none.
func (l *limits) recall(packed []byte) error {
	if len(packed) == 0 {
		return nil
	}
	asked := &runtimeapi.LinuxContainerResources{}
	if err := proto.Unmarshal(packed, asked); err != nil {
		return fmt.Errorf("decode resources: %w", err)
	}
	l.set(asked)
	return nil
}

// applied are limits as the kernel keeps them.
type applied struct {
	resources *runtimeapi.LinuxContainerResources
	at        time.Time
}

// asked are the limits that were asked for last; nil when none were. They are shared and must not be changed.
func (c *container) asked() *runtimeapi.LinuxContainerResources {
	if r := c.limits.asked.Load(); r != nil {
		return r
	}
	return c.config.GetLinux().GetResources()
}

// Resources are a container's limits. While it runs they are those that the kernel keeps, which rounds and clamps what was asked for; what was
// not asked for and is not limited is left out. nil: nothing was asked for, and it does not run. They are shared and must not be changed.
// Errors: ErrNotFound.
func (m *Manager) Resources(containerID string) (*runtimeapi.LinuxContainerResources, error) {
	c, err := m.findContainer(containerID)
	if err != nil {
		return nil, err
	}
	if known := c.limits.applied.Load(); known != nil && time.Since(known.at) < resourcesAge {
		return known.resources, nil
	}
	rec := m.containerRecord(c)
	asked := c.asked()
	if rec.State != store.Running {
		return asked, nil
	}
	limits, err := m.cfg.Cgroups.Limits(rec.Cgroup, uint64(asked.GetCpuShares()))
	if err != nil {
		return asked, nil //nolint:nilerr // it has exited meanwhile
	}
	real := asReal(asked, limits)
	if !m.cfg.Host.SwapLimit {
		real.MemorySwapLimitInBytes = 0
	}
	if score, ok := oomScoreAdj(rec.PID); ok && asked.GetOomScoreAdj() != 0 {
		real.OomScoreAdj = score
	}
	c.limits.mu.Lock()
	defer c.limits.mu.Unlock()
	if c.asked() == asked { // else an update came between, and the next call reads again
		c.limits.applied.Store(&applied{resources: real, at: time.Now()})
	}
	return real, nil
}

// asReal puts the kernel's limits in the place of those that were asked for.
func asReal(asked *runtimeapi.LinuxContainerResources, k cgroup.Limits) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	if asked != nil {
		out = proto.CloneOf(asked)
	}
	if asked.GetCpuShares() != 0 || k.Shares != cgroup.DefaultShares {
		out.CpuShares = int64(k.Shares)
	}
	switch {
	case k.Quota >= 0:
		out.CpuQuota, out.CpuPeriod = k.Quota, int64(k.Period)
	case asked.GetCpuQuota() != 0:
		out.CpuQuota = -1
	}
	if asked.GetCpuPeriod() != 0 {
		out.CpuPeriod = int64(k.Period)
	}
	if asked.GetCpusetCpus() != "" {
		out.CpusetCpus = k.Cpus
	}
	if asked.GetCpusetMems() != "" {
		out.CpusetMems = k.Mems
	}
	out.MemoryLimitInBytes = bytesLimit(k.Memory, asked.GetMemoryLimitInBytes())
	out.MemorySwapLimitInBytes = bytesLimit(k.MemorySwap, asked.GetMemorySwapLimitInBytes())
	for _, h := range out.HugepageLimits {
		if n, ok := k.Hugepages[h.PageSize]; ok && n != cgroup.Unlimited {
			h.Limit = n
		}
	}
	return out
}

// bytesLimit is how the CRI writes a limit: 0 is not specified, -1 none.
func bytesLimit(kernel uint64, asked int64) int64 {
	switch {
	case kernel != cgroup.Unlimited:
		return int64(kernel)
	case asked != 0:
		return -1
	}
	return 0
}

// oomScoreAdj is the one that a process has.
func oomScoreAdj(pid int) (int64, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/oom_score_adj")
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}
