package cri

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox"
)

// PodSandboxStats measures one sandbox with its running containers. One that is not ready uses nothing, and the answer has no numbers.
func (s *runtimeService) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	pod, err := s.pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	stats, err := s.measurePod(ctx, pod, s.runningByPod()[pod.ID])
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: stats}, nil
}

// ListPodSandboxStats measures the ready sandboxes that pass the filter. One that goes away meanwhile, or that cannot be measured, is left out.
func (s *runtimeService) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	stats, err := s.listPodStats(ctx, r.GetFilter())
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: stats}, err
}

func (s *runtimeService) listPodStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	logger := klog.FromContext(ctx)
	ctx, cancel := context.WithTimeout(ctx, layerPatience)
	defer cancel()
	running := s.runningByPod()
	var all []*runtimeapi.PodSandboxStats
	for _, p := range s.sortedPods() {
		if p.State != sandbox.PodReady || !strings.HasPrefix(p.ID, f.GetId()) || !matchLabels(f.GetLabelSelector(), p.Config.GetLabels()) {
			continue
		}
		stats, err := s.measurePod(ctx, p, running[p.ID])
		if err != nil {
			leftOut(logger, err, "podSandboxID", p.ID)
			continue
		}
		all = append(all, stats)
	}
	return all, nil
}

// sortedPods are all sandboxes, the newest first. Those that are still being made are not among them: nobody has heard of them.
func (s *runtimeService) sortedPods() []sandbox.Pod {
	pods := slices.DeleteFunc(s.pods.Pods(), func(p sandbox.Pod) bool { return p.State == sandbox.PodCreating })
	slices.SortFunc(pods, func(a, b sandbox.Pod) int {
		return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
	})
	return pods
}

// runningByPod are the running containers of each sandbox, the newest first.
func (s *runtimeService) runningByPod() map[string][]sandbox.Container {
	all := map[string][]sandbox.Container{}
	for _, c := range s.sortedContainers() {
		if c.State == sandbox.ContainerRunning {
			all[c.SandboxID] = append(all[c.SandboxID], c)
		}
	}
	return all
}

func (s *runtimeService) measurePod(ctx context.Context, p sandbox.Pod, running []sandbox.Container) (*runtimeapi.PodSandboxStats, error) {
	u, err := s.stats.PodStats(p.ID)
	if err != nil {
		return nil, err
	}
	linux := &runtimeapi.LinuxPodSandboxStats{}
	stats := &runtimeapi.PodSandboxStats{Linux: linux, Attributes: &runtimeapi.PodSandboxAttributes{Id: p.ID, Metadata: p.Config.GetMetadata(),
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations()}}
	if !u.Measured {
		return stats, nil
	}
	linux.Cpu, linux.Memory, linux.Io, linux.Network = cpuUsage(u.Stats), memoryUsage(u.Stats), ioUsage(u.Stats), networkUsage(u)
	linux.Process = &runtimeapi.ProcessUsage{Timestamp: u.At.UnixNano(), ProcessCount: number(u.Processes)}
	for _, c := range running {
		one, err := s.measure(ctx, c)
		if err != nil {
			leftOut(klog.FromContext(ctx), err, "containerID", c.ID)
			continue
		}
		linux.Containers = append(linux.Containers, one)
	}
	return stats, nil
}

// networkUsage is nil without interfaces: the kubelet counts on a default one.
func networkUsage(u sandbox.PodStats) *runtimeapi.NetworkUsage {
	if len(u.Interfaces) == 0 {
		return nil
	}
	network := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for i, n := range u.Interfaces {
		usage := &runtimeapi.NetworkInterfaceUsage{Name: n.Name, RxBytes: number(n.Rx.Bytes), RxErrors: number(n.Rx.Errors), TxBytes: number(n.Tx.Bytes),
			TxErrors: number(n.Tx.Errors)}
		if i == 0 {
			network.DefaultInterface = usage
			continue
		}
		network.Interfaces = append(network.Interfaces, usage)
	}
	return network
}
