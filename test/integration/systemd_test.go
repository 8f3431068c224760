package integration_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox/cgroup/systemdtest"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/invariants"
)

// systemd is the init of this host, or one of the test's own where the host has another.
type systemd struct {
	t    *testing.T
	fake *systemdtest.Manager // nil: the host's
	// A slice of the test's own, named as the kubelet names a pod's, its cgroup, and the first of those above that.
	slice, path, root string
}

// ownSlices counts those that tests have had.
var ownSlices atomic.Int32

// startWithSystemd starts a daemon whose cgroup driver is systemd.
func startWithSystemd(t *testing.T, options ...harness.Option) (*harness.Daemon, *systemd) {
	t.Helper()
	root := fmt.Sprintf("kubetest%dx%d", os.Getpid(), ownSlices.Add(1))
	s := &systemd{t: t, slice: root + "-burstable-pod7_1.slice", root: "/" + root + ".slice"}
	s.path = s.root + "/" + root + "-burstable.slice/" + s.slice
	options = append(options, harness.WithCgroupParent(s.root))
	if _, err := os.Stat("/run/systemd/system"); err != nil { // sd_booted(3); where it is there, it is found
		s.fake = systemdtest.Start(t)
		options = append(options, harness.WithEnv("DBUS_SYSTEM_BUS_ADDRESS="+s.fake.Address()), harness.WithCgroupDriver("systemd"))
	}
	return harness.Start(t, options...), s
}

