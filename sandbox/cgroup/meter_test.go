package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/wait"
)

// fakeHost is a driver over plain files: FOLDER/HIERARCHY/leaf/FILE.
func fakeHost(t *testing.T, hierarchies map[string][]string, files map[string]string) *Driver {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := &Driver{tree: "/berth"}
	for name, controllers := range hierarchies {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		h := &hierarchy{mount: f.Name(), controllers: controllers, v2: name == "unified", dir: f}
		if h.v2 {
			d.unified = h
		}
		d.swapFiles = d.swapFiles || h.exists("leaf/memory.memsw.limit_in_bytes")
		d.hierarchies = append(d.hierarchies, h)
	}
	d.pure = d.unified != nil && len(d.hierarchies) == 1
	t.Cleanup(func() {
		for _, h := range d.hierarchies {
			h.dir.Close()
		}
	})
	return d
}

const (
	memoryStatV1 = "cache 1\nrss 2\nhierarchical_memory_limit 999\ntotal_cache 40\ntotal_rss 30\ntotal_mapped_file 4\ntotal_swap 8\n" +
		"total_pgfault 11\ntotal_pgmajfault 2\ntotal_inactive_file 25\ntotal_active_file 15\n"
	memoryStatV2 = "anon 30\nfile 40\nkernel 5\nfile_mapped 4\ninactive_anon 1\ninactive_file 25\nactive_file 15\npgfault 11\npgmajfault 2\n"
	pressure     = "some avg10=1.50 avg60=0.25 avg300=0.05 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
)

