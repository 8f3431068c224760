package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

type resources = runtimeapi.LinuxContainerResources

var parents atomic.Int64

// newParent returns a cgroup parent that nobody else has.
func newParent() string {
	return fmt.Sprintf("/berth-test-%d-%d", os.Getpid(), parents.Add(1))
}

// limitPids makes a parent in the hierarchy of pids and sets its limit.
func limitPids(t testing.TB, parent, limit string) {
	t.Helper()
	path := cgroupFile(t, parent, "pids", "pids.max", "pids.max")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(limit), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLimits(t *testing.T) {
	parent := newParent()
	d := harness.Start(t, harness.WithCgroupParent(parent))
	pod := d.RunPod(d.Pod("limits", harness.CgroupParent(parent)))
	c := pod.Run(d.Sleeper("c", harness.Resources(&resources{
		CpuShares: 512, CpuPeriod: 50000, CpuQuota: 25000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "0", CpusetMems: "0", OomScoreAdj: 500,
	})))
	for _, f := range []struct{ controller, v1, v2, want string }{
		{"cpu", "cpu.cfs_quota_us", "", "25000"},
		{"cpu", "cpu.cfs_period_us", "", "50000"},
		{"cpu", "cpu.shares", "", "512"},
		{"cpu", "", "cpu.max", "25000 50000"},
		{"memory", "memory.limit_in_bytes", "memory.max", "67108864"},
		{"cpuset", "cpuset.cpus", "cpuset.cpus", "0"},
		{"cpuset", "cpuset.mems", "cpuset.mems", "0"},
	} {
		if name := map[bool]string{false: f.v1, true: f.v2}[isUnified()]; name == "" {
			continue
		}
		path := cgroupOf(c, f.controller)
		if !strings.HasPrefix(path, parent+"/") || !strings.Contains(path, c.ID) {
			t.Errorf("cgroup of %s is %s, want it below %s and named by the container", f.controller, path, parent)
		}
		if got := readFile(t, cgroupFile(t, path, f.controller, f.v1, f.v2)); got != f.want {
			t.Errorf("%s%s = %s, want %s", f.v1, f.v2, got, f.want)
		}
	}
	if got := strings.TrimSpace(c.Host("oom_score_adj")); got != "500" {
		t.Errorf("oom_score_adj = %s, want 500", got)
	}
	r := c.Status().GetResources().GetLinux()
	if r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuQuota() != 25000 || r.GetCpuShares() != 512 || r.GetCpusetCpus() != "0" {
		t.Errorf("resources in the status = %v", r)
	}
	c.Remove()
	pod.Remove()
	d.AsBefore()
}

// TestLowerOOMScoreThanTheDaemon: what the host withholds degrades by rule.
func TestLowerOOMScoreThanTheDaemon(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("oom-score"))
	c := pod.Run(d.Sleeper("c", harness.Resources(&resources{OomScoreAdj: -998})))
	if got := strings.TrimSpace(c.Host("oom_score_adj")); got != "-998" && got != readFile(t, "/proc/self/oom_score_adj") {
		t.Errorf("oom_score_adj = %s, want -998 or the daemon's own", got)
	}
}

func TestDefaultCgroup(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("default")).Run(d.Sleeper("c"))
	want := d.Process.Daemon().PodCgroup("", c.Pod.ID) + "/" + c.ID
	if got := cgroupOf(c, "memory"); got != want {
		t.Errorf("cgroup = %s, want %s", got, want)
	}
}

// TestSmallLimits: nothing of berth's may run inside the limits of the container.
func TestSmallLimits(t *testing.T) {
	harness.Native(t, "runc's own stage runs inside the limits")
	parent := newParent()
	d := harness.Start(t, harness.WithCgroupParent(parent))
	limitPids(t, parent, "2")
	pod := d.RunPod(d.Pod("small", harness.CgroupParent(parent)))
	c := pod.Run(d.Container("c", []string{"sleep", "1000"}, harness.Resources(&resources{MemoryLimitInBytes: 4 << 20})))
	if s := c.Status(); s.State != running {
		t.Fatalf("state = %s, %s", s.State, s.Message)
	}
	if r := c.Exec("echo", "one more"); r.Stdout != "one more\n" {
		t.Errorf("exec = %+v", r)
	}
	start := time.Now()
	c.Stop(0)
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("stop took %s", took)
	}
}

