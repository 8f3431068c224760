package uml_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

type resources = runtimeapi.LinuxContainerResources

const cgroups = "/sys/fs/cgroup"

// cgroupFolder is where a container's first process is.
func cgroupFolder(c *harness.Container) string {
	c.T.Helper()
	path, ok := strings.CutPrefix(strings.TrimSpace(c.Host("cgroup")), "0::")
	if !ok {
		c.T.Fatalf("the container's cgroups are %q", c.Host("cgroup"))
	}
	return cgroups + path
}

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Limits are the files of version 2, and only the container's own cgroups are written.
func TestLimits(t *testing.T) {
	const parent = "/limits"
	d := harness.Start(t, harness.WithCgroupParent(parent))
	before := read(t, cgroups+"/cgroup.procs")
	if !strings.Contains("\n"+before+"\n", "\n"+strconv.Itoa(os.Getpid())+"\n") {
		t.Fatalf("the tests are not in the root cgroup: %q", before)
	}
	c := d.RunPod(d.Pod("limits", harness.CgroupParent(parent))).Run(d.Sleeper("c", harness.Resources(&resources{
		CpuShares: 512, CpuPeriod: 50000, CpuQuota: 25000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: -998,
		Unified: map[string]string{"memory.high": "50331648", "memory.low": "8388608", "memory.oom.group": "1", "pids.max": "77"},
	})))
	dir := cgroupFolder(c)
	if !strings.HasPrefix(dir, cgroups+parent+"/") || filepath.Base(dir) != c.ID {
		t.Errorf("the container is in %s, want it below %s", dir, parent)
	}
	for file, want := range map[string]string{
		"cpu.weight": "59", "cpu.max": "25000 50000", "memory.max": "67108864", "memory.high": "50331648", "memory.low": "8388608",
		"memory.oom.group": "1", "memory.swap.max": "0", "pids.max": "77", "cgroup.type": "domain",
	} {
		if got := read(t, filepath.Join(dir, file)); got != want {
			t.Errorf("%s = %q, want %q", file, got, want)
		}
	}
	// Nothing is clamped where nothing has to be.
	if got := strings.TrimSpace(c.Host("oom_score_adj")); got != "-998" {
		t.Errorf("oom_score_adj = %s, want -998", got)
	}
	if text := read(t, d.Log); strings.Contains(text, "does not get all that it asks for") {
		t.Errorf("the log says that something was withheld:\n%s", text)
	}
	for _, up := range []string{cgroups, cgroups + parent} {
		if got := read(t, up+"/cgroup.subtree_control"); !strings.Contains(got, "memory") || !strings.Contains(got, "pids") || !strings.Contains(got, "cpu") {
			t.Errorf("%s hands %q down", up, got)
		}
	}
	if after := read(t, cgroups+"/cgroup.procs"); !strings.Contains("\n"+after+"\n", "\n"+strconv.Itoa(os.Getpid())+"\n") {
		t.Errorf("the tests were moved out of the root cgroup")
	}
}

func TestUnifiedResourcesThatCannotBe(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("unified"))
	for file, value := range map[string]string{
		"cgroup.procs": "1", "cgroup.subtree_control": "+pids", "../memory.high": "1", "memory.high/x": "1", "memory": "1", "": "1",
		"devices.allow": "a", "memory.max\n": "1", "memory.high": "1\n2", "cpuset.cpus": "0",
	} {
		_, err := pod.TryCreate(d.Sleeper("c", harness.Resources(&resources{Unified: map[string]string{file: value}})))
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("unified %q: %q is answered with %v, want InvalidArgument", file, value, err)
		}
	}
	for file, value := range map[string]string{"memory.no_such_file": "1", "memory.high": "much"} {
		c := pod.Create(d.Sleeper("c", harness.Resources(&resources{Unified: map[string]string{file: value}})))
		if err := c.TryStart(); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("unified %q: %q: start = %v, want an error that names it", file, value, err)
		}
		c.Remove()
	}
}

// Swap alone is what version 2 limits; the request's limit is that of memory and swap together.
func TestSwap(t *testing.T) {
	const mib = 1 << 20
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("swap"))
	c := pod.Run(d.Sleeper("c", harness.Resources(&resources{MemoryLimitInBytes: 64 * mib, MemorySwapLimitInBytes: 96 * mib})))
	kept := func(want int) {
		t.Helper()
		if got := read(t, filepath.Join(cgroupFolder(c), "memory.swap.max")); got != strconv.Itoa(want) {
			t.Errorf("memory.swap.max = %s, want %d", got, want)
		}
	}
	kept(32 * mib)
	if _, err := c.Runtime.UpdateContainerResources(c.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID,
		Linux: &resources{MemorySwapLimitInBytes: 128 * mib}}); err != nil {
		t.Fatal(err)
	}
	kept(64 * mib)
	if r := c.Status().GetResources().GetLinux(); r.GetMemorySwapLimitInBytes() != 128*mib || r.GetMemoryLimitInBytes() != 64*mib {
		t.Errorf("the status has %v", r)
	}
	limited := pod.Run(d.Sleeper("kubelet", harness.Resources(&resources{MemoryLimitInBytes: 64 * mib, Unified: map[string]string{"memory.swap.max": "1048576"}})))
	if got := read(t, filepath.Join(cgroupFolder(limited), "memory.swap.max")); got != "1048576" {
		t.Errorf("with LimitedSwap of a kubelet memory.swap.max = %s", got)
	}
	_, err := pod.TryCreate(d.Sleeper("bad", harness.Resources(&resources{MemorySwapLimitInBytes: 64 * mib})))
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("swap without memory = %v, want InvalidArgument", err)
	}
}

