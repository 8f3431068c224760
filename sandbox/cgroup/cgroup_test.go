package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/test/wait"
)

// open gives a driver with a tree of this test's own, and checks at the end that nothing of it is left.
func open(t testing.TB) *Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root to make cgroups")
	}
	d, err := Open(fmt.Sprintf("test%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts := d.hierarchies
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range mounts {
			if _, err := os.Stat(h.mount + d.tree); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s%s is left: %v", h.mount, d.tree, err)
			}
		}
	})
	return d
}

func create(t testing.TB, d *Driver, p string, res *specs.LinuxResources) *Group {
	t.Helper()
	g, err := d.Create(p, res)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := errors.Join(d.Kill(p), d.Remove(ctx, p)); err != nil {
			t.Error(err)
		}
		for up := filepath.Dir(p); up != d.Tree() && up != "/"; up = filepath.Dir(up) {
			if err := d.RemoveEmpty(up); err != nil {
				t.Error(err)
			}
		}
	})
	return g
}

// run starts a shell in the group, and waits until it is there.
func run(t testing.TB, g *Group, script string) *exec.Cmd {
	t.Helper()
	var join strings.Builder
	for _, f := range g.Dirs {
		file := "tasks"
		if _, err := os.Stat(f.Name() + "/tasks"); err != nil {
			file = "cgroup.procs"
		}
		fmt.Fprintf(&join, "echo 0 >%s/%s || exit 99; ", f.Name(), file)
	}
	cmd := exec.Command("sh", "-c", join.String()+"echo in; "+script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 3)); err != nil {
		t.Fatal("the shell did not join:", err, cmd.Wait())
	}
	return cmd
}

func ptr[T any](v T) *T { return &v }

func TestParseMountinfo(t *testing.T) {
	table := `25 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
27 25 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/x,name=systemd
28 25 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
29 25 0:23 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct
30 25 0:26 / /sys/fs/cgroup/with\040space rw - cgroup cgroup rw,memory
bad line
31 25
`
	var got []string
	for _, h := range parseMountinfo(table) {
		got = append(got, fmt.Sprintf("%s %v %v", h.mount, h.controllers, h.v2))
	}
	want := []string{
		"/sys/fs/cgroup/unified [] true",
		"/sys/fs/cgroup/cpu,cpuacct [cpu cpuacct] false",
		"/sys/fs/cgroup/systemd [name=systemd] false",
		"/sys/fs/cgroup/with space [memory] false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("parseMountinfo (-want +got):\n%s", diff)
	}
}

func TestCheckRefusesWhatCannotNameACgroup(t *testing.T) {
	d := open(t)
	for _, bad := range []string{"", "berth", "/a/../b", "/..", "/a//b", "/a/", "/a\nb", "/a\x00b", "/" + strings.Repeat("x", 256),
		"/cgroup.procs", "/a/memory.limit_in_bytes", "/a/tasks", "/a/cpu.shares/b", "/" + strings.Repeat("a/", 4096) + "b"} {
		if err := d.Check(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("Check(%.40q) = %v, want ErrInvalid", bad, err)
		}
		if _, err := d.Create(bad, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("Create(%.40q) = %v, want ErrInvalid", bad, err)
		}
	}
	for _, good := range []string{"/a", "/kubepods/burstable/pod1", "/kubepods.slice", "/a..b", "/pods.d"} {
		if err := d.Check(good); err != nil {
			t.Errorf("Check(%q) = %v", good, err)
		}
	}
	if err := d.Remove(t.Context(), "/"); !errors.Is(err, ErrInvalid) {
		t.Errorf("Remove(/) = %v, want ErrInvalid", err)
	}
}