func TestPidsLimitReached(t *testing.T) {
	parent := newParent()
	d := harness.Start(t, harness.WithCgroupParent(parent))
	limitPids(t, parent, "64")
	pod := d.RunPod(d.Pod("bomb", harness.CgroupParent(parent)))
	c := pod.Run(d.Shell("bomb", "trap '' TERM; (while :; do sleep 1000 & done); echo full; while :; do :; done"))
	other := d.RunPod(d.Pod("bystander")).Run(d.Sleeper("c"))
	c.WaitOutput("full")
	if got := other.Sh("echo here"); got != "here" {
		t.Errorf("exec elsewhere = %q", got)
	}
	start := time.Now()
	c.Stop(time.Second)
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("stop took %s", took)
	}
	if s := c.Status(); s.State != exited || s.ExitCode != 137 {
		t.Errorf("status = %s, code %d", s.State, s.ExitCode)
	}
	if got := readFile(t, cgroupFile(t, parent, "pids", "pids.current", "pids.current")); got != "0" {
		t.Errorf("%s processes are left", got)
	}
}

func TestOutOfMemory(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("oom"))
	limit := harness.Resources(&resources{MemoryLimitInBytes: 32 << 20})
	c := pod.Run(d.Container("eater", []string{"probe", "eat", "200"}, limit))
	s := c.Wait(20 * time.Second)
	if s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("code %d, reason %q, want 137 OOMKilled", s.ExitCode, s.Reason)
	}
	// A child's death is not the container's.
	child := pod.Run(d.Shell("child", "probe eat 200; echo survived; exit 3", limit))
	s = child.Wait(20 * time.Second)
	if s.ExitCode != 3 || s.Reason == "OOMKilled" || !strings.Contains(child.Output(), "survived") {
		t.Errorf("code %d, reason %q, output %q, want 3 and not OOMKilled", s.ExitCode, s.Reason, child.Output())
	}
	// 137 by a signal is not the lack of memory.
	killed := pod.Run(d.Sleeper("killed", limit))
	killed.Exec("kill", "-9", "1")
	killed.Stop(0)
	if s := killed.Status(); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("code %d, reason %q, want 137 Error", s.ExitCode, s.Reason)
	}
	// Nor is it by a call, though a child of it had died of that before.
	stopped := pod.Run(d.Shell("stopped", "trap '' TERM; probe eat 200; echo survived; while :; do sleep 1; done", limit))
	stopped.WaitOutput("survived")
	stopped.Stop(time.Second)
	if s := stopped.Status(); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("stopped by force: code %d, reason %q, want 137 Error", s.ExitCode, s.Reason)
	}
	d.Restart()
	if s := c.Status(); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("after a restart: code %d, reason %q", s.ExitCode, s.Reason)
	}
}

// A process that somebody moves to another cgroup is the container's all the same, and ends with it.
func TestProcessMovedByOthers(t *testing.T) {
	d := harness.Start(t)
	for name, end := range map[string]func(*harness.Container){
		"stopped": func(c *harness.Container) { c.Stop(0) }, "removed": (*harness.Container).Remove, "pod-stopped": func(c *harness.Container) { c.Pod.Stop() },
	} {
		pod := d.RunPod(d.Pod(name))
		c := pod.Run(d.Container("c", []string{"sleep", "1000"}))
		pid := c.PID()
		if err := os.WriteFile(unifiedMount()+"/cgroup.procs", []byte(strconv.Itoa(pid)), 0); err != nil {
			t.Fatal(err)
		}
		end(c)
		if err := unix.Kill(pid, 0); err == nil {
			t.Errorf("%s: the process lives on", name)
		}
		if name != "removed" {
			if s := c.Status(); s.State != exited || s.ExitCode != 137 || s.Reason != "Error" {
				t.Errorf("%s: %s with %d, %s", name, s.State, s.ExitCode, s.Reason)
			}
		}
		pod.Remove()
	}
	d.AsBefore()
}