func TestMeterReadsEveryKindOfHost(t *testing.T) {
	memory := Memory{Usage: 100, WorkingSet: 75, RSS: 30, Limit: 1000, Cache: 40, Mapped: 4, ActiveFile: 15, Inactive: 25, Faults: 11, MajorFaults: 2}
	free := memory
	free.Limit = Unlimited
	psi := &PSI{Some: Stall{Total: 1234 * time.Microsecond, Avg10: 1.5, Avg60: 0.25, Avg300: 0.05}, Full: Stall{Total: 7 * time.Microsecond}}
	all := Pressure{CPU: psi, Memory: psi, IO: psi}
	for _, tc := range []struct {
		name        string
		hierarchies map[string][]string
		files       map[string]string
		want        Stats
	}{
		{"version 1", map[string][]string{"cpuacct": {"cpuacct"}, "memory": {"memory"}}, map[string]string{
			"cpuacct/leaf/cpuacct.usage": "5000\n", "memory/leaf/memory.stat": memoryStatV1, "memory/leaf/memory.usage_in_bytes": "100\n",
			"memory/leaf/memory.limit_in_bytes": "1000\n", "memory/leaf/memory.memsw.limit_in_bytes": "1500\n",
		}, Stats{CPU: 5000, Memory: memory, Swap: Swap{Counted: true, Usage: 8, Limit: 500}}},
		{"version 1 without limits and swap accounting", map[string][]string{"memory": {"memory"}}, map[string]string{
			"memory/leaf/memory.stat": memoryStatV1, "memory/leaf/memory.usage_in_bytes": "100\n",
			"memory/leaf/memory.limit_in_bytes": "9223372036854771712\n",
		}, Stats{Memory: free}},
		{"version 1 without limits", map[string][]string{"memory": {"memory"}}, map[string]string{
			"memory/leaf/memory.stat": memoryStatV1, "memory/leaf/memory.usage_in_bytes": "100\n",
			"memory/leaf/memory.limit_in_bytes": "9223372036854771712\n", "memory/leaf/memory.memsw.limit_in_bytes": "9223372036854771712\n",
		}, Stats{Memory: free, Swap: Swap{Counted: true, Usage: 8, Limit: Unlimited}}},
		{"hybrid", map[string][]string{"cpuacct": {"cpuacct"}, "memory": {"memory"}, "unified": nil}, map[string]string{
			"cpuacct/leaf/cpuacct.usage": "5000\n", "memory/leaf/memory.stat": memoryStatV1, "memory/leaf/memory.usage_in_bytes": "100\n",
			"memory/leaf/memory.limit_in_bytes": "1000\n", "memory/leaf/memory.memsw.limit_in_bytes": "1000\n", "unified/leaf/cpu.stat": "usage_usec 77\n",
			"unified/leaf/cpu.pressure": pressure, "unified/leaf/memory.pressure": pressure, "unified/leaf/io.pressure": pressure,
		}, Stats{CPU: 5000, Memory: memory, Swap: Swap{Counted: true, Usage: 8}, Pressure: all}},
		{"version 2", map[string][]string{"unified": {"cpu", "memory"}}, map[string]string{
			"unified/leaf/cpu.stat": "usage_usec 5\nuser_usec 3\n", "unified/leaf/memory.stat": memoryStatV2, "unified/leaf/memory.current": "100\n",
			"unified/leaf/memory.max": "1000\n", "unified/leaf/memory.swap.current": "8\n", "unified/leaf/memory.swap.max": "max\n",
			"unified/leaf/cpu.pressure": pressure, "unified/leaf/memory.pressure": pressure, "unified/leaf/io.pressure": pressure,
		}, Stats{CPU: 5 * time.Microsecond, Memory: memory, Swap: Swap{Counted: true, Usage: 8, Limit: Unlimited}, Pressure: all}},
		{"version 2 without swap and pressure", map[string][]string{"unified": {"cpu", "memory"}}, map[string]string{
			"unified/leaf/cpu.stat": "usage_usec 5\n", "unified/leaf/memory.stat": memoryStatV2, "unified/leaf/memory.current": "100\n", "unified/leaf/memory.max": "1000\n",
		}, Stats{CPU: 5 * time.Microsecond, Memory: memory}},
		{"nothing counted", map[string][]string{"unified": nil}, map[string]string{"unified/leaf/cgroup.procs": ""}, Stats{Memory: Memory{Limit: Unlimited}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, err := fakeHost(t, tc.hierarchies, tc.files).Meter("/leaf")
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			got, err := m.Read()
			if err != nil || time.Since(got.At) > time.Minute {
				t.Errorf("at %v: %v", got.At, err)
			}
			got.At = time.Time{}
			if diff := cmp.Diff(tc.want, got, cmpopts.IgnoreUnexported(Memory{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMeterRefusesNonsense(t *testing.T) {
	for name, text := range map[string]string{"memory.stat": "anon x\n", "memory.current": "\n", "memory.max": "many\n", "cpu.pressure": "some avg10=x\n"} {
		files := map[string]string{"unified/leaf/cpu.stat": "usage_usec 5\n", "unified/leaf/memory.stat": memoryStatV2, "unified/leaf/memory.current": "100\n",
			"unified/leaf/memory.max": "1000\n"}
		files["unified/leaf/"+name] = text
		m, err := fakeHost(t, map[string][]string{"unified": {"cpu", "memory"}}, files).Meter("/leaf")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := m.Read(); err == nil {
			t.Errorf("%s of %q reads as %+v", name, text, got)
		}
		m.Close()
	}
}

func TestMeterGrowsItsBuffer(t *testing.T) {
	long := memoryStatV2 + strings.Repeat("padding 1\n", 1000)
	m, err := fakeHost(t, map[string][]string{"unified": {"memory"}}, map[string]string{"unified/leaf/memory.stat": long, "unified/leaf/memory.max": "max\n"}).Meter("/leaf")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if got, err := m.Read(); err != nil || got.Memory.RSS != 30 || got.Memory.MajorFaults != 2 {
		t.Errorf("%+v, %v", got.Memory, err)
	}
}

// TestMeterAgainstKnownLoads: what is measured is what was done, and what the kernel's own files say.
func TestMeterAgainstKnownLoads(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(80 << 20))}})
	m, err := d.Meter(p)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	before, err := m.Read()
	if err != nil || before.CPU > 10*time.Millisecond || before.Memory.Limit != 64<<20 || before.Memory.RSS > 1<<20 {
		t.Errorf("an empty cgroup: %+v, %v", before, err)
	}
	if before.Swap.Counted && before.Swap.Limit != 16<<20 {
		t.Errorf("swap: %+v, want a limit of 16 MiB", before.Swap)
	}
	// About 20 MiB in a variable, and a second of one processor.
	file := filepath.Join(t.TempDir(), "file")
	cmd := run(t, g, `x=$(head -c 20971520 /dev/zero | tr '\0' x); dd if=/dev/zero of=`+file+` bs=1M count=10 2>/dev/null
(ulimit -t 1; while :; do :; done) 2>/dev/null; echo; sleep 1000; echo "$x" >/dev/null`)
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	path := func(controller, v1, v2 string) string {
		h, err := d.controller(controller)
		if err != nil {
			t.Skipf("the kernel has no %s controller: %v", controller, err)
		}
		if h.v2 {
			v1 = v2
		}
		return v1
	}
	var s Stats
	var pids []int
	if !wait.Until(time.Minute, 20*time.Millisecond, func() bool {
		if s, err = m.Read(); err != nil {
			t.Fatal(err)
		}
		pids, err = d.PIDs(p)
		idle := err == nil && len(pids) == 2 && slices.ContainsFunc(pids, func(pid int) bool {
			comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return err == nil && string(comm) == "sleep\n"
		})
		return idle && s.CPU > 500*time.Millisecond && s.Memory.RSS > 20<<20
	}) {
		t.Fatalf("after a minute: %+v, processes %v", s, pids)
	}
	if s.CPU > 20*time.Second || s.Memory.RSS > 60<<20 || s.Memory.Usage < s.Memory.RSS || s.Memory.Faults == 0 {
		t.Errorf("%+v", s)
	}
	h, _ := d.controller("memory")
	text, err := h.read(relative(p), path("memory", "memory.usage_in_bytes", "memory.current"))
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := strconv.ParseFloat(text, 64); math.Abs(n-float64(s.Memory.Usage)) > 4<<20 {
		t.Errorf("usage %d, the kernel says %s", s.Memory.Usage, text)
	}
	cached := s.Memory.Cache // how much that is depends on the file system
	if text, err = h.read(relative(p), "memory.stat"); err != nil {
		t.Fatal(err)
	}
	if n, err := field(text, path("memory", "total_cache", "file")); err != nil || math.Abs(float64(n)-float64(cached)) > 1<<20 {
		t.Errorf("cache %d, the kernel says %d, %v", cached, n, err)
	}
	if n, err := d.Processes(p); err != nil || n != 2 {
		t.Errorf("%d processes, %v, want 2", n, err)
	}
	if d.unified != nil && d.unified.exists(relative(p)+"/cpu.pressure") && (s.Pressure.CPU == nil || s.Pressure.Memory == nil || s.Pressure.IO == nil) {
		t.Errorf("pressure = %+v", s.Pressure)
	}
	limit := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(70 << 20)), Swap: ptr(int64(80 << 20))}}
	if err := d.Update(p, limit); err != nil {
		t.Fatal(err)
	}
	m.Refresh()
	if s, err := m.Read(); err != nil || s.Memory.Limit != 70<<20 {
		t.Errorf("limit = %d, %v after it was raised", s.Memory.Limit, err)
	}
}