func TestWeightMeetsTheThreePoints(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func TestDeviceRule(t *testing.T) {
	for _, tc := range []struct {
		rule specs.LinuxDeviceCgroup
		want string
	}{
		{specs.LinuxDeviceCgroup{Access: "rwm"}, "a"},
		{specs.LinuxDeviceCgroup{Type: "c", Access: "m"}, "c *:* m"},
		{specs.LinuxDeviceCgroup{Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rw"}, "c 1:3 rw"},
		{specs.LinuxDeviceCgroup{Type: "b", Major: ptr(int64(8)), Minor: ptr(int64(-1))}, "b 8:* rwm"},
	} {
		if got := deviceRule(tc.rule); got != tc.want {
			t.Errorf("deviceRule(%+v) = %q, want %q", tc.rule, got, tc.want)
		}
	}
}

// firstCPU is a cpuset of one processor, or none where the kernel has no cpuset controller.
func firstCPU(d *Driver) string {
	if _, err := d.controller("cpuset"); err != nil {
		return ""
	}
	return "0"
}

func limits(d *Driver) *specs.LinuxResources {
	return &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: ptr(uint64(512)), Quota: ptr(int64(50000)), Period: ptr(uint64(100000)), Cpus: firstCPU(d)},
		Memory:         &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		Pids:           &specs.LinuxPids{Limit: ptr(int64(100))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}, {Pagesize: "7XB", Limit: 0}},
		Devices: []specs.LinuxDeviceCgroup{
			{Allow: false, Access: "rwm"},
			{Allow: true, Type: "c", Access: "m"},
			{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"},
		},
	}
}

func TestCreateSetsLimits(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, limits(d))
	want := map[string]string{"cpu.shares": "512", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "cpuset.cpus": "0", "cpuset.mems": "0",
		"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "67108864", "pids.max": "100", "devices.list": "c *:* m\nc 1:3 rwm"}
	if d.V2() {
		want = map[string]string{"cpu.weight": "59", "cpu.max": "50000 100000", "memory.max": "67108864", "memory.swap.max": "0", "pids.max": "100"}
	}
	for file, value := range want {
		controller, _, _ := strings.Cut(file, ".")
		h, err := d.controller(controller)
		if err != nil {
			t.Log(err)
			continue
		}
		if got, err := h.read(relative(p), file); err != nil || got != value {
			t.Errorf("%s = %q, %v, want %q", file, got, err, value)
		}
	}
}

func TestUpdateRaisesAndLowersMemory(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, limits(d))
	for _, mib := range []int64{16, 256, 32, 64} {
		res := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(mib << 20), Swap: ptr(mib << 20)}}
		if err := d.Update(p, res); err != nil {
			t.Errorf("Update to %d MiB: %v", mib, err)
		}
	}
}

func TestCreateTwiceAndMissing(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	if diff := cmp.Diff([]string{d.Tree(), d.Tree() + "/pod", p}, d.Missing(p)); diff != "" {
		t.Errorf("Missing before (-want +got):\n%s", diff)
	}
	create(t, d, p, nil)
	again, err := d.Create(p, nil)
	if err != nil {
		t.Fatal("second Create:", err)
	}
	again.Close()
	if got := d.Missing(p); len(got) != 0 {
		t.Errorf("Missing after = %v", got)
	}
	if err := d.RemoveEmpty(d.Tree() + "/pod"); err != nil || !d.Exists(p) {
		t.Errorf("RemoveEmpty of a used ancestor = %v, leaf there: %v", err, d.Exists(p))
	}
	if names, err := d.List(d.Tree()); err != nil || !cmp.Equal(names, []string{"pod"}) {
		t.Errorf("List = %v, %v", names, err)
	}
}

func TestFailedCreateLeavesNoLeaf(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	missing := d.Missing(p)
	bad := &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "999"}, Pids: &specs.LinuxPids{Limit: ptr(int64(1))}}
	if _, err := d.Create(p, bad); err == nil {
		t.Error("Create with cpu 999 succeeded")
	}
	if d.Exists(p) {
		t.Error("the leaf is left")
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := d.RemoveEmpty(missing[i]); err != nil {
			t.Error(err)
		}
	}
}

