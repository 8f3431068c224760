package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// What Version answers.
const (
	// runtimeName is the runtime's name in node.status.nodeInfo.containerRuntimeVersion.
	runtimeName = "berth"
	// kubeletAPIVersion is the version of the kubelet's own API, which has not changed since the CRI began.
	kubeletAPIVersion = "0.1.0"
	// criVersion is the version of the CRI that is served.
	criVersion = "v1"
	// maxRangesText bounds the ranges of a node's pods.
	maxRangesText = 1024
)

// Version names the runtime and its versions.
func (s *runtimeService) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: kubeletAPIVersion, RuntimeName: runtimeName, RuntimeVersion: s.version, RuntimeApiVersion: criVersion,
	}, nil
}

// Status says whether pods can be run, and with which handlers and features.
func (s *runtimeService) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	answer := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true},
			s.networkCondition(ctx),
		}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, UserNamespacesHostNetwork: true, MountOptions: true},
	}
	problems := handlerProblems{ready: answer.Status.Conditions[0]}
	for _, h := range s.handlers.all() {
		if problems.has(ctx, h) {
			continue
		}
		handler := &runtimeapi.RuntimeHandler{Name: h.Name}
		if h.Features != nil {
			handler.Features = h.Features(ctx)
		}
		answer.RuntimeHandlers = append(answer.RuntimeHandlers, handler)
	}
	for _, w := range append(problems.warnings(), s.network.Warnings(ctx)...) {
		answer.Status.Conditions = append(answer.Status.Conditions, &runtimeapi.RuntimeCondition{
			Type: w.Type, Status: true, Message: redact(validText(w.Message)),
		})
	}
	if !r.GetVerbose() {
		return answer, nil
	}
	pulls, err := marshal(nonNil(s.images.Pulls("")))
	if err != nil {
		return nil, err
	}
	facts := map[string]string{}
	if s.facts != nil {
		facts = s.facts()
	}
	config, err := marshal(facts)
	if err != nil {
		return nil, err
	}
	answer.Info = map[string]string{"config": config, "pulls": pulls}
	return answer, nil
}

// handlerProblems collects why handlers cannot be used. Without the default one the node cannot run most of its pods: it is not ready.
type handlerProblems struct {
	ready  *runtimeapi.RuntimeCondition
	others []string
}

func (p *handlerProblems) has(ctx context.Context, h Handler) bool {
	if h.Problem == nil {
		return false
	}
	err := h.Problem(ctx)
	switch {
	case err == nil:
		return false
	case h.Name == "":
		p.ready.Status, p.ready.Reason = false, "DefaultHandlerMissing"
		p.ready.Message = redact(validText("The default runtime handler cannot be used: " + err.Error()))
	default:
		p.others = append(p.others, fmt.Sprintf("%s (%v)", h.Name, err))
	}
	return true
}

// warnings say which handlers pods cannot use.
func (p *handlerProblems) warnings() []Warning {
	if len(p.others) == 0 {
		return nil
	}
	return []Warning{{Type: "HandlersMissing", Message: "These runtime handlers cannot be used: " + strings.Join(p.others, "; ")}}
}

// networkCondition is NetworkReady.
func (s *runtimeService) networkCondition(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.Status(ctx); err != nil {
		c.Status, c.Reason, c.Message = false, "NetworkPluginNotReady", redact(validText(err.Error()))
	}
	return c
}

// RuntimeConfig tells the kubelet how to name cgroups.
func (s *runtimeService) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: s.driver},
	}, nil
}

// UpdateRuntimeConfig takes the ranges of the node's pods. With a template the network makes a CNI configuration of them; without one nothing
// depends on them, which is no error: addresses come from the CNI configuration or from the bridge's own ranges.
func (s *runtimeService) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	const field = "runtime_config.network_config.pod_cidr"
	text := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if text == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	if len(text) > maxRangesText {
		return nil, invalid(field, bounded(text), "is too long")
	}
	var ranges []netip.Prefix
	for one := range strings.SplitSeq(text, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(one))
		if err != nil || slices.Contains(ranges, p) {
			return nil, invalid(field, bounded(text), "must be different ranges, as 10.244.1.0/24, with commas between them")
		}
		ranges = append(ranges, p)
	}
	effect, err := s.network.SetPodRanges(ctx, ranges)
	if err != nil {
		return nil, err
	}
	klog.FromContext(ctx).V(2).Info("Took the range of the node's pods", "podCIDR", bounded(text), "effect", effect)
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// marshal makes a value of an info map, which must be JSON.
func marshal(v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("encode verbose information: %w", err)
	}
	return string(b), nil
}

// nonNil makes JSON say [] instead of null.
func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// matchLabels says whether labels have all that a selector asks for.
func matchLabels(selector, labels map[string]string) bool {
	for key, want := range selector {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	return true
}