func TestOutOfMemory(t *testing.T) {
	const parent = "/oom"
	d := harness.Start(t, harness.WithCgroupParent(parent))
	pod := d.RunPod(d.Pod("oom", harness.CgroupParent(parent)))
	other := pod.Run(d.Sleeper("bystander"))
	const limit = 32 << 20
	eat := []string{"probe", "eat", "200"}
	script := "probe eat 200; echo survived; exit 3"
	for _, tc := range []struct {
		name   string
		config *runtimeapi.ContainerConfig
		code   int32
		reason string
	}{
		{"first process", d.Container("first", eat, harness.Resources(&resources{MemoryLimitInBytes: limit})), 137, "OOMKilled"},
		{"child", d.Shell("child", script, harness.Resources(&resources{MemoryLimitInBytes: limit})), 3, "Error"},
		{"all together", d.Shell("group", script, harness.Resources(&resources{MemoryLimitInBytes: limit,
			Unified: map[string]string{"memory.oom.group": "1"}})), 137, "OOMKilled"},
	} {
		c := pod.Run(tc.config)
		if s := c.Wait(30 * time.Second); s.ExitCode != tc.code || s.Reason != tc.reason {
			t.Errorf("%s: code %d, reason %q, want %d %s", tc.name, s.ExitCode, s.Reason, tc.code, tc.reason)
		}
		c.Remove()
	}
	// The pod's limit: the kernel picks the container that eats.
	write(t, cgroups+parent+"/memory.max", strconv.Itoa(limit))
	c := pod.Run(d.Container("pod-limit", eat))
	if s := c.Wait(30 * time.Second); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("pod's limit: code %d, reason %q, want 137 OOMKilled", s.ExitCode, s.Reason)
	}
	if got := other.Sh("echo here"); got != "here" {
		t.Errorf("the container beside says %q", got)
	}
}

// A container sees its own cgroup as the root of the hierarchy, and changes it only when it is privileged.
func TestCgroupsInsideAContainer(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("inside", harness.Privileged))
	limit := harness.Resources(&resources{MemoryLimitInBytes: 64 << 20})
	c := pod.Run(d.Sleeper("plain", limit))
	for script, want := range map[string]string{
		"cat /proc/1/cgroup":                                  "0::/",
		"cat /sys/fs/cgroup/memory.max":                       "67108864",
		"cat /sys/fs/cgroup/cgroup.procs | head -1":           "1",
		"grep -c ' /sys/fs/cgroup cgroup2 ro' /proc/mounts":   "1",
		"ls -d /sys/fs/cgroup/*/ 2>/dev/null | grep -v exec-": "",
		"mkdir /sys/fs/cgroup/x 2>&1":                         "mkdir: can't create directory '/sys/fs/cgroup/x': Read-only file system",
	} {
		if got := strings.TrimSpace(c.Exec("sh", "-c", script).Stdout); got != want {
			t.Errorf("%q says %q, want %q", script, got, want)
		}
	}
	privileged := pod.Run(d.Sleeper("privileged", limit, harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })))
	dir := cgroupFolder(privileged)
	// It takes the delegation, as a service manager inside would: its own processes into a leaf, controllers for that.
	privileged.Sh(`cd /sys/fs/cgroup` + strings.TrimPrefix(dir, cgroups) + ` && mkdir leaf && for p in $(cat cgroup.procs); do echo $p >leaf/cgroup.procs; done && echo +memory +pids >cgroup.subtree_control`)
	if got := read(t, dir+"/cgroup.subtree_control"); !strings.Contains(got, "memory") {
		t.Fatalf("the container could not take the delegation: %q", got)
	}
	if r := privileged.Exec("echo", "still"); r.Stdout != "still\n" || r.Code != 0 {
		t.Errorf("exec after that: %+v", r)
	}
	privileged.Exec("sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 &")
	d.Restart()
	privileged.Stop(0)
	privileged.Remove()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
}

func TestStopOfAFrozenContainer(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("frozen")).Run(d.Sleeper("c"))
	dir := cgroupFolder(c)
	write(t, dir+"/cgroup.freeze", "1")
	start := time.Now()
	c.Stop(time.Second)
	if s := c.Status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 || time.Since(start) > harness.Patience {
		t.Errorf("state %s, code %d after %s, want an exit by SIGKILL", s.State, s.ExitCode, time.Since(start))
	}
}

func TestEveryCapability(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("capabilities", harness.Privileged))
	const all = "000001ffffffffff"
	for name, change := range map[string]func(*runtimeapi.LinuxContainerSecurityContext){
		"privileged": func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true },
		"all": func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}
		},
	} {
		c := pod.Run(d.Sleeper(name, harness.Security(change)))
		for _, pid := range []string{"1", "self"} {
			if got := c.Sh("grep -E 'Cap(Eff|Prm|Bnd)' /proc/" + pid + "/status"); strings.Count(got, all) != 3 {
				t.Errorf("%s: %s", name, got)
			}
		}
	}
	c := pod.Run(d.Sleeper("limits", harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
	})))
	if got := c.Sh("ulimit -H -n; ulimit -n; ulimit -H -n 600000 && ulimit -H -n; echo -900 >/proc/self/oom_score_adj && cat /proc/self/oom_score_adj"); got != "524288\n1024\n600000\n-900" {
		t.Errorf("limits of files, and a lower out-of-memory score: %q", got)
	}
}
