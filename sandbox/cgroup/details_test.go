package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/wait"
)

func TestDetailsOfEveryKindOfHost(t *testing.T) {
	want := Details{User: 3 * time.Microsecond, System: 2 * time.Microsecond, Periods: 10, ThrottledPeriods: 4, Throttled: 5 * time.Microsecond, MemoryPeak: 700, MemoryKernel: 60, MemoryReserved: 9,
		MemoryHits: 8, OOMKills: 1, Processes: 2, Threads: 3, MaxThreads: 100, Devices: []DeviceIO{{Major: 254, Minor: 0, ReadBytes: 11, WriteBytes: 12, Reads: 13, Writes: 14},
			{Major: 7, Minor: 1, ReadBytes: 21}}, Hugepages: []HugepageUsage{{Size: "2MB", Usage: 4, Peak: 4}}}
	v1 := want
	v1.Hugepages = []HugepageUsage{{Size: "2MB", Usage: 4, Peak: 6}}
	for _, tc := range []struct {
		name        string
		hierarchies map[string][]string
		files       map[string]string
		want        Details
	}{
		{"version 1", map[string][]string{"cpu": {"cpu"}, "cpuacct": {"cpuacct"}, "memory": {"memory"}, "pids": {"pids"}, "blkio": {"blkio"}, "hugetlb": {"hugetlb"}}, map[string]string{
			"cpu/leaf/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 5000\n", "cpuacct/leaf/cpuacct.usage_user": "3000\n", "cpuacct/leaf/cpuacct.usage_sys": "2000\n",
			"memory/leaf/memory.max_usage_in_bytes": "700\n", "memory/leaf/memory.failcnt": "8\n", "memory/leaf/memory.soft_limit_in_bytes": "9\n", "memory/leaf/memory.kmem.usage_in_bytes": "60\n",
			"memory/leaf/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "pids/leaf/pids.current": "3\n", "pids/leaf/pids.max": "100\n",
			"pids/leaf/cgroup.procs": "17\n18\n", "hugetlb/leaf/hugetlb.2MB.usage_in_bytes": "4\n", "hugetlb/leaf/hugetlb.2MB.max_usage_in_bytes": "6\n",
			"blkio/leaf/blkio.throttle.io_service_bytes_recursive": "254:0 Read 11\n254:0 Write 12\n254:0 Sync 5\n254:0 Total 23\n7:1 Read 21\nTotal 44\n",
			"blkio/leaf/blkio.throttle.io_serviced_recursive":      "254:0 Read 13\n254:0 Write 14\n254:0 Total 27\nTotal 27\n",
		}, v1},
		{"version 2", map[string][]string{"unified": {"cpu", "memory", "pids", "io", "hugetlb"}}, map[string]string{
			"unified/leaf/cpu.stat":    "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5\n",
			"unified/leaf/memory.peak": "700\n", "unified/leaf/memory.min": "9\n", "unified/leaf/memory.low": "11\n", "unified/leaf/memory.events": "low 0\nhigh 0\nmax 8\noom 2\noom_kill 1\n", "unified/leaf/memory.stat": "anon 1\nkernel 60\n",
			"unified/leaf/pids.current": "3\n", "unified/leaf/pids.max": "100\n", "unified/leaf/cgroup.procs": "17\n18\n",
			"unified/leaf/io.stat":             "254:0 rbytes=11 wbytes=12 rios=13 wios=14 dbytes=0 dios=0\n7:1 rbytes=21\n8:0 \n",
			"unified/leaf/hugetlb.2MB.current": "4\n",
		}, want},
		{"nothing counted", map[string][]string{"unified": nil}, map[string]string{"unified/leaf/cgroup.procs": ""}, Details{MaxThreads: Unlimited}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := fakeHost(t, tc.hierarchies, tc.files)
			if d.hugepages = []string{"2MB"}; len(tc.want.Hugepages) == 0 {
				d.hugepages = []string{"3MB"} // no host has this size, so nobody knows that none are in use
			}
			got, err := d.Details("/leaf")
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("%v (-want +got):\n%s", err, diff)
			}
			if _, err := d.Details("/other"); !errors.Is(err, ErrGone) {
				t.Errorf("of what is not there: %v", err)
			}
		})
	}
	for file, text := range map[string]string{"pids.current": "x", "io.stat": "254:0 rbytes=x", "cpu.stat": "nr_periods x", "memory.peak": "1 2"} {
		d := fakeHost(t, map[string][]string{"unified": {"cpu", "memory", "pids", "io"}}, map[string]string{"unified/leaf/" + file: text})
		if got, err := d.Details("/leaf"); err == nil {
			t.Errorf("%s of %q reads as %+v", file, text, got)
		}
	}
}

func TestSizesOfHugepages(t *testing.T) {
	for size, want := range map[string]int{"64KB": 64, "2MB": 2048, "1GB": 1048576} {
		if got := kibibytes(size); got != want {
			t.Errorf("kibibytes(%s) = %d, want %d", size, got, want)
		}
	}
	if noHugepages("3MB") {
		t.Error("a size that there is not has no pages")
	}
}

func TestDetailsOfARealCgroup(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(10000)), Period: ptr(uint64(100000))}, Pids: &specs.LinuxPids{Limit: ptr(int64(50))},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))}})
	cmd := run(t, g, "while :; do :; done")
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	var got Details
	if !wait.Until(30*time.Second, 10*time.Millisecond, func() bool {
		var err error
		if got, err = d.Details(p); err != nil {
			t.Fatal(err)
		}
		return got.ThrottledPeriods > 2 && got.Throttled > 50*time.Millisecond && got.User > 20*time.Millisecond
	}) {
		t.Fatalf("after 30 s: %+v", got)
	}
	if got.Periods < got.ThrottledPeriods || got.MemoryPeak == 0 || got.Processes != 1 || got.Threads != 1 || got.MaxThreads != 50 || got.OOMKills != 0 {
		t.Errorf("%+v", got)
	}
}

func TestHugepageSizes(t *testing.T) {
	got := hugepageSizes()
	for folder, size := range map[string]string{"hugepages-2048kB": "2MB", "hugepages-1048576kB": "1GB", "hugepages-64kB": "64KB"} {
		_, err := os.Stat(filepath.Join("/sys/kernel/mm/hugepages", folder))
		has := false
		for _, s := range got {
			has = has || s == size
		}
		if has != (err == nil) {
			t.Errorf("sizes are %v, %s: %v", got, folder, err)
		}
	}
}

func BenchmarkDetails(b *testing.B) {
	d := open(b)
	p := d.Tree() + "/pod/leaf"
	create(b, d, p, nil)
	for b.Loop() {
		if _, err := d.Details(p); err != nil {
			b.Fatal(err)
		}
	}
}
