package cri

import (
	"context"
	"errors"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
)

// Stats measures containers. Its errors are those of package sandbox.
type Stats interface {
	ContainerStats(containerID string) (sandbox.Stats, error)
}

// Layers measures what containers write. One that is not there uses nothing.
type Layers interface {
	LayerUsage(containerID string) (imageservice.FsUsage, error)
}

// ContainerStats measures one container.
func (s *runtimeService) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.containers.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	stats, err := s.measure(c)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: stats}, nil
}

// ListContainerStats measures the running containers (api.proto) that pass the filter. One that goes away meanwhile is left out.
func (s *runtimeService) ListContainerStats(_ context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	answer := &runtimeapi.ListContainerStatsResponse{}
	f := r.GetFilter()
	for _, c := range s.sortedContainers() {
		if c.State != sandbox.ContainerRunning || !strings.HasPrefix(c.ID, f.GetId()) || !strings.HasPrefix(c.SandboxID, f.GetPodSandboxId()) ||
			!matchLabels(f.GetLabelSelector(), c.Config.GetLabels()) {
			continue
		}
		stats, err := s.measure(c)
		if errors.Is(err, sandbox.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		answer.Stats = append(answer.Stats, stats)
	}
	return answer, nil
}

func (s *runtimeService) measure(c sandbox.Container) (*runtimeapi.ContainerStats, error) {
	u, err := s.stats.ContainerStats(c.ID)
	if err != nil {
		return nil, err
	}
	at := u.At.UnixNano()
	stats := &runtimeapi.ContainerStats{
		Attributes: &runtimeapi.ContainerAttributes{Id: c.ID, Metadata: c.Config.GetMetadata(), Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations()},
		Cpu:        &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: number(uint64(u.CPU))},
		Memory: &runtimeapi.MemoryUsage{Timestamp: at, UsageBytes: number(u.Memory), WorkingSetBytes: number(u.WorkingSet),
			RssBytes: number(u.RSS), PageFaults: number(u.PageFaults), MajorPageFaults: number(u.MajorPageFault)},
	}
	if u.MemoryLimit > 0 {
		stats.Memory.AvailableBytes = number(u.MemoryLimit - min(u.MemoryLimit, u.WorkingSet))
	}
	layer, err := s.layers.LayerUsage(c.ID)
	if err != nil {
		return nil, err
	}
	stats.WritableLayer = fsUsage(layer, at)
	return stats, nil
}

func number(n uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: n} }
