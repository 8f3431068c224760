package cri

import (
	"context"
	"errors"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

// RunPodSandbox runs a sandbox. With the metadata and configuration of one that is ready or on its way it answers with that one's ID.
func (s *runtimeService) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := checkSandboxConfig(r.GetConfig()); err != nil {
		return nil, err
	}
	if err := s.handlers.check(r.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	sandboxID, err := s.pods.RunPod(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: sandboxID}, nil
}

// StopPodSandbox kills what runs in a sandbox and gives its network back. One that is stopped or unknown is stopped.
func (s *runtimeService) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.pods.StopPod(ctx, r.GetPodSandboxId()); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox removes a sandbox with its containers. One that is unknown is removed.
func (s *runtimeService) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := s.pods.RemovePod(ctx, r.GetPodSandboxId()); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus describes one sandbox and its containers.
func (s *runtimeService) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	// The kubelet drops what is older than an event that it has had: the statuses are at least of this time.
	answer := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano()}
	pod, err := s.pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	answer.Status = sandboxStatus(pod)
	for _, c := range s.sortedContainers() {
		if c.SandboxID == pod.ID {
			answer.ContainersStatuses = append(answer.ContainersStatuses, s.containerStatus(c))
		}
	}
	if r.GetVerbose() {
		facts := sandboxInfo(pod)
		facts.NetworkProblem = s.networkProblem(ctx, pod)
		text, err := marshal(facts)
		if err != nil {
			return nil, err
		}
		answer.Info = map[string]string{"info": text}
	}
	return answer, nil
}

// ListPodSandbox lists the sandboxes that match every part of the filter, the newest first.
func (s *runtimeService) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	pods := s.sortedPods()
	answer := &runtimeapi.ListPodSandboxResponse{Items: make([]*runtimeapi.PodSandbox, 0, len(pods))}
	for _, p := range pods {
		if matchSandbox(r.GetFilter(), p) {
			answer.Items = append(answer.Items, &runtimeapi.PodSandbox{
				Id: p.ID, Metadata: p.Config.GetMetadata(), State: sandboxState(p.State), CreatedAt: p.CreatedAt.UnixNano(),
				Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
			})
		}
	}
	return answer, nil
}

// matchSandbox says whether a sandbox passes a filter. An ID in a filter may be the start of one.
func matchSandbox(f *runtimeapi.PodSandboxFilter, p sandbox.Pod) bool {
	return strings.HasPrefix(p.ID, f.GetId()) &&
		(f.GetState() == nil || f.GetState().GetState() == sandboxState(p.State)) &&
		matchLabels(f.GetLabelSelector(), p.Config.GetLabels())
}

// sandboxState maps the state that package sandbox keeps. A sandbox on its way is not ready.
func sandboxState(state sandbox.PodState) runtimeapi.PodSandboxState {
	if state == sandbox.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

// sandboxStatus describes a sandbox.
func sandboxStatus(p sandbox.Pod) *runtimeapi.PodSandboxStatus {
	status := &runtimeapi.PodSandboxStatus{
		Id: p.ID, Metadata: p.Config.GetMetadata(), State: sandboxState(p.State), CreatedAt: p.CreatedAt.UnixNano(),
		Labels: p.Config.GetLabels(), Annotations: p.Config.GetAnnotations(), RuntimeHandler: p.Handler,
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{
			Options: p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions(),
		}},
		Network: &runtimeapi.PodSandboxNetworkStatus{},
	}
	for i, ip := range p.IPs {
		if i == 0 {
			status.Network.Ip = ip.String()
			continue
		}
		status.Network.AdditionalIps = append(status.Network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
	}
	return status
}

// sandboxFacts is what a verbose status says about a sandbox, as JSON.
type sandboxFacts struct {
	PID            int                          `json:"pid"`
	NetNS          string                       `json:"netNamespace,omitempty"`
	RuntimeHandler string                       `json:"runtimeHandler"`
	Attachment     any                          `json:"attachment,omitempty"`
	NetworkProblem string                       `json:"networkProblem,omitempty"` // what CHECK found
	Message        string                       `json:"message,omitempty"`
	Config         *runtimeapi.PodSandboxConfig `json:"config"`
}

// checkTimeout bounds how long plugins may think about a pod's network.
const checkTimeout = 10 * time.Second

// networkProblem is what is wrong with the network of a sandbox: "" for nothing.
func (s *runtimeService) networkProblem(ctx context.Context, p sandbox.Pod) string {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if err := s.pods.CheckNetwork(ctx, p.ID); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return redact(validText(err.Error()))
	}
	return ""
}

// sandboxInfo collects them. The PID is the monitor's, which is in the sandbox's namespaces.
func sandboxInfo(p sandbox.Pod) sandboxFacts {
	facts := sandboxFacts{PID: p.MonitorPID, NetNS: p.NetNS, RuntimeHandler: p.Handler, Message: p.Message, Config: p.Config}
	if p.Attachment != nil {
		facts.Attachment = p.Attachment
	}
	return facts
}