func TestKillEndsAForkBombAtItsLimit(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(30))}})
	cmd := run(t, g, `trap "" TERM; bomb() { bomb 2>/dev/null & bomb 2>/dev/null & sleep 100; }; bomb 2>/dev/null; sleep 100`)
	if pids, err := d.PIDs(p); err != nil || len(pids) == 0 {
		t.Errorf("PIDs = %v, %v", pids, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := d.Kill(p); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if err := errors.Join(d.Wait(ctx, p), d.Remove(ctx, p)); err != nil {
		t.Fatal(err)
	}
	if d.Exists(p) {
		t.Error("the leaf is left")
	}
	if err := errors.Join(d.Kill(p), d.Wait(ctx, p), d.Remove(ctx, p)); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestKillThawsFrozenProcesses(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	cmd := run(t, create(t, d, p, nil), "sleep 100")
	if d.V2() {
		if err := d.unified.write(relative(p), "cgroup.freeze", "1"); err != nil {
			t.Fatal(err)
		}
	} else if h, err := d.controller("freezer"); err == nil {
		if err := h.write(relative(p), "freezer.state", "FROZEN"); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Kill(p); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

// Without the unified hierarchy what an exec started has a cgroup as well, by which it is killed.
func TestChildOfVersion1(t *testing.T) {
	d := open(t)
	if d.V2() {
		t.Skip("the kernel has no version 1 hierarchy mounted")
	}
	old := &Driver{tree: d.tree, hierarchies: slices.DeleteFunc(slices.Clone(d.hierarchies), func(h *hierarchy) bool { return h.v2 })}
	p := d.Tree() + "/pod/leaf"
	leaf := run(t, create(t, old, p, nil), "sleep 100")
	child, err := old.Child(p, "exec-1")
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	exec := run(t, child, "setsid sleep 100 & sleep 100")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := errors.Join(old.Kill(child.Path), old.Wait(ctx, child.Path)); err != nil {
		t.Error(err)
	}
	exec.Wait()
	if gone, err := old.RemoveChild(child.Path); err != nil || !gone {
		t.Errorf("RemoveChild = %t, %v", gone, err)
	}
	if pids, err := old.PIDs(p); err != nil || len(pids) == 0 {
		t.Errorf("the leaf's own processes are gone: %v, %v", pids, err)
	}
	if err := old.Kill(p); err != nil {
		t.Error(err)
	}
	leaf.Wait()
}

// A container that runs containers may have frozen one of those.
func TestKillThawsWhatIsFrozenBelow(t *testing.T) {
	d := open(t)
	h, err := d.controller("freezer")
	if err != nil {
		t.Skip("the kernel has no version 1 freezer mounted: what version 2 freezes ends when it is killed")
	}
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, nil)
	below := relative(p) + "/a/b"
	for _, rel := range []string{path.Dir(below), below} {
		if _, err := h.mkdir(rel); err != nil {
			t.Fatal(err)
		}
	}
	cmd := run(t, g, "echo 0 >"+h.mount+"/"+below+"/cgroup.procs; echo there; sleep 100")
	waitUntil(t, "the process is below", func() bool { pids, err := h.pids(below); return err == nil && len(pids) > 0 })
	waitUntil(t, "the process is frozen", func() bool { // the version 1 freezer misses one that forks or is moved meanwhile, until it is told again
		if err := h.write(below, "freezer.state", "FROZEN"); err != nil {
			t.Fatal(err)
		}
		state, _ := h.read(below, "freezer.state")
		return strings.TrimSpace(state) == "FROZEN"
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	err = errors.Join(d.Kill(p), d.Wait(ctx, p), d.Remove(ctx, p))
	if err != nil {
		t.Error(err, h.write(below, "freezer.state", "THAWED"))
	}
	cmd.Wait()
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	if !wait.Until(20*time.Second, 5*time.Millisecond, is) {
		t.Fatal("not in time: " + what)
	}
}

// The number of cgroups has a limit on version 2, which kubelets and operators set.
func TestLimitOfCgroups(t *testing.T) {
	d := open(t)
	if d.unified == nil {
		t.Skip("the kernel has no unified hierarchy mounted")
	}
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, nil)
	if err := d.unified.write(relative(path.Dir(p)), "cgroup.max.descendants", "1"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Create": func() error { _, err := d.Create(path.Dir(p)+"/second", nil); return err }(),
		"Child":  func() error { _, err := d.Child(p, "exec-1"); return err }(),
		"Branch": func() error { _, err := d.Branch(p, "exec-2"); return err }(),
	} {
		if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "cgroup.max.descendants") {
			t.Errorf("%s = %v, want ErrFull", what, err)
		}
	}
	if left, err := d.List(path.Dir(p)); err != nil || len(left) != 1 {
		t.Errorf("left are %q, %v", left, err)
	}
	if left, err := d.List(p); err != nil || len(left) != 0 {
		t.Errorf("left of execs are %q, %v", left, err)
	}
}

func TestKillEachWithoutTheKernelsHelp(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	cmd := run(t, create(t, d, p, nil), "sleep 100 & sleep 100 & wait")
	if err := errors.Join(d.killEach(relative(p)), d.thaw(relative(p))); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := d.waitEach(ctx, relative(p)); err != nil {
		t.Error(err)
	}
	// Below counts as well.
	h := d.processHierarchy()
	if _, err := h.mkdir(relative(p) + "/below"); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("sh", "-c", "echo 0 >"+h.mount+p+"/below/cgroup.procs; sleep 100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the process is below", func() bool { pids, err := h.pids(relative(p) + "/below"); return err == nil && len(pids) > 0 })
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.waitEach(short, relative(p)); err == nil {
		t.Error("nobody waited for a process below")
	}
	if err := d.killEach(relative(p)); err != nil {
		t.Error(err)
	}
	cmd.Wait()
}

// A container may make threaded cgroups below its own, which do not list processes.
func TestRemoveKillsAroundThreadedCgroups(t *testing.T) {
	d := pure(t)
	p := d.Tree() + "/pod/leaf"
	cmd := run(t, create(t, d, p, nil), "sleep 100")
	if _, err := d.unified.mkdir(relative(p) + "/threaded"); err != nil {
		t.Fatal(err)
	}
	if err := d.unified.write(relative(p)+"/threaded", "cgroup.type", "threaded"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := errors.Join(d.killEach(relative(p)), d.Remove(ctx, p)); err != nil {
		t.Error(err)
	}
	cmd.Wait()
}

func TestRemoveKillsWhatLeftTheUnifiedLeaf(t *testing.T) {
	d := open(t)
	if d.V2() || d.unified == nil {
		t.Skip("the kernel has no version 1 hierarchy mounted beside the unified one")
	}
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, nil)
	cmd := run(t, g, "echo 0 >"+d.unified.mount+"/cgroup.procs; sleep 100")
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	wait.Until(20*time.Second, time.Millisecond, func() bool {
		pids, err := d.unified.pids(relative(p))
		return err != nil || len(pids) == 0
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := errors.Join(d.Kill(p), d.Remove(ctx, p)); err != nil {
		t.Error(err)
	}
	<-done
}

func TestRemoveTakesWhatTheContainerMadeBelow(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, nil)
	for _, h := range d.hierarchies {
		for _, below := range []string{"/a", "/a/b", "/c"} {
			if _, err := h.mkdir(relative(p + below)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Remove(t.Context(), p); err != nil || d.Exists(p) {
		t.Errorf("Remove = %v, there: %v", err, d.Exists(p))
	}
}

func TestChildKillsOnlyItsOwn(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	leaf := run(t, create(t, d, p, nil), "sleep 100")
	child, err := d.Child(p, "exec-1")
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	if child.Kill == nil {
		t.Skip("the kernel has no cgroup.kill")
	}
	exec := run(t, child, "sleep 100 & sleep 100")
	if _, err := child.Kill.WriteString("1"); err != nil {
		t.Fatal(err)
	}
	exec.Wait()
	if err := errors.Join(d.Wait(t.Context(), child.Path), d.Remove(t.Context(), child.Path)); err != nil {
		t.Error(err)
	}
	if err := leaf.Process.Signal(os.Signal(os.Interrupt)); err != nil {
		t.Error("the leaf's own process is gone:", err)
	}
	d.Kill(p)
	leaf.Wait()
}

func TestOOMKillsCounts(t *testing.T) {
	d := open(t)
	p := d.Tree() + "/pod/leaf"
	if _, err := d.controller("memory"); err != nil {
		t.Skipf("the kernel has no memory controller: %v", err)
	}
	g := create(t, d, p, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(8 << 20)), Swap: ptr(int64(8 << 20))}})
	if n, err := d.OOMKills(p); n != 0 || err != nil {
		t.Errorf("OOMKills before = %d, %v", n, err)
	}
	run(t, g, "exec tail /dev/zero").Wait()
	if n, err := d.OOMKills(p); n != 1 || err != nil {
		t.Errorf("OOMKills after = %d, %v, want 1", n, err)
	}
	if n, err := d.OOMKills(d.Tree() + "/never"); n != 0 || err != nil {
		t.Errorf("OOMKills of nothing = %d, %v", n, err)
	}
}

func TestMonitorsHaveASmallWeight(t *testing.T) {
	d := open(t)
	g, err := d.Monitors()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if len(g.Dirs) != len(d.hierarchies) {
		t.Errorf("%d directories for %d hierarchies", len(g.Dirs), len(d.hierarchies))
	}
	if h, err := d.controller("cpu"); err == nil && !h.v2 {
		if got, _ := h.read(relative(d.MonitorPath()), "cpu.shares"); got != strconv.Itoa(monitorShares) {
			t.Errorf("cpu.shares = %s", got)
		}
	}
}

func TestCreateRacesWithRemovalOfTheAncestor(t *testing.T) {
	d := open(t)
	stop, done := make(chan struct{}), make(chan struct{})
	defer func() {
		close(stop)
		<-done
		d.RemoveEmpty(d.Tree() + "/pod")
	}()
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				d.RemoveEmpty(d.Tree() + "/pod")
			}
		}
	}()
	for i := range 300 {
		p := fmt.Sprintf("%s/pod/%d", d.Tree(), i)
		g, err := d.Create(p, nil)
		if err != nil {
			t.Fatal(err)
		}
		g.Close()
		if err := d.Remove(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
}

func TestParallelCreatesShareAMissingAncestor(t *testing.T) {
	d := open(t)
	for round := range 50 {
		errs := make(chan error, 4)
		for i := range cap(errs) {
			go func() {
				p := fmt.Sprintf("%s/pod/%d/%d", d.Tree(), round, i)
				g, err := d.Create(p, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: firstCPU(d)}})
				if err == nil {
					g.Close()
					err = d.Remove(t.Context(), p)
				}
				errs <- err
			}()
		}
		for range cap(errs) {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		d.RemoveEmpty(fmt.Sprintf("%s/pod/%d", d.Tree(), round))
	}
	d.RemoveEmpty(d.Tree() + "/pod")
}

func BenchmarkCreate(b *testing.B) {
	d := open(b)
	keep := create(b, d, d.Tree()+"/keep", nil)
	defer keep.Close()
	var removal time.Duration
	for i := range b.N {
		p := d.Tree() + "/" + strconv.Itoa(i)
		g, err := d.Create(p, limits(d))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		g.Close()
		start := time.Now()
		if err := d.Remove(b.Context(), p); err != nil {
			b.Fatal(err)
		}
		removal += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(float64(removal.Nanoseconds())/float64(b.N), "ns/remove")
}

// BenchmarkLibrary is what containerd/cgroups needs for the version 1 part of the same.
func BenchmarkLibrary(b *testing.B) {
	d := open(b)
	if d.V2() {
		b.Skip("the kernel has no version 1 hierarchies mounted")
	}
	keep := create(b, d, d.Tree()+"/keep", nil)
	defer keep.Close()
	res := limits(d)
	res.HugepageLimits = nil
	for i := range b.N {
		group, err := cgroup1.New(cgroup1.StaticPath(d.Tree()+"/"+strconv.Itoa(i)), res)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := group.Delete(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// pure gives a driver that sees the unified hierarchy alone, as on a host without version 1. On a hybrid host it lacks most controllers.
func pure(t *testing.T) *Driver {
	t.Helper()
	d := open(t)
	if d.unified == nil {
		t.Skip("the kernel has no unified hierarchy mounted")
	}
	return &Driver{tree: d.tree, hierarchies: []*hierarchy{d.unified}, unified: d.unified, pure: true}
}

func TestDevicesByProgram(t *testing.T) {
	d := pure(t)
	denied := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	allowed := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		rule := denied(major, minor, access)
		rule.Allow = true
		return rule
	}
	none := specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"}
	all := specs.LinuxDeviceCgroup{Allow: true}
	const open, openWrite, openBoth = "head -c 1 </dev/zero", "echo >/dev/zero", "exec 5<>/dev/zero"
	quiet, node := t.TempDir()+"/stderr", "mknod "+t.TempDir()+"/"
	for _, tc := range []struct {
		name   string
		rules  []specs.LinuxDeviceCgroup
		script string
		works  bool
	}{
		{"allowed", []specs.LinuxDeviceCgroup{none, allowed(1, 5, "rwm")}, openBoth, true},
		{"another device", []specs.LinuxDeviceCgroup{none, allowed(1, 3, "rwm")}, open, false},
		{"any minor", []specs.LinuxDeviceCgroup{none, allowed(1, -1, "rw")}, openBoth, true},
		{"reading", []specs.LinuxDeviceCgroup{none, allowed(1, 5, "r")}, open, true},
		{"writing where reading is allowed", []specs.LinuxDeviceCgroup{none, allowed(1, 5, "r")}, openWrite, false},
		{"both where reading is allowed", []specs.LinuxDeviceCgroup{none, allowed(1, 5, "r")}, openBoth, false},
		{"making nodes only", []specs.LinuxDeviceCgroup{none, {Allow: true, Type: "c", Access: "m"}}, node + "a c 1 5", true},
		{"using a node that may be made", []specs.LinuxDeviceCgroup{none, {Allow: true, Type: "c", Access: "m"}}, open, false},
		{"making a block device", []specs.LinuxDeviceCgroup{none, {Allow: true, Type: "c", Access: "m"}}, node + "b b 7 0", false},
		{"all", []specs.LinuxDeviceCgroup{all}, openBoth, true},
		{"all but writing", []specs.LinuxDeviceCgroup{all, denied(1, 5, "w")}, open, true},
		{"writing where all but that is allowed", []specs.LinuxDeviceCgroup{all, denied(1, 5, "w")}, openBoth, false},
		{"the last rule decides", []specs.LinuxDeviceCgroup{all, denied(1, 5, "rwm"), allowed(1, 5, "rwm")}, openBoth, true},
		{"nothing matches", []specs.LinuxDeviceCgroup{allowed(1, 3, "rwm")}, open, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := create(t, d, d.Tree()+"/pod/leaf", &specs.LinuxResources{Devices: tc.rules})
			if err := run(t, g, "("+tc.script+") 2>"+quiet+" || exit 2").Wait(); (err == nil) != tc.works {
				t.Errorf("%q: %v, want it to work: %t", tc.script, err, tc.works)
			}
		})
	}
	for _, bad := range []specs.LinuxDeviceCgroup{{Type: "x"}, allowed(1<<40, 0, "r"), allowed(1, 1, "rx")} {
		if _, err := deviceProgram([]specs.LinuxDeviceCgroup{bad}); err == nil {
			t.Errorf("deviceProgram(%+v) succeeded", bad)
		}
	}
}

func TestDeviceRules(t *testing.T) {
	if d := open(t); !d.DeviceRules() {
		t.Error("the host has no rules for devices")
	}
	if d := pure(t); !d.DeviceRules() {
		t.Error("version 2 has no rules for devices")
	}
	if (&Driver{}).DeviceRules() {
		t.Error("a host without cgroups has rules for devices")
	}
}

func TestVersion2Alone(t *testing.T) {
	d := pure(t)
	if !d.V2() {
		t.Error("V2 is false")
	}
	p := d.Tree() + "/pod/leaf"
	g := create(t, d, p, &specs.LinuxResources{Unified: map[string]string{}})
	if len(g.Dirs) != 1 || g.Kill == nil {
		t.Errorf("Group = %+v", g)
	}
	if _, err := d.controller("memory"); err != nil {
		limited := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 30))}}
		if err := d.Update(p, limited); !errors.Is(err, ErrNotSupported) {
			t.Errorf("a limit without its controller: %v, want ErrNotSupported", err)
		}
	}
	for _, file := range []string{"cgroup.procs", "../x.y", "noprefix"} {
		if err := d.Update(p, &specs.LinuxResources{Unified: map[string]string{file: "1"}}); !errors.Is(err, ErrInvalid) {
			t.Errorf("unified file %q: %v, want ErrInvalid", file, err)
		}
	}
	text, err := d.unified.read(relative(d.Tree()+"/pod"), "cgroup.subtree_control")
	if err != nil || (slices.Contains(d.unified.controllers, "hugetlb") && text != "hugetlb") && !slices.Contains(d.unified.controllers, "memory") {
		t.Errorf("cgroup.subtree_control = %q, %v", text, err)
	}
}

func TestVersion2Values(t *testing.T) {
	for _, tc := range []struct {
		cpu  specs.LinuxCPU
		want string
	}{
		{specs.LinuxCPU{Quota: ptr(int64(5000))}, "5000"},
		{specs.LinuxCPU{Quota: ptr(int64(-1)), Period: ptr(uint64(1000))}, "max 1000"},
		{specs.LinuxCPU{Period: ptr(uint64(1000))}, "max 1000"},
		{specs.LinuxCPU{Quota: ptr(int64(7)), Period: ptr(uint64(9))}, "7 9"},
	} {
		if got := cpuMax(&tc.cpu); got != tc.want {
			t.Errorf("cpuMax = %q, want %q", got, tc.want)
		}
	}
	if max64(-1) != "max" || max64(0) != "0" || max64(5) != "5" {
		t.Error("max64 is wrong")
	}
}
