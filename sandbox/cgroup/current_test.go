package cgroup

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestLimitsOfEveryKindOfHost(t *testing.T) {
	v1 := map[string][]string{"cpu": {"cpu"}, "cpuset": {"cpuset"}, "memory": {"memory"}, "hugetlb": {"hugetlb"}}
	v2 := map[string][]string{"unified": {"cpu", "cpuset", "memory", "hugetlb"}}
	for _, tc := range []struct {
		name        string
		hierarchies map[string][]string
		files       map[string]string
		want        Limits
	}{
		{"version 1", v1, map[string]string{"cpu/leaf/cpu.shares": "512\n", "cpu/leaf/cpu.cfs_period_us": "100000\n", "cpu/leaf/cpu.cfs_quota_us": "50000\n",
			"cpuset/leaf/cpuset.cpus": "0-1\n", "cpuset/leaf/cpuset.mems": "0\n", "memory/leaf/memory.limit_in_bytes": "4096\n", "memory/leaf/memory.memsw.limit_in_bytes": "8192\n",
			"memory/leaf/memory.soft_limit_in_bytes": "2048\n", "hugetlb/leaf/hugetlb.2MB.limit_in_bytes": "4194304\n"},
			Limits{Shares: 512, Quota: 50000, Period: 100000, Cpus: "0-1", Mems: "0", Memory: 4096, MemorySwap: 8192, Reservation: 2048, Hugepages: map[string]uint64{"2MB": 4194304}}},
		{"version 1 without limits", v1, map[string]string{"cpu/leaf/cpu.shares": "1024\n", "cpu/leaf/cpu.cfs_period_us": "100000\n", "cpu/leaf/cpu.cfs_quota_us": "-1\n",
			"cpuset/leaf/cpuset.cpus": "\n", "memory/leaf/memory.limit_in_bytes": "9223372036854771712\n", "memory/leaf/memory.soft_limit_in_bytes": "9223372036854771712\n",
			"hugetlb/leaf/cgroup.procs": ""},
			Limits{Shares: 1024, Quota: -1, Period: 100000, Memory: Unlimited, MemorySwap: Unlimited, Hugepages: map[string]uint64{}}},
		{"version 2", v2, map[string]string{"unified/leaf/cpu.weight": "59\n", "unified/leaf/cpu.max": "50000 100000\n", "unified/leaf/cpuset.cpus": "0-1\n", "unified/leaf/cpuset.mems": "0\n",
			"unified/leaf/memory.max": "4096\n", "unified/leaf/memory.swap.max": "4096\n", "unified/leaf/memory.low": "2048\n", "unified/leaf/hugetlb.2MB.max": "4194304\n"},
			Limits{Shares: 512, Quota: 50000, Period: 100000, Cpus: "0-1", Mems: "0", Memory: 4096, MemorySwap: 8192, Reservation: 2048, Hugepages: map[string]uint64{"2MB": 4194304}}},
		{"version 2 without limits", v2, map[string]string{"unified/leaf/cpu.weight": "100\n", "unified/leaf/cpu.max": "max 100000\n", "unified/leaf/memory.max": "max\n",
			"unified/leaf/memory.swap.max": "0\n", "unified/leaf/memory.low": "0\n"},
			Limits{Shares: 1024, Quota: -1, Period: 100000, Memory: Unlimited, MemorySwap: Unlimited, Hugepages: map[string]uint64{}}},
		{"nothing counted", map[string][]string{"unified": nil}, map[string]string{"unified/leaf/cgroup.procs": ""}, Limits{Quota: -1, Memory: Unlimited, MemorySwap: Unlimited, Hugepages: map[string]uint64{}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := fakeHost(t, tc.hierarchies, tc.files)
			d.hugepages = []string{"2MB"}
			got, err := d.Limits("/leaf", 512)
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if _, err := d.Limits("/other", 0); !errors.Is(err, ErrGone) {
				t.Errorf("of what is not there: %v", err)
			}
		})
	}
}

func TestSharesInvertWeight(t *testing.T) {
	for w := uint64(1); w <= 10000; w++ {
		if n := shares(w, 0); w != defaultWeight && (weight(n) != w && weight(n+1) == w || weight(n) < w || n > 2 && weight(n-1) >= w && weight(n) != w) {
			t.Fatalf("weight %d is %d shares, which are weight %d", w, n, weight(n))
		}
	}
	for asked := uint64(2); asked <= 262144; asked += 7 {
		if got := shares(weight(asked), asked); got != asked {
			t.Fatalf("%d shares that were asked for read as %d", asked, got)
		}
	}
	if shares(100, 0) != 1024 || shares(0, 5) != 0 {
		t.Error("the default, or nothing, is read wrongly")
	}
}

func TestLimitsSayWhatTheKernelMade(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1)), Quota: ptr(int64(20000)), Period: ptr(uint64(50000)), Cpus: firstCPU(d)},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(10_000_001)), Swap: ptr(int64(20_000_001))}})
	got, err := d.Limits(p, 1)
	if err != nil {
		t.Fatal(err)
	}
	if d.V2() { // not all controllers are there
		t.Logf("%+v", got)
		return
	}
	want := Limits{Shares: 2, Quota: 20000, Period: 50000, Cpus: "0", Mems: got.Mems, Memory: 9998336, MemorySwap: 19996672, Hugepages: got.Hugepages}
	if !d.swapFiles {
		want.MemorySwap = Unlimited
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
