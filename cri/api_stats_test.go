package cri

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/sandbox/netns"
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
		s.GetWritableLayer().GetUsedBytes().GetValue() != 4096 || s.GetWritableLayer().GetTimestamp() != 8e9 || s.GetCpu().GetUsageNanoCores().GetValue() != 7 ||
		s.GetSwap().GetSwapUsageBytes().GetValue() != 10 || s.GetSwap().GetSwapAvailableBytes().GetValue() != 20 || s.GetMemory().GetPageFaults().GetValue() != 3 {
		t.Errorf("stats = %v", s)
	}
	if psi := s.GetCpu().GetPsi(); psi.GetSome().GetTotal() != 1000 || psi.GetSome().GetAvg10() != 1.5 || psi.GetFull().GetTotal() != 2 || s.GetMemory().GetPsi() != nil || s.GetIo() != nil {
		t.Errorf("pressure = %v, %v, %v", psi, s.GetMemory().GetPsi(), s.GetIo())
	}
	// One that does not run has times and no limit, and nothing else.
	answer, err = w.runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: "c2"})
	if s := answer.GetStats(); err != nil || s.GetCpu().GetTimestamp() == 0 || s.GetMemory().GetAvailableBytes() != nil || s.GetSwap() != nil || s.GetCpu().GetUsageNanoCores() != nil {
		t.Errorf("stats of one that has exited = %v, %v", s, err)
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

func TestStatsLeaveOutWhatIsNotKnownOrGone(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "p1", Config: podConfig(), State: sandbox.PodReady}}
	w.sandboxes.containers = []sandbox.Container{{ID: "c3", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerRunning}}
	list, err := w.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(list.GetStats()) != 1 || list.Stats[0].GetWritableLayer() != nil {
		t.Errorf("a layer that is not known: %v, %v", list, err)
	}
	for name, fail := range map[string]error{"goes meanwhile": fmt.Errorf("it went: %w", sandbox.ErrNotFound), "cannot be measured": errors.New("trouble")} {
		w.sandboxes.fail["ContainerStats"] = fail
		if list, err := w.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{}); err != nil || len(list.GetStats()) != 0 {
			t.Errorf("a container that %s: %v, %v", name, list, err)
		}
		pods, err := w.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(pods.GetStats()) != 1 || len(pods.Stats[0].GetLinux().GetContainers()) != 0 {
			t.Errorf("the pod of a container that %s: %v, %v", name, pods, err)
		}
	}
	for name, fail := range map[string]error{"goes meanwhile": sandbox.ErrNotFound, "cannot be measured": errors.New("trouble")} {
		w.sandboxes.fail["PodStats"] = fail
		if pods, err := w.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil || len(pods.GetStats()) != 0 {
			t.Errorf("a pod that %s: %v, %v", name, pods, err)
		}
	}
}

func TestPodSandboxStats(t *testing.T) {
	w := newWorld(t)
	labelled := podConfig()
	labelled.Labels = map[string]string{"app": "a"}
	w.sandboxes.pods = []sandbox.Pod{
		{ID: "p1", Config: labelled, State: sandbox.PodReady, CreatedAt: time.Unix(1, 0)},
		{ID: "p2", Config: podConfig(), State: sandbox.PodNotReady, CreatedAt: time.Unix(2, 0)},
	}
	w.sandboxes.containers = []sandbox.Container{
		{ID: "c1", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerRunning},
		{ID: "c2", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerExited},
		{ID: "c4", SandboxID: "p2", Config: containerConfig("r/x:1"), State: sandbox.ContainerRunning},
	}
	w.sandboxes.interfaces = []netns.Interface{{Name: "eth0", Rx: netns.Traffic{Bytes: 1, Errors: 2}, Tx: netns.Traffic{Bytes: 3, Errors: 4}}, {Name: "net1"}}
	answer, err := w.runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "p1"})
	if err != nil {
		t.Fatal(err)
	}
	s := answer.GetStats()
	l := s.GetLinux()
	if s.GetAttributes().GetId() != "p1" || s.GetAttributes().GetLabels()["app"] != "a" || l.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 50 ||
		l.GetMemory().GetUsageBytes().GetValue() != 200 || l.GetProcess().GetProcessCount().GetValue() != 4 || l.GetIo().GetPsi() == nil ||
		len(l.GetContainers()) != 1 || l.Containers[0].GetAttributes().GetId() != "c1" {
		t.Errorf("stats = %v", s)
	}
	n := l.GetNetwork()
	if d := n.GetDefaultInterface(); d.GetName() != "eth0" || d.GetRxBytes().GetValue() != 1 || d.GetRxErrors().GetValue() != 2 || d.GetTxBytes().GetValue() != 3 ||
		d.GetTxErrors().GetValue() != 4 || len(n.GetInterfaces()) != 1 || n.Interfaces[0].GetName() != "net1" {
		t.Errorf("network = %v", n)
	}
	w.sandboxes.interfaces = nil // the host's network
	answer, err = w.runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "p1"})
	if err != nil || answer.GetStats().GetLinux().GetNetwork() != nil {
		t.Errorf("network of the host = %v, %v", answer, err)
	}
	answer, err = w.runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "p2"})
	if l := answer.GetStats().GetLinux(); err != nil || l == nil || l.GetCpu() != nil || len(l.GetContainers()) != 0 || answer.GetStats().GetAttributes().GetId() != "p2" {
		t.Errorf("stats of one that is stopped = %v, %v", answer, err)
	}
	if _, err := w.runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "zz"}); status.Code(err) != codes.NotFound {
		t.Errorf("stats of an unknown sandbox = %v, want NotFound", err)
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.PodSandboxStatsFilter
		want   int
	}{
		{"no filter", nil, 1},
		{"ID", &runtimeapi.PodSandboxStatsFilter{Id: "p"}, 1},
		{"one that is stopped", &runtimeapi.PodSandboxStatsFilter{Id: "p2"}, 0},
		{"label", &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "a"}}, 1},
		{"another label", &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"app": "b"}}, 0},
	} {
		list, err := w.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: tc.filter})
		if err != nil || len(list.GetStats()) != tc.want {
			t.Errorf("%s: %d stats, %v; want %d", tc.name, len(list.GetStats()), err, tc.want)
		}
	}
}
