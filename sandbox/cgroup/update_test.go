package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// values reads what the kernel keeps.
func values(t *testing.T, d *Driver, p string) Limits {
	t.Helper()
	l, err := d.Limits(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestUpdateIsAllOrNothing(t *testing.T) {
	d := open(t)
	if _, err := d.controller("memory"); err != nil {
		t.Skipf("the kernel has no memory controller: %v", err)
	}
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, limits(d))
	before := values(t, d, p)
	refused := map[string]string{"memory.high": "1"} // on version 1
	if d.V2() {
		refused = map[string]string{"memory.high": "8388608", "memory.oom.group": "7"}
	}
	lower := &specs.LinuxMemory{Limit: ptr(int64(32 << 20)), Swap: ptr(int64(32 << 20))}
	higher := &specs.LinuxMemory{Limit: ptr(int64(256 << 20)), Swap: ptr(int64(300 << 20))}
	cpu := specs.LinuxCPU{Shares: ptr(uint64(100)), Quota: ptr(int64(7000)), Period: ptr(uint64(20000))}
	absent := cpu
	absent.Cpus = "5000"
	for name, res := range map[string]*specs.LinuxResources{
		"a CPU that is not there, memory down": {CPU: &absent, Memory: lower},
		"a CPU that is not there, memory up":   {CPU: &absent, Memory: higher},
		"a quota that is too small":            {CPU: &specs.LinuxCPU{Shares: ptr(uint64(100)), Quota: ptr(int64(5))}, Memory: lower},
		"swap below memory":                    {CPU: &cpu, Memory: &specs.LinuxMemory{Limit: ptr(int64(40 << 20)), Swap: ptr(int64(20 << 20))}},
		"huge pages of no size":                {CPU: &cpu, Memory: lower, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3KB", Limit: 1}}},
		"files of version 2":                   {CPU: &cpu, Unified: refused},
	} {
		if err := d.Update(p, res); err == nil {
			t.Errorf("%s: no error", name)
		}
		if diff := cmp.Diff(before, values(t, d, p)); diff != "" {
			t.Errorf("%s (-before +after):\n%s", name, diff)
		}
	}
	for _, memory := range []*specs.LinuxMemory{higher, lower} {
		if err := d.Update(p, &specs.LinuxResources{CPU: &cpu, Memory: memory}); err != nil {
			t.Fatal(err)
		}
		got, err := d.Limits(p, 100)
		if err != nil {
			t.Fatal(err)
		}
		if got.Shares != 100 || got.Quota != 7000 || got.Period != 20000 || got.Memory != uint64(*memory.Limit) || d.SwapLimit() && got.MemorySwap != uint64(*memory.Swap) || got.Cpus != before.Cpus {
			t.Errorf("%+v", got)
		}
	}
	if err := d.Update(d.Tree()+"/none", &specs.LinuxResources{CPU: &cpu}); !errors.Is(err, ErrGone) {
		t.Errorf("of what is not there: %v", err)
	}
}

func TestUpdateBelowWhatIsInUse(t *testing.T) {
	d := open(t)
	if _, err := d.controller("memory"); err != nil {
		t.Skipf("the kernel has no memory controller: %v", err)
	}
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(128 << 20)), Swap: ptr(int64(128 << 20))}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(500))}})
	cmd := run(t, g, `x=$(head -c 31457280 /dev/zero | tr '\0' x); echo; sleep 1000; echo "$x" >/dev/null`)
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	waitUntil(t, "30 MiB are taken", func() bool {
		m, err := d.Meter(p)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		s, err := m.Read()
		return err == nil && s.Memory.RSS > 30<<20
	})
	before := values(t, d, p)
	res := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(10 << 20)), Swap: ptr(int64(10 << 20))}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(700))}}
	if err := d.Update(p, res); !errors.Is(err, ErrInUse) {
		t.Errorf("10 MiB with 30 in use: %v, want ErrInUse", err)
	}
	if diff := cmp.Diff(before, values(t, d, p)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	if kills, err := d.OOMKills(p); err != nil || kills != 0 {
		t.Errorf("%d processes were killed, %v", kills, err)
	}
	res.Memory.Limit, res.Memory.Swap = ptr(int64(64<<20)), ptr(int64(64<<20))
	if err := d.Update(p, res); err != nil {
		t.Errorf("64 MiB with 30 in use: %v", err)
	}
}

