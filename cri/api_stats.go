package cri

import (
	"context"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
)

// Stats measures containers and sandboxes. Its errors are those of package sandbox.
type Stats interface {
	ContainerStats(containerID string) (sandbox.Stats, error)
	// ContainerDetails take longer. One that does not run is sandbox.ErrNotFound.
	ContainerDetails(containerID string) (sandbox.Details, error)
	PodStats(sandboxID string) (sandbox.PodStats, error)
}

// Layers knows what containers have written.
type Layers interface {
	// LayerUsage answers from memory; one that has never been measured is waited for until ctx ends. False: it is not known.
	LayerUsage(ctx context.Context, containerID string) (imageservice.LayerUsage, bool)
	// Filesystem is the one that they write to.
	Filesystem() (imageservice.Filesystem, error)
}

// layerPatience is how long a call, not a container, waits for writable layers that have never been measured.
const layerPatience = 250 * time.Millisecond

// ContainerStats measures one container.
func (s *runtimeService) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.containers.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	stats, err := s.measure(ctx, c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats measures the running containers (api.proto) that pass the filter. One that goes away meanwhile, or that cannot be measured, is
// left out: the kubelet is to hear of the others.
func (s *runtimeService) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	answer := &runtimeapi.ListContainerStatsResponse{}
	f, logger := r.GetFilter(), klog.FromContext(ctx)
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	for _, c := range s.sortedContainers() {
		if c.State != sandbox.ContainerRunning || !strings.HasPrefix(c.ID, f.GetId()) || !strings.HasPrefix(c.SandboxID, f.GetPodSandboxId()) ||
			!matchLabels(f.GetLabelSelector(), c.Config.GetLabels()) {
			continue
		}
		stats, err := s.measure(ctx, c)
		if err != nil {
			leftOut(logger, err, "containerID", c.ID)
			continue
		}
		answer.Stats = append(answer.Stats, stats)
	}
	return answer, nil
}

// measure waits for the container's writable layer until ctx ends, if that has never been measured.
func (s *runtimeService) measure(ctx context.Context, c sandbox.Container) (*runtimeapi.ContainerStats, error) {
	u, err := s.stats.ContainerStats(c.ID)
	if err != nil {
		return nil, err
	}
	stats := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations()},
		Cpu:        cpuUsage(u), Memory: memoryUsage(u), Io: ioUsage(u),
	}
	if u.Swap.Counted {
		stats.Swap = &runtimeapi.SwapUsage{Timestamp: u.At.UnixNano(), SwapUsageBytes: number(u.Swap.Usage), SwapAvailableBytes: rest(u.Swap.Limit, u.Swap.Usage)}
	}
	if layer, ok := s.layers.LayerUsage(ctx, c.ID); ok {
		stats.WritableLayer = fsUsage(layer.FsUsage, layer.At.UnixNano())
	}
	return stats, nil
}

func cpuUsage(u sandbox.Stats) *runtimeapi.CpuUsage {
	cpu := &runtimeapi.CpuUsage{Timestamp: u.At.UnixNano(), UsageCoreNanoSeconds: number(uint64(u.CPU)), Psi: pressure(u.Pressure.CPU)}
	if u.Sampled {
		cpu.UsageNanoCores = number(u.NanoCores)
	}
	return cpu
}

func memoryUsage(u sandbox.Stats) *runtimeapi.MemoryUsage {
	m := u.Memory
	return &runtimeapi.MemoryUsage{Timestamp: u.At.UnixNano(), UsageBytes: number(m.Usage), WorkingSetBytes: number(m.WorkingSet), RssBytes: number(m.RSS),
		PageFaults: number(m.Faults), MajorPageFaults: number(m.MajorFaults), AvailableBytes: rest(m.Limit, m.WorkingSet), Psi: pressure(u.Pressure.Memory)}
}

// ioUsage is nil where the kernel does not tell: there is nothing else in it.
func ioUsage(u sandbox.Stats) *runtimeapi.IoUsage {
	if u.Pressure.IO == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: u.At.UnixNano(), Psi: pressure(u.Pressure.IO)}
}

func pressure(p *sandbox.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	stall := func(s sandbox.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: stall(p.Full), Some: stall(p.Some)}
}

// rest is what is left of a limit; nil without one.
func rest(limit, used uint64) *runtimeapi.UInt64Value {
	if limit == sandbox.Unlimited {
		return nil
	}
	return number(limit - min(limit, used))
}

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
