package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox/cgroup"
)

type linuxResources = runtimeapi.LinuxContainerResources

func TestAsReal(t *testing.T) {
	none := cgroup.Limits{Shares: 1024, Quota: -1, Period: 100000, Cpus: "0-1", Mems: "0", Memory: Unlimited, MemorySwap: Unlimited}
	for _, tc := range []struct {
		name   string
		asked  *linuxResources
		kernel cgroup.Limits
		want   *linuxResources
	}{
		{"nothing", nil, none, &linuxResources{}},
		{"what an outsider has set", nil, cgroup.Limits{Shares: 2, Quota: 5000, Period: 100000, Memory: 4096, MemorySwap: 8192},
			&linuxResources{CpuShares: 2, CpuQuota: 5000, CpuPeriod: 100000, MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 8192}},
		{"what an outsider has taken away", &linuxResources{CpuQuota: 5000, MemoryLimitInBytes: 4096, MemorySwapLimitInBytes: 4096}, none,
			&linuxResources{CpuQuota: -1, MemoryLimitInBytes: -1, MemorySwapLimitInBytes: -1}},
		{"clamped and rounded", &linuxResources{CpuShares: 1, MemoryLimitInBytes: 10_000_001, CpusetCpus: "0,1", OomScoreAdj: 5,
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 3 << 20}, {PageSize: "1GB", Limit: 1}}},
			cgroup.Limits{Shares: 2, Quota: -1, Period: 100000, Cpus: "0-1", Mems: "0", Memory: 9998336, MemorySwap: 9998336, Hugepages: map[string]uint64{"2MB": 2 << 20}},
			&linuxResources{CpuShares: 2, MemoryLimitInBytes: 9998336, MemorySwapLimitInBytes: 9998336, CpusetCpus: "0-1", OomScoreAdj: 5,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}, {PageSize: "1GB", Limit: 1}}}},
		{"no quota that was asked for", &linuxResources{CpuQuota: -1, CpuPeriod: 50000, CpuShares: 1024}, none, &linuxResources{CpuQuota: -1, CpuPeriod: 100000, CpuShares: 1024}},
	} {
		if diff := cmp.Diff(tc.want, asReal(tc.asked, tc.kernel), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

func limited(r CreateRequest, resources *linuxResources) CreateRequest {
	r.Config.Linux = &runtimeapi.LinuxContainerConfig{Resources: resources}
	return r
}

func TestResourcesAreTheKernels(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	asked := &linuxResources{CpuShares: 1, MemoryLimitInBytes: 100_000_001}
	c := create(t, m, limited(createRequest(p, "c", "exec sleep 1000"), asked))
	if got, err := m.Resources(c); err != nil || !cmp.Equal(got, asked, protocmp.Transform()) {
		t.Errorf("of a created container: %v, %v", got, err)
	}
	if err := m.StartContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got, err := m.Resources(c)
	if err != nil || got.CpuShares != 2 && !w.cgroups.V2() || got.MemoryLimitInBytes != 99999744 {
		t.Errorf("of a running container: %v, %v", got, err)
	}
	if again, err := m.Resources(c); err != nil || again != got {
		t.Errorf("again: %v, %v", again, err)
	}
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Resources("none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an unknown container: %v", err)
	}
}

func TestContainerDetails(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := create(t, m, createRequest(p, "c", "exec 7</dev/null 8</dev/null; echo; while :; do :; done"))
	if _, err := m.ContainerDetails(c); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a created container: %v", err)
	}
	if err := m.StartContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		got, err := m.ContainerDetails(c)
		if err != nil {
			t.Fatal(err)
		}
		return got.User > 20*time.Millisecond && got.Descriptors >= 4 // 0, 2, 7 and 8, and what the test itself was left
	})
	got, err := m.ContainerDetails(c)
	all, sockets := openFiles(t, m.containerRecord(m.containers[c]).PID)
	if got.Descriptors != all || got.Sockets != sockets {
		t.Errorf("%d descriptors and %d sockets, not %d and %d", got.Descriptors, got.Sockets, all, sockets)
	}
	if err != nil || got.Processes != 1 || got.Threads == 0 || got.OpenFiles == 0 || got.Cgroup != w.cgroups.Tree()+"/"+p+"/"+c {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := m.ContainerDetails("none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an unknown container: %v", err)
	}
}

// openFiles counts what a process has open.
func openFiles(t *testing.T, pid int) (all, sockets uint64) {
	t.Helper()
	folder := fmt.Sprintf("/proc/%d/fd/", pid)
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if to, err := os.Readlink(folder + entry.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			sockets++
		}
	}
	return uint64(len(entries)), sockets
}

func TestDeviceNames(t *testing.T) {
	var d deviceNames
	if got := d.name(4000, 5); got != "4000:5" {
		t.Errorf("a device that is not there is %s", got)
	}
}