// fakeLimits is a host of version 2 over plain files: what is written is what is read.
func fakeLimits(t *testing.T, files map[string]string) (*Driver, func(string) string) {
	t.Helper()
	at := map[string]string{}
	for name, text := range files {
		at["unified/leaf/"+name] = text
	}
	d := fakeHost(t, map[string][]string{"unified": {"cpu", "memory", "pids", "io"}}, at)
	return d, func(name string) string {
		text, err := os.ReadFile(filepath.Join(d.unified.mount, "leaf", name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
}

func TestUpdateOfVersion2(t *testing.T) {
	files := map[string]string{"memory.max": "1000000", "memory.current": "500000", "memory.swap.max": "0000000", "cpu.weight": "100", "cpu.max": "max 100000", "memory.high": "maximum"}
	d, read := fakeLimits(t, files)
	res := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(400000)), Swap: ptr(int64(400000))}, CPU: &specs.LinuxCPU{Shares: ptr(uint64(2048))}}
	if err := d.Update("/leaf", res); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "500000") {
		t.Errorf("below what is in use: %v", err)
	}
	if read("memory.max") != "1000000" || read("cpu.weight") != "100" {
		t.Error("something is changed")
	}
	res.Memory = &specs.LinuxMemory{Limit: ptr(int64(600000)), Swap: ptr(int64(900000))}
	res.Unified = map[string]string{"memory.high": "5000000", "memory.oom.group": "1"}
	if err := d.Update("/leaf", res); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a file that is not there: %v", err)
	}
	if read("memory.max") != "1000000" || read("cpu.weight") != "100" || read("memory.swap.max") != "0000000" || read("memory.high") != "maximum" {
		t.Errorf("something is changed: %s %s %s %s", read("memory.max"), read("cpu.weight"), read("memory.swap.max"), read("memory.high"))
	}
	delete(res.Unified, "memory.oom.group")
	if err := d.Update("/leaf", res); err != nil {
		t.Fatal(err)
	}
	want := strconv.FormatUint(weight(2048), 10)
	if !strings.HasPrefix(read("memory.max"), "600000") || !strings.HasPrefix(read("cpu.weight"), want) || !strings.HasPrefix(read("memory.swap.max"), "300000") || read("memory.high") != "5000000" {
		t.Errorf("%s %s %s %s", read("memory.max"), read("cpu.weight"), read("memory.swap.max"), read("memory.high"))
	}
}

func TestUndoLines(t *testing.T) {
	for _, tc := range []struct {
		entry entry
		want  []string
	}{
		{entry{file: "cpu.max", before: "max 100000", written: "5 6"}, []string{"max 100000"}},
		{entry{file: "cpuset.cpus", before: "", written: "0"}, []string{"\n"}},
		{entry{file: "io.max", before: "", written: "8:0 rbps=1"}, []string{"8:0 rbps=max wbps=max riops=max wiops=max"}},
		{entry{file: "io.max", before: "8:0 rbps=5 wbps=max riops=max wiops=max\n", written: "8:0 rbps=1"}, []string{"8:0 rbps=5 wbps=max riops=max wiops=max"}},
		{entry{file: "io.weight", before: "default 100\n8:16 50", written: "8:0 10"}, []string{"default 100", "8:16 50", "8:0 default"}},
		{entry{file: "io.weight", before: "default 100", written: "default 10"}, []string{"default 100"}},
		{entry{file: "io.latency", before: "8:1 target=5", written: "8:16 target=1"}, []string{"8:1 target=5", "8:16 target=0"}},
	} {
		if diff := cmp.Diff(tc.want, tc.entry.undoLines()); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tc.entry, diff)
		}
	}
}
