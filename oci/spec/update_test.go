package spec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type limitsOf = runtimeapi.LinuxContainerResources

func huge(size string, limit uint64) *runtimeapi.HugepageLimit {
	return &runtimeapi.HugepageLimit{PageSize: size, Limit: limit}
}

func TestMergeResources(t *testing.T) {
	for _, tc := range []struct {
		name              string
		was, update, want *limitsOf
	}{
		{"nothing", nil, nil, &limitsOf{}},
		{"what was stays", &limitsOf{CpuShares: 5, CpusetCpus: "1"}, nil, &limitsOf{CpuShares: 5, CpusetCpus: "1"}},
		{"each field", &limitsOf{CpuPeriod: 1, CpuQuota: 1, CpuShares: 1, OomScoreAdj: 1, CpusetCpus: "1", CpusetMems: "1"},
			&limitsOf{CpuPeriod: 2, CpuQuota: -1, CpuShares: 2, OomScoreAdj: 2, CpusetCpus: "2", CpusetMems: "2"},
			&limitsOf{CpuPeriod: 2, CpuQuota: -1, CpuShares: 2, OomScoreAdj: 2, CpusetCpus: "2", CpusetMems: "2"}},
		{"huge pages by size", &limitsOf{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 1), huge("1GB", 2)}}, &limitsOf{HugepageLimits: []*runtimeapi.HugepageLimit{huge("1GB", 0), huge("64KB", 3)}},
			&limitsOf{HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 1), huge("1GB", 0), huge("64KB", 3)}}},
		{"files by name", &limitsOf{Unified: map[string]string{"a.b": "1", "c.d": "2"}}, &limitsOf{Unified: map[string]string{"c.d": "3", "e.f": "4"}},
			&limitsOf{Unified: map[string]string{"a.b": "1", "c.d": "3", "e.f": "4"}}},
		{"memory, no swap asked for", &limitsOf{MemoryLimitInBytes: 10}, &limitsOf{MemoryLimitInBytes: 20}, &limitsOf{MemoryLimitInBytes: 20}},
		{"memory that does not swap", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &limitsOf{MemoryLimitInBytes: 20}, &limitsOf{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 20}},
		{"the same, less", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 10}, &limitsOf{MemoryLimitInBytes: 5}, &limitsOf{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 5}},
		{"memory that swaps", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, &limitsOf{MemoryLimitInBytes: 20}, &limitsOf{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: 30}},
		{"memory above what both had", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, &limitsOf{MemoryLimitInBytes: 40}, &limitsOf{MemoryLimitInBytes: 40, MemorySwapLimitInBytes: 40}},
		{"memory without a limit", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, &limitsOf{MemoryLimitInBytes: -1}, &limitsOf{MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		{"swap without a limit stays so", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: -1}, &limitsOf{MemoryLimitInBytes: 20}, &limitsOf{MemoryLimitInBytes: 20, MemorySwapLimitInBytes: -1}},
		{"swap alone", &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 30}, &limitsOf{MemorySwapLimitInBytes: 50}, &limitsOf{MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 50}},
	} {
		was, update := proto.CloneOf(tc.was), proto.CloneOf(tc.update)
		if diff := cmp.Diff(tc.want, MergeResources(tc.was, tc.update), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
		if !proto.Equal(was, tc.was) || !proto.Equal(update, tc.update) {
			t.Errorf("%s: an argument is changed", tc.name)
		}
	}
}

func TestUpdateTouchesWhatItNames(t *testing.T) {
	was := &limitsOf{CpuShares: 5, CpuQuota: 10000, CpuPeriod: 50000, CpusetCpus: "1", CpusetMems: "0", MemoryLimitInBytes: 1 << 20, HugepageLimits: []*runtimeapi.HugepageLimit{huge("2MB", 1)},
		Unified: map[string]string{"memory.high": "1"}}
	host := Host{Cgroups: Cgroups{CgroupV2: true, SwapLimit: true}, PidsLimit: 100}
	for _, tc := range []struct {
		name   string
		update *limitsOf
		want   specs.LinuxResources
	}{
		{"nothing", &limitsOf{}, specs.LinuxResources{CPU: &specs.LinuxCPU{}}},
		{"shares", &limitsOf{CpuShares: 7}, specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: new(uint64(7))}}},
		{"quota brings its period", &limitsOf{CpuQuota: 20000}, specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: new(int64(20000)), Period: new(uint64(50000))}}},
		{"processors", &limitsOf{CpusetCpus: "2"}, specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "2"}}},
		{"swap brings memory", &limitsOf{MemorySwapLimitInBytes: 2 << 20}, specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{Limit: new(int64(1 << 20)), Swap: new(int64(2 << 20))}}},
		{"huge pages", &limitsOf{HugepageLimits: []*runtimeapi.HugepageLimit{huge("1GB", 2)}}, specs.LinuxResources{CPU: &specs.LinuxCPU{}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 2}}}},
		{"files", &limitsOf{Unified: map[string]string{"memory.low": "3"}}, specs.LinuxResources{CPU: &specs.LinuxCPU{}, Unified: map[string]string{"memory.low": "3"}}},
	} {
		got, err := Update(MergeResources(was, tc.update), tc.update, host)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if len(got.Spec.Unified) == 0 {
			got.Spec.Unified = nil
		}
		if len(got.Spec.HugepageLimits) == 0 {
			got.Spec.HugepageLimits = nil
		}
		if diff := cmp.Diff(&tc.want, got.Spec); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
	for name, update := range map[string]*limitsOf{"quota": {CpuQuota: 5}, "swap below memory": {MemorySwapLimitInBytes: 5}} {
		if got, err := Update(MergeResources(was, update), update, host); err == nil {
			t.Errorf("%s: %+v", name, got)
		}
	}
	unified := &limitsOf{Unified: map[string]string{"memory.low": "3"}}
	if _, err := Update(MergeResources(nil, unified), unified, Host{}); err == nil {
		t.Error("unified on version 1 is accepted")
	}
}

func TestSetResources(t *testing.T) {
	s := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}, CPU: &specs.LinuxCPU{Cpus: "1"}}}}
	if err := SetResources(s, &limitsOf{CpuShares: 7, OomScoreAdj: -5}, Host{OOMScoreAdj: 3}); err != nil {
		t.Fatal(err)
	}
	if r := s.Linux.Resources; len(r.Devices) != 1 || *r.CPU.Shares != 7 || r.CPU.Cpus != "" || *s.Process.OOMScoreAdj != 3 {
		t.Errorf("%+v, score %d", r, *s.Process.OOMScoreAdj)
	}
}
