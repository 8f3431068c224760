package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits knows and changes what containers and sandboxes may use. Its errors are those of package sandbox.
type Limits interface {
	// Resources are the limits as they are; nil is none. They are shared.
	Resources(containerID string) (*runtimeapi.LinuxContainerResources, error)
	// UpdateContainer sets what the update sets, all or nothing.
	UpdateContainer(ctx context.Context, containerID string, update *runtimeapi.LinuxContainerResources) error
	// UpdatePod takes note of what the containers may use together; nil leaves what was.
	UpdatePod(ctx context.Context, sandboxID string, overhead, resources *runtimeapi.LinuxContainerResources) error
}

// UpdateContainerResources changes what a container may use, all or nothing. Annotations mean nothing yet.
func (s *runtimeService) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if r.GetWindows() != nil {
		return nil, notBuilt("windows", "berth runs on Linux")
	}
	if err := s.limits.UpdateContainer(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// UpdatePodSandboxResources takes note of what a sandbox's containers may use together.
func (s *runtimeService) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.limits.UpdatePod(ctx, r.GetPodSandboxId(), r.GetOverhead(), r.GetResources()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