func (s *systemd) run(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("systemctl", args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("systemctl %q: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (s *systemd) stop(unit string) {
	s.t.Helper()
	if s.fake != nil {
		s.fake.Stop(unit)
		return
	}
	s.run("stop", unit)
}

// property is one of a unit's, as systemctl shows it.
func (s *systemd) property(unit, name string) string {
	s.t.Helper()
	if s.fake != nil {
		return strings.NewReplacer("true", "yes", "false", "no", "18446744073709551615", "infinity").Replace(s.fake.Property(unit, name))
	}
	return s.run("show", "--value", "--property="+name, unit)
}

// scopes lists the units of the daemon's pods.
func (s *systemd) scopes(d *harness.Daemon) (all []string) {
	s.t.Helper()
	names := []string{}
	if s.fake != nil {
		names = s.fake.Units(".scope")
	} else {
		names = strings.Fields(s.run("list-units", "--all", "--plain", "--no-legend", "--type=scope", "berth-*"))
	}
	for _, name := range names {
		if strings.HasPrefix(name, "berth-"+d.Process.Daemon().Instance()) && strings.HasSuffix(name, ".scope") && !strings.HasSuffix(name, "-monitors.scope") {
			all = append(all, name)
		}
	}
	return all
}

// anew has systemd read its units and execute itself anew.
func (s *systemd) anew() {
	s.t.Helper()
	if s.fake != nil {
		s.fake.Reexecute()
		return
	}
	s.run("daemon-reload")
	s.run("daemon-reexec")
}

// hangBus stops the program of the system's bus, which the test's own systemd does not have.
func (s *systemd) hangBus() (resume func()) {
	s.t.Helper()
	if s.fake != nil {
		return func() {}
	}
	pid, err := strconv.Atoi(s.run("show", "--value", "--property=MainPID", "dbus.service"))
	if err != nil || pid == 0 {
		s.t.Fatalf("the bus is process %d: %v", pid, err)
	}
	signal := func(sig unix.Signal) {
		if err := unix.Kill(pid, sig); err != nil {
			s.t.Error(err)
		}
	}
	signal(unix.SIGSTOP)
	return func() { signal(unix.SIGCONT) }
}

// unifiedOf is where a process is in the unified hierarchy, and that cgroup's folder.
func unifiedOf(t *testing.T, c *harness.Container) (path, folder string) {
	t.Helper()
	for line := range strings.Lines(c.Host("cgroup")) {
		if path, found := strings.CutPrefix(strings.TrimSpace(line), "0::"); found {
			folder = "/sys/fs/cgroup"
			if !hasV2(folder) {
				folder += "/unified"
			}
			return path, folder + path
		}
	}
	t.Fatal("the container is in no unified hierarchy")
	return "", ""
}

func hasV2(folder string) bool {
	_, err := os.Stat(folder + "/cgroup.controllers")
	return err == nil
}

// TestSystemdDriver: a pod is one delegated scope in the slice that the kubelet names, with what berth limits by files inside.
func TestSystemdDriver(t *testing.T) {
	d, s := startWithSystemd(t)
	r, err := d.Runtime.RuntimeConfig(d.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || r.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_SYSTEMD {
		t.Fatalf("RuntimeConfig = %v, %v", r, err)
	}
	parents := map[string]string{"own": "", "by name": s.slice, "by path": s.path}
	for name, parent := range parents {
		pod := d.RunPod(d.Pod(strings.ReplaceAll(name, " ", "-"), harness.CgroupParent(parent)))
		c := pod.Run(d.Sleeper("c", harness.Resources(&resources{MemoryLimitInBytes: 64 << 20, CpuShares: 512})))
		want := d.Process.Daemon().PodCgroup("", pod.ID)
		if parent != "" {
			want = d.Process.Daemon().PodCgroup(s.path, pod.ID)
		}
		got, folder := unifiedOf(t, c)
		if got != want+"/"+c.ID {
			t.Errorf("%s: the container is in %s, want %s/ID", name, got, want)
		}
		scope := filepath.Base(want)
		for property, want := range map[string]string{"Delegate": "yes", "TasksMax": "infinity", "Slice": filepath.Base(filepath.Dir(want))} {
			if got := s.property(scope, property); got != want {
				t.Errorf("%s: %s of %s = %q, want %q", name, property, scope, got, want)
			}
		}
		if hasV2("/sys/fs/cgroup") {
			for file, want := range map[string]string{"memory.max": "67108864", "cpu.weight": "59"} {
				if got := strings.TrimSpace(readRaw(t, filepath.Join(folder, file))); got != want && !(file == "cpu.weight" && got == "20") {
					t.Errorf("%s: %s = %s, want %s", name, file, got, want)
				}
			}
		}
		if got := c.Sh("echo in the scope"); got != "in the scope" {
			t.Errorf("%s: exec = %q", name, got)
		}
		d.Check()
		pod.Stop()
		d.Eventually(10*time.Second, "the scope ends with its pod", func() bool { return len(s.scopes(d)) == 0 })
		pod.Remove()
	}
	d.Eventually(harness.Timeout, "the slices that were made for pods go", func() bool { // which systemd does when it comes to it
		_, err := os.Stat(unifiedMount() + s.root)
		return err != nil
	})
	d.AsBefore()
}

func unifiedMount() string {
	if hasV2("/sys/fs/cgroup") {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/unified"
}

// TestSystemdRestarts: neither the daemon's end nor systemd's own new beginnings touch a pod, its limits or what comes after.
func TestSystemdRestarts(t *testing.T) {
	d, s := startWithSystemd(t)
	pod := d.RunPod(d.Pod("pod", harness.CgroupParent(s.slice)))
	c := pod.Run(d.Sleeper("c", harness.Resources(&resources{MemoryLimitInBytes: 64 << 20, CpuShares: 512})))
	before, _ := unifiedOf(t, c)
	limits := c.Status().Resources.String()
	intact := func(when string) {
		t.Helper()
		if now, _ := unifiedOf(t, c); now != before {
			t.Errorf("after %s the container is in %s, before in %s", when, now, before)
		}
		if now := c.Status().Resources.String(); now != limits {
			t.Errorf("after %s the limits are %s, before %s", when, now, limits)
		}
		if got := c.Sh("echo here"); got != "here" {
			t.Errorf("after %s: exec = %q", when, got)
		}
		d.RunPod(d.Pod("another", harness.CgroupParent(s.slice))).Remove()
		d.Check()
	}
	d.Restart()
	intact("kill -9 of berthd")
	s.anew()
	intact("daemon-reload and daemon-reexec")
	d.Kill()
	s.anew()
	d.Start()
	intact("both")
	resume := s.hangBus()
	d.Kill()
	d.Start()
	intact("kill -9 of berthd while the bus hangs")
	resume()
	pod.Run(d.Sleeper("second"))
	pod.Remove()
	d.AsBefore()
}

// TestSystemdRestartsAllTheTime: pods that come and go meanwhile do not notice.
func TestSystemdRestartsAllTheTime(t *testing.T) {
	d, s := startWithSystemd(t)
	end, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-end:
				ended <- nil
				return
			case <-time.After(20 * time.Millisecond):
			}
			if s.fake != nil {
				s.fake.Reexecute()
			} else if out, err := exec.Command("systemctl", "daemon-reexec").CombinedOutput(); err != nil {
				ended <- fmt.Errorf("%w: %s", err, out)
				return
			}
		}
	}()
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			for range 2 {
				pod, err := d.TryRunPod(d.Pod(fmt.Sprintf("pod-%d", i), harness.CgroupParent(s.slice)))
				if err != nil {
					t.Error(err)
					return
				}
				c, err := pod.TryCreate(d.Sleeper("c"))
				if err == nil {
					err = c.TryStart()
				}
				if err := errors.Join(err, removed(pod)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	close(end)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	d.AsBefore()
}

// TestKilledWithSystemd: neither a scope nor a slice is left by a daemon that was killed while it had systemd make or end one.
func TestKilledWithSystemd(t *testing.T) {
	for _, k := range killings() {
		switch k.name {
		case "RunPodSandbox", "StartContainer", "StopPodSandbox", "RemovePodSandbox":
			t.Run(k.name, func(t *testing.T) {
				d, _ := startWithSystemd(t)
				killAtAnyPoint(d, k, 6)
			})
		}
	}
}

// TestSystemdEndsAScope: what ran in it has ended, and says so; the pod goes on with the next container.
func TestSystemdEndsAScope(t *testing.T) {
	d, s := startWithSystemd(t)
	pod := d.RunPod(d.Pod("pod", harness.CgroupParent(s.slice)))
	for range 2 {
		c := pod.Run(d.Sleeper("c"))
		scopes := s.scopes(d)
		if len(scopes) != 1 {
			t.Fatalf("scopes are %q, want one", scopes)
		}
		s.stop(scopes[0])
		c.Wait(10 * time.Second)
		c.Remove()
		if state := pod.Status().State; state != runtimeapi.PodSandboxState_SANDBOX_READY {
			t.Errorf("the pod is %s", state)
		}
		d.Eventually(10*time.Second, "the log tells of the scope", func() bool { return strings.Contains(readRaw(t, d.Log), "was ended by others") })
		d.Restart() // the next daemon has the same to say
	}
	// That of the monitors: their pods are lost, and say so, and new ones have a new scope.
	c := pod.Run(d.Sleeper("lost"))
	s.stop("berth-" + d.Process.Daemon().Instance() + "-monitors.scope")
	if status := c.Wait(10 * time.Second); status.Reason != "MonitorLost" {
		t.Errorf("reason = %s", status.Reason)
	}
	again := d.RunPod(d.Pod("again"))
	again.Run(d.Sleeper("c"))
	d.Check()
	d.Eventually(harness.Timeout, "the log tells of the monitors' scope", func() bool {
		return strings.Contains(readRaw(t, d.Log), "Scope of the monitors was ended by others")
	})
	again.Remove()
	pod.Remove()
}

// limitTasks limits a slice that is there, as the kubelet does.
func (s *systemd) limitTasks(path string, most int) {
	s.t.Helper()
	if s.fake == nil {
		s.run("set-property", "--runtime", filepath.Base(path), fmt.Sprintf("TasksMax=%d", most))
		return
	}
	mount := "/sys/fs/cgroup/pids"
	if hasV2("/sys/fs/cgroup") {
		mount = "/sys/fs/cgroup"
	}
	if err := os.WriteFile(mount+path+"/pids.max", []byte(fmt.Sprint(most)), 0); err != nil {
		s.t.Fatal(err)
	}
}

// TestSystemdPodLimits: what the kubelet limits is the slice. Containers reach its bounds, monitors never do.
func TestSystemdPodLimits(t *testing.T) {
	d, s := startWithSystemd(t)
	pod := d.RunPod(d.Pod("pod", harness.CgroupParent(s.slice)))
	first := pod.Run(d.Sleeper("first"))
	s.limitTasks(s.path, 12)
	bomb := pod.Run(d.Shell("bomb", "(while :; do sleep 1000 & done); echo full; while :; do :; done"))
	bomb.WaitOutput("full")
	s.anew()
	_, folder := unifiedOf(t, bomb)
	if n := strings.Count(readRaw(t, folder+"/cgroup.procs"), "\n"); n < 4 || n > 12 {
		t.Errorf("%d processes in a pod that may have 12", n)
	}
	if state := first.Status().State; state != running {
		t.Errorf("the other container is %s", state)
	}
	bomb.Stop(0)
	bomb.Wait(10 * time.Second)
	if got := first.Sh("echo alive"); got != "alive" {
		t.Errorf("exec = %q", got)
	}
	pod.Remove()
	d.AsBefore()
}

// TestSystemdLeavesNothing: scopes that no record names are ended, and the pods of a driver that is not configured any more can be.
func TestSystemdLeavesNothing(t *testing.T) {
	d, s := startWithSystemd(t)
	pod := d.RunPod(d.Pod("kept", harness.CgroupParent(s.slice)))
	pod.Run(d.Sleeper("c"))
	lost := d.RunPod(d.Pod("lost", harness.CgroupParent(s.slice)))
	pid := lost.Run(d.Sleeper("c")).PID()
	d.Kill()
	if err := os.RemoveAll(filepath.Join(d.Options().Root, "pods", lost.ID)); err != nil {
		t.Fatal(err)
	}
	d.Start()
	d.Eventually(10*time.Second, "the scope that nobody knows is ended, in all hierarchies", func() bool {
		dirs, err := invariants.CgroupDirs(d.Process.Daemon())
		return err == nil && len(s.scopes(d)) == 1 && !lives(pid) && !slices.ContainsFunc(dirs, func(dir string) bool { return strings.Contains(dir, lost.ID) })
	})
	d.Kill()
	other := d.Options().Config + ".d"
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(filepath.Join(other, "driver.toml"), "[cgroup]\ndriver = \"cgroupfs\"\n")
	d.Start()
	pod.Run(d.Sleeper("second"))
	pod.Remove()
	d.Eventually(10*time.Second, "the scope is ended", func() bool { return len(s.scopes(d)) == 0 })
	if err := errors.Join(d.Process.Stop(), os.RemoveAll(other)); err != nil { // not killed: its cgroups would be left to a daemon that has none of the kind
		t.Fatal(err)
	}
	d.Start()
	s.stop(filepath.Base(s.root)) // systemd's own to end: that daemon did not speak to it
}

// TestCgroupParentsOfTheDrivers: a parent of the other driver's form is refused, with the rule.
func TestCgroupParentsOfTheDrivers(t *testing.T) {
	d, _ := startWithSystemd(t)
	for parent, rule := range map[string]string{"/kubepods/burstable/pod7": "must be a systemd slice", "/pod7.slice/x-y.slice": `"/x.slice/x-y.slice"`, "a--b.slice": "must be the name"} {
		_, err := d.TryRunPod(d.Pod("refused", harness.CgroupParent(parent)))
		refused(t, parent, err, codes.InvalidArgument, rule, "systemd")
	}
	d.AsBefore()
	files := harness.Start(t, harness.WithCgroupDriver("cgroupfs"))
	_, err := files.TryRunPod(files.Pod("refused", harness.CgroupParent("kubepods-pod7.slice")))
	refused(t, "slice", err, codes.InvalidArgument, "must not be a systemd slice", "cgroupfs")
	// A scope ends with its pod, and would with all that runs in another's.
	_, err = files.TryRunPod(files.Pod("refused", harness.CgroupParent("/user.slice/session-1.scope")))
	refused(t, "scope", err, codes.InvalidArgument, "must not be a systemd slice or scope", "cgroupfs")
	r, err := files.Runtime.RuntimeConfig(files.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || r.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig = %v, %v", r, err)
	}
}
