package uml_test

import (
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func TestUpdateLimits(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("update")).Run(d.Sleeper("c", harness.Resources(&resources{
		CpuShares: 512, CpuPeriod: 50000, CpuQuota: 25000, MemoryLimitInBytes: 64 << 20, Unified: map[string]string{"memory.high": "50331648"},
	})))
	dir := cgroupFolder(c)
	update := func(r *resources) error {
		_, err := c.Runtime.UpdateContainerResources(c.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
		return err
	}
	want := func(when string, files map[string]string) {
		t.Helper()
		for file, value := range files {
			if got := read(t, filepath.Join(dir, file)); got != value {
				t.Errorf("%s: %s = %q, want %q", when, file, got, value)
			}
		}
	}
	if err := update(&resources{CpuShares: 1024, CpuQuota: 40000, MemoryLimitInBytes: 128 << 20,
		Unified: map[string]string{"memory.high": "100663296", "memory.low": "4194304"}}); err != nil {
		t.Fatal(err)
	}
	raised := map[string]string{"cpu.weight": "100", "cpu.max": "40000 50000", "memory.max": "134217728", "memory.swap.max": "0",
		"memory.high": "100663296", "memory.low": "4194304"}
	want("raised", raised)
	for name, r := range map[string]*resources{
		"a value that the kernel refuses":   {CpuQuota: 10000, Unified: map[string]string{"memory.high": "much"}},
		"a file that the kernel lacks":      {CpuQuota: 10000, Unified: map[string]string{"memory.no_such_file": "1"}},
		"a file that is no controller's":    {CpuQuota: 10000, Unified: map[string]string{"cgroup.freeze": "1"}},
		"a controller that the host lacks":  {CpuQuota: 10000, Unified: map[string]string{"cpuset.cpus": "0"}},
		"a quota below what the kernel has": {CpuQuota: 10, MemoryLimitInBytes: 64 << 20},
	} {
		if err := update(r); err == nil {
			t.Errorf("%s is accepted", name)
		}
		want(name, raised)
	}
	if err := update(&resources{Unified: map[string]string{"../memory.high": "1"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a path among the unified resources = %v, want InvalidArgument", err)
	}
	if err := update(&resources{MemoryLimitInBytes: 32 << 20, CpuQuota: -1}); err != nil {
		t.Fatal(err)
	}
	want("lowered", map[string]string{"memory.max": "33554432", "cpu.max": "max 50000", "memory.high": "100663296"})
	if r := c.Status().GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 32<<20 || r.GetCpuQuota() != -1 {
		t.Errorf("the status has %v", r)
	}
}