// TestFullCgroup: a limit of cgroups that is reached is told, and nothing of the attempt is left.
func TestFullCgroup(t *testing.T) {
	parent := newParent()
	d := harness.Start(t, harness.WithCgroupParent(parent))
	pod := d.RunPod(d.Pod("full", harness.CgroupParent(parent)))
	c := pod.Run(d.Sleeper("c"))
	if err := os.WriteFile(unifiedMount()+parent+"/cgroup.max.descendants", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	second := pod.Create(d.Sleeper("second"))
	refused(t, "StartContainer", second.TryStart(), codes.ResourceExhausted, "cgroup.max.descendants")
	_, err := c.TryExec(time.Second, "true")
	refused(t, "ExecSync", err, codes.ResourceExhausted, "cgroup.max.descendants")
	d.Check()
	second.Remove()
	pod.Remove()
	d.AsBefore()
}

func TestHugepages(t *testing.T) {
	limits := func(size string) string { return "hugetlb." + size + "." }
	dirs, err := filepath.Glob("/sys/kernel/mm/hugepages/hugepages-2048kB")
	if err != nil || len(dirs) == 0 {
		t.Skip("the kernel has no 2 MiB hugepages")
	}
	d := harness.Start(t)
	c := d.RunPod(d.Pod("huge")).Run(d.Sleeper("c", harness.Resources(&resources{
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}})))
	for _, path := range []string{
		filepath.Join("/sys/fs/cgroup/hugetlb", cgroupOf(c, "memory"), limits("2MB")+"limit_in_bytes"),
		filepath.Join("/sys/fs/cgroup/unified", cgroupOf(c, "memory"), limits("2MB")+"max"),
		filepath.Join("/sys/fs/cgroup", cgroupOf(c, "memory"), limits("2MB")+"max"),
	} {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if got := strings.TrimSpace(string(text)); got != "4194304" {
			t.Errorf("%s = %s", path, got)
		}
		update(c, &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 8 << 20}}})
		if got := readFile(t, path); got != "8388608" {
			t.Errorf("updated: %s = %s", path, got)
		}
		if got := linuxOf(c).GetHugepageLimits(); len(got) != 1 || got[0].PageSize != "2MB" || got[0].Limit != 8<<20 {
			t.Errorf("status: %v", got)
		}
		// One that was made without a limit gets one.
		free := d.RunPod(d.Pod("free")).Run(d.Sleeper("free"))
		update(free, &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}})
		if got := readFile(t, strings.NewReplacer(c.Pod.ID, free.Pod.ID, c.ID, free.ID).Replace(path)); got != "2097152" {
			t.Errorf("updated from none: %s = %s", path, got)
		}
		wantCode(t, "a size that this kernel lacks", tryUpdate(c, &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3KB", Limit: 1}}}), codes.InvalidArgument)
		wantCode(t, "a size that no kernel has", tryUpdate(c, &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3", Limit: 1}}}), codes.InvalidArgument)
		return
	}
	t.Error("the limit is in no hierarchy")
}

// Swap is limited together with memory; a container that says nothing about it does not swap.
func TestSwap(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("swap"))
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"); !isUnified() && err != nil {
		t.Skip("the kernel does not account swap")
	}
	const mib = 1 << 20
	kept := func(c *harness.Container, v1, v2 string) {
		t.Helper()
		want := v2
		if !isUnified() {
			want = v1
		}
		if got := readFile(t, cgroupFile(t, cgroupOf(c, "memory"), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")); got != want {
			t.Errorf("the kernel keeps %s, want %s", got, want)
		}
	}
	none := pod.Run(d.Sleeper("none", harness.Resources(&resources{MemoryLimitInBytes: 64 * mib})))
	kept(none, fmt.Sprint(64*mib), "0")
	some := pod.Run(d.Sleeper("some", harness.Resources(&resources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib})))
	kept(some, fmt.Sprint(96*mib), fmt.Sprint(32*mib))
	update(some, &resources{MemorySwapLimitInBytes: 128 * mib})
	kept(some, fmt.Sprint(128*mib), fmt.Sprint(64*mib))
	if r := linuxOf(some); r.GetMemoryLimitInBytes() != 64*mib || r.GetMemorySwapLimitInBytes() != 128*mib {
		t.Errorf("status: %v", r)
	}
	update(some, &resources{MemoryLimitInBytes: 32 * mib})
	kept(some, fmt.Sprint(128*mib), fmt.Sprint(96*mib))
	all := pod.Run(d.Sleeper("all", harness.Resources(&resources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: -1})))
	if got := readFile(t, cgroupFile(t, cgroupOf(all, "memory"), "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")); got != "max" && len(got) < 19 {
		t.Errorf("no limit is %s", got)
	}
	for name, r := range map[string]*resources{
		"swap below memory":      {MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 32 * mib},
		"swap without memory":    {MemorySwapLimitInBytes: 64 * mib},
		"swap beside all memory": {MemoryLimitInBytes: -1, MemorySwapLimitInBytes: 64 * mib},
	} {
		_, err := pod.TryCreate(d.Sleeper("bad", harness.Resources(r)))
		refused(t, name, err, codes.InvalidArgument, "memory_swap_limit_in_bytes")
	}
}

