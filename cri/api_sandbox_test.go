package cri

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

func TestRunPodSandboxRefusals(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		name    string
		change  func(*runtimeapi.RunPodSandboxRequest)
		want    codes.Code
		mention string
	}{
		{"no configuration", func(r *runtimeapi.RunPodSandboxRequest) { r.Config = nil }, codes.InvalidArgument, "config"},
		{"no metadata", func(r *runtimeapi.RunPodSandboxRequest) { r.Config.Metadata = nil }, codes.InvalidArgument, "config.metadata.name"},
		{"no uid", func(r *runtimeapi.RunPodSandboxRequest) { r.Config.Metadata.Uid = "" }, codes.InvalidArgument, "config.metadata.uid"},
		{"unknown handler", func(r *runtimeapi.RunPodSandboxRequest) { r.RuntimeHandler = "kata" }, codes.InvalidArgument, `kata`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &runtimeapi.RunPodSandboxRequest{Config: podConfig()}
			tc.change(r)
			_, err := w.runtime.RunPodSandbox(t.Context(), r)
			if status.Code(err) != tc.want || !strings.Contains(err.Error(), tc.mention) {
				t.Errorf("RunPodSandbox = %v, want %v about %q", err, tc.want, tc.mention)
			}
		})
	}
	if len(w.sandboxes.calls) != 0 {
		t.Errorf("calls went through: %q", w.sandboxes.calls)
	}
	for _, handler := range []string{"", "berth"} {
		if _, err := w.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: podConfig(), RuntimeHandler: handler}); err != nil {
			t.Errorf("handler %q: %v", handler, err)
		}
	}
}

func TestStopAndRemoveOfTheUnknownAreDone(t *testing.T) {
	w := newWorld(t)
	for _, m := range []string{"StopPod", "RemovePod", "StopContainer", "RemoveContainer"} {
		w.sandboxes.fail[m] = sandbox.ErrNotFound
	}
	ctx := t.Context()
	if _, err := w.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"}); err != nil {
		t.Errorf("StopPodSandbox = %v", err)
	}
	if _, err := w.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "x"}); err != nil {
		t.Errorf("RemovePodSandbox = %v", err)
	}
	if _, err := w.runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "x"}); err != nil {
		t.Errorf("StopContainer = %v", err)
	}
	if _, err := w.runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "x"}); err != nil {
		t.Errorf("RemoveContainer = %v", err)
	}
	if _, err := w.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("PodSandboxStatus = %v, want NotFound", err)
	}
	if _, err := w.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("ContainerStatus = %v, want NotFound", err)
	}
}

func labelled(labels map[string]string) *runtimeapi.PodSandboxConfig {
	c := podConfig()
	c.Labels = labels
	c.Annotations = map[string]string{"a": "b"}
	return c
}

func TestListPodSandboxFilters(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	w.sandboxes.pods = []sandbox.Pod{
		{ID: "aa1", Config: labelled(map[string]string{"app": "x", "tier": "1"}), State: sandbox.PodReady, CreatedAt: now},
		{ID: "aa2", Config: labelled(map[string]string{"app": "x"}), State: sandbox.PodNotReady, CreatedAt: now.Add(time.Second)},
		{ID: "bb3", Config: labelled(nil), State: sandbox.PodNotReady, CreatedAt: now.Add(2 * time.Second)},
		{ID: "cc4", Config: labelled(nil), State: sandbox.PodCreating, CreatedAt: now},
	}
	state := func(s runtimeapi.PodSandboxState) *runtimeapi.PodSandboxStateValue {
		return &runtimeapi.PodSandboxStateValue{State: s}
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   string
	}{
		{"none", nil, "bb3 aa2 aa1"},
		{"empty", &runtimeapi.PodSandboxFilter{}, "bb3 aa2 aa1"},
		{"full ID", &runtimeapi.PodSandboxFilter{Id: "aa1"}, "aa1"},
		{"start of an ID", &runtimeapi.PodSandboxFilter{Id: "aa"}, "aa2 aa1"},
		{"unknown ID", &runtimeapi.PodSandboxFilter{Id: "zz"}, ""},
		{"ready", &runtimeapi.PodSandboxFilter{State: state(runtimeapi.PodSandboxState_SANDBOX_READY)}, "aa1"},
		{"not ready", &runtimeapi.PodSandboxFilter{State: state(runtimeapi.PodSandboxState_SANDBOX_NOTREADY)}, "bb3 aa2"},
		{"labels", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "x"}}, "aa2 aa1"},
		{"all labels", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "x", "tier": "1"}}, "aa1"},
		{"empty value is not absence", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"tier": ""}}, ""},
		{"and", &runtimeapi.PodSandboxFilter{Id: "aa2", State: state(runtimeapi.PodSandboxState_SANDBOX_READY)}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := w.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range l.GetItems() {
				got = append(got, p.GetId())
				if p.GetCreatedAt() <= 0 || p.GetMetadata().GetName() != "n" || p.GetAnnotations()["a"] != "b" {
					t.Errorf("item %v", p)
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

func TestPodSandboxStatus(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{
		ID: "aa1", Config: labelled(nil), State: sandbox.PodReady, CreatedAt: time.Unix(5, 0), MonitorPID: 42, NetNS: "/run/netns/x",
		IPs: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2")},
	}}
	w.sandboxes.containers = []sandbox.Container{
		{ID: "c1", SandboxID: "aa1", Config: containerConfig("i"), CreatedAt: time.Unix(6, 0)},
		{ID: "c2", SandboxID: "other", Config: containerConfig("i"), CreatedAt: time.Unix(6, 0)},
	}
	s, err := w.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "aa", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	n := s.GetStatus().GetNetwork()
	if n.GetIp() != "10.88.0.2" || len(n.GetAdditionalIps()) != 1 || n.GetAdditionalIps()[0].GetIp() != "fd00::2" {
		t.Errorf("network = %v", n)
	}
	if len(s.GetContainersStatuses()) != 1 || s.GetContainersStatuses()[0].GetId() != "c1" || s.GetTimestamp() == 0 {
		t.Errorf("containers = %v at %d", s.GetContainersStatuses(), s.GetTimestamp())
	}
	if at := time.Unix(0, s.GetTimestamp()); at.After(w.sandboxes.looked) { // an event that came between would be taken for older
		t.Errorf("the statuses of %v are said to be of %v", w.sandboxes.looked, at)
	}
	var facts struct {
		PID   int    `json:"pid"`
		NetNS string `json:"netNamespace"`
	}
	if err := json.Unmarshal([]byte(s.GetInfo()["info"]), &facts); err != nil || facts.PID != 42 || facts.NetNS != "/run/netns/x" {
		t.Errorf("info = %q, %v", s.GetInfo()["info"], err)
	}
}
