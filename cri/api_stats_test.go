package cri

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

func TestContainerStatsMeasuresWhatRuns(t *testing.T) {
	w := newWorld(t)
	config := containerConfig("r/x:1")
	config.Labels = map[string]string{"app": "a"}
	w.sandboxes.containers = []sandbox.Container{
		{ID: "c1", SandboxID: "p1", Config: config, State: sandbox.ContainerRunning, CreatedAt: time.Unix(1, 0)},
		{ID: "c2", SandboxID: "p2", Config: containerConfig("r/x:1"), State: sandbox.ContainerExited, CreatedAt: time.Unix(2, 0)},
	}
	answer, err := w.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	s := answer.GetStats()
	if s.GetAttributes().GetId() != "c1" || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 5 || s.GetCpu().GetTimestamp() != 9e9 ||
		s.GetMemory().GetWorkingSetBytes().GetValue() != 60 || s.GetMemory().GetAvailableBytes().GetValue() != 940 ||
		s.GetWritableLayer().GetUsedBytes().GetValue() != 4096 {
		t.Errorf("stats = %v", s)
	}
	if _, err := w.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "zz"}); status.Code(err) != codes.NotFound {
		t.Errorf("stats of an unknown container = %v, want NotFound", err)
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerStatsFilter
		want   int
	}{
		{"no filter", nil, 1},
		{"ID", &runtimeapi.ContainerStatsFilter{Id: "c"}, 1},
		{"sandbox", &runtimeapi.ContainerStatsFilter{PodSandboxId: "p1"}, 1},
		{"sandbox where nothing runs", &runtimeapi.ContainerStatsFilter{PodSandboxId: "p2"}, 0},
		{"label", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "a"}}, 1},
		{"another label", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"app": "b"}}, 0},
	} {
		list, err := w.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: tc.filter})
		if err != nil || len(list.GetStats()) != tc.want {
			t.Errorf("%s: %d stats, %v; want %d", tc.name, len(list.GetStats()), err, tc.want)
		}
	}
}