// Memory QoS comes as files of version 2; other hosts cannot keep what it promises.
func TestUnifiedOnVersion1(t *testing.T) {
	if isUnified() {
		t.Skip("this host's cgroups are of version 2")
	}
	d := harness.Start(t)
	_, err := d.RunPod(d.Pod("unified")).TryCreate(d.Sleeper("c", harness.Resources(&resources{Unified: map[string]string{"memory.high": "1000000"}})))
	refused(t, "unified resources", err, codes.InvalidArgument, "unified", "cgroup v1")
}

// TestTheMonitorIsOutside: a container's limits are no limits of its monitor.
func TestTheMonitorIsOutside(t *testing.T) {
	parent := newParent()
	d := harness.Start(t, harness.WithCgroupParent(parent))
	pod := d.RunPod(d.Pod("outside", harness.CgroupParent(parent)))
	pod.Run(d.Sleeper("c"))
	pid := monitorPID(t, pod)
	text := readRaw(t, "/proc/"+strconv.Itoa(pid)+"/cgroup")
	if strings.Contains(text, parent) {
		t.Errorf("the monitor's cgroups are\n%s", text)
	}
	if got := readFile(t, "/proc/"+strconv.Itoa(pid)+"/comm"); !strings.Contains(got, "berth") {
		t.Errorf("the monitor's name is %q", got)
	}
}

func monitorPID(t testing.TB, pod *harness.Pod) int {
	t.Helper()
	r, err := pod.Runtime.PodSandboxStatus(pod.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	return harness.InfoPID(t, r.Info)
}

// hasController tells whether a controller is mounted.
func hasController(name string) bool {
	text, _ := os.ReadFile(unifiedMount() + "/cgroup.controllers")
	_, err := os.Stat("/sys/fs/cgroup/" + name)
	return err == nil || slices.Contains(strings.Fields(string(text)), name)
}

func TestBadResources(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("bad"))
	bad := map[string]*resources{"negative memory": {MemoryLimitInBytes: -5}, "CPU of letters": {CpusetCpus: "a-b"}}
	if hasController("cpuset") { // what no controller can enforce is dropped
		bad["CPU that is absent"] = &resources{CpusetCpus: strconv.Itoa(runtime.NumCPU() + 5000)}
	}
	if hasController("hugetlb") {
		bad["hugepage of no size"] = &resources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3KB", Limit: 1}}}
	}
	for name, r := range bad {
		c, err := pod.TryCreate(d.Sleeper("c", harness.Resources(r)))
		if err == nil {
			err = c.TryStart()
			c.Remove()
		}
		wantCode(t, name, err, codes.InvalidArgument)
	}
	file := d.Write(filepath.Join(d.Dir, "file"), "")
	for name, parent := range map[string]string{"parent folder": "/a/../../b", "a file": "/cgroup.procs", "newline": "/a\nb", "a host's file": file + "/x/../../../.."} {
		_, err := d.TryRunPod(d.Pod("parent", harness.CgroupParent(parent)))
		wantCode(t, "cgroup parent: "+name, err, codes.InvalidArgument)
		if err != nil && !strings.Contains(err.Error(), strings.Fields(strconv.Quote(parent))[0][1:3]) {
			t.Errorf("%v does not name the parent", err)
		}
	}
}

// TestFilesOfThePodAreMemory: what a container writes to the files that berth makes for its pod, which are outside its layer, is memory of its own when
// the state is in memory, as it is on a node; so its limit bounds that (threat B24, CVE-2020-8557).
func TestFilesOfThePodAreMemory(t *testing.T) {
	state, err := os.MkdirTemp("/var/tmp", "bt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	if err := unix.Mount("tmpfs", state, "tmpfs", 0, "size=512m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(state, unix.MNT_DETACH) }) // unless the daemon's sweep was there before
	d := harness.Start(t, harness.WithState(state))
	c := d.RunPod(d.Pod("files")).Run(d.Shell("c", "for f in hosts hostname resolv.conf; do probe bytes 100000000 x >>/etc/$f; done",
		harness.Resources(&resources{MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20})))
	c.Wait(harness.Timeout)
	var st unix.Statfs_t
	if err := unix.Statfs(state, &st); err != nil {
		t.Fatal(err)
	}
	if used := int64(st.Blocks-st.Bfree) * st.Bsize; used < 8<<20 || used > 80<<20 {
		t.Errorf("%d MiB of the state's memory are in use: it wrote 300 within 64", used>>20)
	}
}