func TestMeterOfWhatGoesAway(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	if _, err := d.Meter(p); !errors.Is(err, ErrGone) {
		t.Errorf("Meter of what is not there = %v, want ErrGone", err)
	}
	create(t, d, p, nil)
	m, err := d.Meter(p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := d.Remove(ctx, p); err != nil {
		t.Fatalf("an open Meter holds the cgroup: %v", err)
	}
	if _, err := m.Read(); !errors.Is(err, ErrGone) {
		t.Errorf("Read after the removal = %v, want ErrGone", err)
	}
	m.Close()
	m.Close()
	if _, err := m.Read(); !errors.Is(err, ErrGone) {
		t.Errorf("Read after Close = %v, want ErrGone", err)
	}
	if n, err := d.Processes(p); err != nil || n != 0 {
		t.Errorf("processes of what is gone = %d, %v", n, err)
	}
}

func TestProcessesCountsWhatIsBelow(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, nil)
	cmd := run(t, g, "for i in 1 2 3; do sleep 1000 & done; echo; wait")
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	h, err := d.controller("pids")
	if err != nil {
		h = d.hierarchies[0]
	}
	if err := unix.Mkdirat(h.fd(), relative(p)+"/below", 0o755); err != nil {
		t.Fatal(err)
	}
	count := func(path string, want uint64) {
		t.Helper()
		waitUntil(t, fmt.Sprintf("%d processes in %s", want, path), func() bool {
			n, err := d.Processes(path)
			return n == want && err == nil
		})
	}
	count(p, 4)
	pids, err := h.pids(relative(p))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.write(relative(p)+"/below", "cgroup.procs", strconv.Itoa(pids[len(pids)-1])); err != nil {
		t.Fatal(err)
	}
	count(p+"/below", 1)
	count(d.Tree()+"/pod", 4)
	if all, err := d.AllPIDs(p, 100); err != nil || len(all) != 4 {
		t.Errorf("AllPIDs = %v, %v", all, err)
	}
	if some, err := d.AllPIDs(p, 2); err != nil || len(some) != 2 {
		t.Errorf("AllPIDs of at most two = %v, %v", some, err)
	}
}

func BenchmarkMeter(b *testing.B) {
	d := open(b)
	p := d.Tree() + "/pod/leaf"
	create(b, d, p, nil)
	m, err := d.Meter(p)
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	for b.Loop() {
		if _, err := m.Read(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenMeter(b *testing.B) {
	d := open(b)
	p := d.Tree() + "/pod/leaf"
	create(b, d, p, nil)
	for b.Loop() {
		m, err := d.Meter(p)
		if err != nil {
			b.Fatal(err)
		}
		m.Close()
	}
}
