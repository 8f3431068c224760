package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// startTime tells a process from another that got its PID.
func startTime(t testing.TB, pid int) string {
	t.Helper()
	text := readRaw(t, "/proc/"+strconv.Itoa(pid)+"/stat")
	return strings.Fields(text[strings.LastIndex(text, ")"):])[20]
}

func TestRestartKeepsEverything(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("kept"))
	c := pod.Run(d.Sleeper("runs"))
	created := pod.Create(d.Sleeper("created"))
	done := pod.Run(d.Shell("done", "exit 9"))
	done.Wait(5 * time.Second)
	later := pod.Run(d.Shell("later", "trap 'exit 13' TERM; echo up; sleep 1000 & wait"))
	later.WaitOutput("up") // before that the shell, as PID 1, ignores the signal
	stopped := d.RunPod(d.Pod("stopped"))
	stopped.Stop()
	pid, began, ips, doneStatus, runStatus, podStatus := c.PID(), startTime(t, c.PID()), pod.IPs(), done.Status(), c.Status(), pod.Status()
	laterPID := later.PID()

	d.Kill()
	if err := unix.Kill(laterPID, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	d.Start()

	d.Eventually(5*time.Second, "what ended meanwhile is known", func() bool { return later.Status().State == exited })
	if s := later.Status(); s.ExitCode != 13 || time.Since(time.Unix(0, s.FinishedAt)) > time.Minute {
		t.Errorf("what ended meanwhile: code %d, finished %d", s.ExitCode, s.FinishedAt)
	}
	if got := c.PID(); got != pid || startTime(t, got) != began {
		t.Errorf("the first process was %d, is %d", pid, got)
	}
	same(t, "status of the pod", pod.Status().GetNetwork(), podStatus.GetNetwork())
	same(t, "metadata of the pod", pod.Status().GetMetadata(), podStatus.GetMetadata())
	same(t, "status of the running container", c.Status(), runStatus)
	same(t, "status of the exited container", done.Status(), doneStatus)
	if got := pod.IPs(); !slices.Equal(got, ips) {
		t.Errorf("addresses were %q, are %q", ips, got)
	}
	if s := stopped.Status(); s.State != podNotReady {
		t.Errorf("the stopped pod is %s", s.State)
	}
	d.Check()
	created.Start()
	if got := c.Sh("echo alive"); got != "alive" {
		t.Errorf("exec = %q", got)
	}
	pod.Run(d.Sleeper("new"))
	d.Check()
	d.Stop()
	d.Start()
	d.Check()
	// Joining what was made before: the same name and configuration give the same ID.
	again, err := d.TryRunPod(pod.Config)
	if err != nil || again.ID != pod.ID {
		t.Errorf("RunPodSandbox of a pod that is ready: %v, %v, want %s", again, err, pod.ID)
	}
}

func TestAnswersSoonAfterStart(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("hung"))
	c := pod.Run(d.Sleeper("c"))
	healthy := d.RunPod(d.Pod("healthy")).Run(d.Sleeper("c"))
	monitor := monitorPID(t, pod)
	if err := unix.Kill(monitor, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(monitor, unix.SIGCONT)
	d.Kill()
	start := time.Now()
	d.Start()
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("with a hung monitor the first answer took %s", took)
	}
	d.Eventually(5*time.Second, "the runtime is ready", func() bool { return d.Status()["RuntimeReady"].GetStatus() })
	if got := healthy.Sh("echo fine"); got != "fine" {
		t.Errorf("exec in a healthy pod = %q", got)
	}
	unix.Kill(monitor, unix.SIGCONT)
	d.Eventually(10*time.Second, "the pod answers again", func() bool {
		_, err := c.TryExec(2*time.Second, "true")
		return err == nil
	})
}

func TestMonitorKilled(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("lost"))
	c := pod.Run(d.Sleeper("c"))
	other := d.RunPod(d.Pod("other")).Run(d.Sleeper("c"))
	pid := c.PID()
	if err := unix.Kill(monitorPID(t, pod), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s := c.Wait(2 * time.Second)
	if s.Reason != "MonitorLost" {
		t.Errorf("code %d, reason %q, want MonitorLost", s.ExitCode, s.Reason)
	}
	// A process that ends leaves its cgroup, which is what berthd waits for, a moment before it is a zombie (do_exit of the kernel).
	d.Eventually(5*time.Second, "the container's process is gone", func() bool { return !lives(pid) })
	d.Eventually(5*time.Second, "the pod is not ready", func() bool { return pod.Status().State == podNotReady })
	if other.Status().State != running {
		t.Error("another pod's container went too")
	}
	d.Check()
	pod.Stop()
	pod.Remove()
	d.Check()
	// The same while no daemon runs.
	pod = d.RunPod(d.Pod("lost"))
	c = pod.Run(d.Sleeper("c"))
	monitor := monitorPID(t, pod)
	d.Kill()
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Start()
	if s := c.Wait(6 * time.Second); s.Reason != "MonitorLost" {
		t.Errorf("code %d, reason %q, want MonitorLost", s.ExitCode, s.Reason)
	}
	d.Check()
}

// lives tells whether a process runs; one whose parent has not collected it does not.
func lives(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && !strings.HasPrefix(string(text[strings.LastIndex(string(text), ")"):]), ") Z")
}

// TestLinesThroughRestarts is the promise of the architecture: 2,000 lines a second through ten SIGKILLs and two rotations.
func TestLinesThroughRestarts(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("lines"))
	c := pod.Run(d.Container("writer", []string{"probe", "lines", "2000", "line"}))
	pid, ips := c.PID(), pod.IPs()
	began := startTime(t, pid)
	c.WaitOutput("line 100")
	var files []string
	for i := range 10 {
		time.Sleep(time.Duration(100+rand.IntN(200)) * time.Millisecond)
		d.Kill()
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		d.Start()
		if i == 3 || i == 7 {
			rotated := fmt.Sprintf("%s.%d", c.LogFile(), i)
			if err := os.Rename(c.LogFile(), rotated); err != nil {
				t.Fatal(err)
			}
			files = append(files, rotated)
			if _, err := d.Runtime.ReopenContainerLog(d.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
				t.Fatalf("ReopenContainerLog: %v", err)
			}
		}
	}
	if c.PID() != pid || startTime(t, pid) != began {
		t.Error("the container was started again")
	}
	if got := pod.IPs(); !slices.Equal(got, ips) {
		t.Errorf("addresses were %q, are %q", ips, got)
	}
	d.Check()
	d.Eventually(time.Minute, "some thousands of lines are in the log, the last of them there", func() bool {
		lines := c.Lines()
		n := 0
		if len(lines) > 0 {
			fmt.Sscanf(lines[len(lines)-1].Text, "line %d", &n)
		}
		return n > 4000
	})
	c.Stop(5 * time.Second)
	countLines(t, "line", append(files, c.LogFile())...)
}

// killing is one call that a kill of the daemon interrupts.
type killing struct {
	name    string
	prepare func(d *harness.Daemon, n int) (call func(context.Context) error)
}

func killings() []killing {
	ctx := func(f func(context.Context) error) func(context.Context) error { return f }
	run := func(d *harness.Daemon, n int) *harness.Pod { return d.RunPod(d.Pod(fmt.Sprintf("k%d", n))) }
	return []killing{
		{"RunPodSandbox", func(d *harness.Daemon, n int) func(context.Context) error {
			config := d.Pod(fmt.Sprintf("k%d", n), harness.HostPort(runtimeapi.Protocol_TCP, harness.FreePort(d.T), 80, ""))
			return ctx(func(c context.Context) error {
				_, err := d.Runtime.RunPodSandbox(c, &runtimeapi.RunPodSandboxRequest{Config: config})
				return err
			})
		}},
		{"CreateContainer", func(d *harness.Daemon, n int) func(context.Context) error {
			pod, config := run(d, n), d.Sleeper("c")
			return ctx(func(c context.Context) error {
				_, err := d.Runtime.CreateContainer(c, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.ID, Config: config, SandboxConfig: pod.Config})
				return err
			})
		}},
		{"StartContainer", func(d *harness.Daemon, n int) func(context.Context) error {
			c := run(d, n).Create(d.Sleeper("c"))
			return ctx(func(ctx context.Context) error {
				_, err := d.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
				if status.Code(err) == codes.FailedPrecondition {
					return nil // it was started before the kill
				}
				return err
			})
		}},
		{"ExecSync", func(d *harness.Daemon, n int) func(context.Context) error {
			c := run(d, n).Run(d.Sleeper("c"))
			return ctx(func(ctx context.Context) error {
				_, err := d.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "0.01"}})
				return err
			})
		}},
		{"StopContainer", func(d *harness.Daemon, n int) func(context.Context) error {
			c := run(d, n).Run(d.Sleeper("c"))
			return ctx(func(ctx context.Context) error {
				_, err := d.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 5})
				return err
			})
		}},
		{"RemoveContainer", func(d *harness.Daemon, n int) func(context.Context) error {
			c := run(d, n).Run(d.Sleeper("c"))
			return ctx(func(ctx context.Context) error {
				_, err := d.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
				return err
			})
		}},
		{"StopPodSandbox", func(d *harness.Daemon, n int) func(context.Context) error {
			pod := run(d, n)
			pod.Run(d.Sleeper("c"))
			return ctx(func(ctx context.Context) error {
				_, err := d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
				return err
			})
		}},
		{"RemovePodSandbox", func(d *harness.Daemon, n int) func(context.Context) error {
			pod := run(d, n)
			pod.Run(d.Sleeper("c"))
			return ctx(func(ctx context.Context) error {
				_, err := d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.ID})
				return err
			})
		}},
		{"PullImage", func(d *harness.Daemon, n int) func(context.Context) error {
			layer := registrytestLayer(d.T, func(b *builder) { b.File("n", strconv.Itoa(n), 0o644) })
			ref := harness.PushImage(d.T, fmt.Sprintf("test/kill-%d", n), imageConfig(func(*ocispecConfig) {}), layer).Ref
			return ctx(func(ctx context.Context) error {
				_, err := d.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
				return err
			})
		}},
		{"RemoveImage", func(d *harness.Daemon, n int) func(context.Context) error {
			layer := registrytestLayer(d.T, func(b *builder) { b.File("n", strconv.Itoa(n), 0o644) })
			ref := harness.PushImage(d.T, fmt.Sprintf("test/kill-%d", n), imageConfig(func(*ocispecConfig) {}), layer).Ref
			d.Pull(ref)
			return ctx(func(ctx context.Context) error {
				_, err := d.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
				return err
			})
		}},
	}
}

// TestKilledAtAnyPoint kills the daemon at random moments of every call. After the next start I1 holds, the same call succeeds,
// and what it leaves can be removed without a rest.
func TestKilledAtAnyPoint(t *testing.T) {
	rounds := 25
	if n, err := strconv.Atoi(os.Getenv("BERTH_TEST_ROUNDS")); err == nil {
		rounds = n
	}
	for _, k := range killings() {
		t.Run(k.name, func(t *testing.T) { killAtAnyPoint(harness.Start(t), k, rounds) })
	}
}

func killAtAnyPoint(d *harness.Daemon, k killing, rounds int) {
	t := d.T
	t.Helper()
	// How long the call takes tells where its points are.
	start := time.Now()
	if err := k.prepare(d, 0)(d.Context()); err != nil {
		t.Fatal(err)
	}
	first := time.Since(start)
	canary := d.RunPod(d.Pod("canary")).Run(d.Sleeper("c"))
	pid := canary.PID()
	for n := 1; n <= rounds; n++ {
		call := k.prepare(d, n)
		ctx, cancel := context.WithCancel(d.Context())
		ended := make(chan error, 1)
		go func() { ended <- call(ctx) }()
		time.Sleep(time.Duration(rand.Int64N(int64(min(first, 40*time.Millisecond)))))
		d.Kill()
		cancel()
		<-ended
		d.Start()
		d.Check()
		if err := call(d.Context()); err != nil {
			t.Errorf("round %d: the same call again: %v", n, err)
		}
		if t.Failed() {
			return
		}
	}
	d.Check()
	if canary.PID() != pid {
		t.Error("the canary was started again")
	}
}

// TestBadRecords: one bad record is one object in quarantine, and the start goes on.
func TestBadRecords(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"empty":    func(path string) error { return os.Truncate(path, 0) },
		"cut":      func(path string) error { return os.Truncate(path, 40) },
		"not JSON": func(path string) error { return os.WriteFile(path, []byte("garbage"), 0o600) },
		"a folder": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
		"bit flip": func(path string) error {
			b, err := os.ReadFile(path)
			if err == nil {
				b[len(b)/2] ^= 4
				err = os.WriteFile(path, b, 0o600)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.Start(t)
			good, bad := d.RunPod(d.Pod("good")), d.RunPod(d.Pod("bad"))
			c := good.Run(d.Sleeper("c"))
			bad.Run(d.Sleeper("c"))
			pid := c.PID()
			d.Kill()
			if err := spoil(filepath.Join(d.Options().Root, "pods", bad.ID, "pod")); err != nil {
				t.Fatal(err)
			}
			d.Start()
			if c.PID() != pid || good.Status().State != podReady {
				t.Error("the good pod was touched")
			}
			d.Eventually(5*time.Second, "the name of the bad pod is free, or it can be removed", func() bool {
				r, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{})
				if err != nil {
					return false
				}
				for _, p := range r.Items {
					if p.Id == bad.ID && p.State == podReady {
						return false
					}
				}
				return true
			})
			bad.Stop()
			bad.Remove()
			d.RunPod(d.Pod("bad")).Remove()
			good.Remove()
		})
	}
}

// TestRunFolderGone is a reboot: /run is empty, no process lives, records are there.
func TestRunFolderGone(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("rebooted"))
	c := pod.Run(d.Sleeper("c"))
	done := pod.Run(d.Shell("done", "exit 9"))
	done.Wait(5 * time.Second)
	d.Kill()
	d.Reboot()
	d.Start()
	d.Eventually(10*time.Second, "the pod is not ready and its container has exited", func() bool {
		return pod.Status().State == podNotReady && c.Status().State == exited
	})
	if s := c.Status(); s.ExitCode == 0 {
		t.Errorf("code of what ran = %d", s.ExitCode)
	}
	if s := done.Status(); s.ExitCode != 9 {
		t.Errorf("code of what had exited before = %d", s.ExitCode)
	}
	d.Check()
	pod.Remove()
	d.Check()
}

// TestThingsGoneBehindItsBack: stop and remove succeed when pins, mounts, cgroups and links were taken away.
func TestThingsGoneBehindItsBack(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("robbed"))
	c := pod.Run(d.Sleeper("c"))
	pin := d.Process.Daemon().Pin(pod.ID)
	if err := errors.Join(unix.Unmount(pin, unix.MNT_DETACH), os.Remove(pin)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(filepath.Join(d.Options().State, "pods", pod.ID, "shm"), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	unix.Kill(c.PID(), unix.SIGKILL)
	c.Wait(5 * time.Second)
	pod.Stop()
	pod.Remove()
	d.AsBefore()
}

// TestKilledWhileAPluginRuns: an ADD that nobody waited for is followed by DEL, and the name is free.
func TestKilledWhileAPluginRuns(t *testing.T) {
	d := harness.Start(t)
	calls := plugin(t, d)
	d.Write(d.Dir+"/slow", "")
	config := d.Pod("interrupted")
	ctx, cancel := contextFor(t, 10*time.Second)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		ended <- err
	}()
	d.Eventually(5*time.Second, "the plugin runs", func() bool { return countCalls(calls(), "ADD", "") == 1 })
	d.Kill()
	<-ended
	os.Remove(d.Dir + "/slow")
	d.Start()
	d.Eventually(10*time.Second, "the plugin takes away what it made", func() bool { return countCalls(calls(), "DEL", "") > 0 })
	d.Check()
	pod := d.RunPod(config)
	pod.Remove()
	if add, del := countCalls(calls(), "ADD", ""), countCalls(calls(), "DEL", ""); add > del {
		t.Errorf("%d ADDs, %d DELs", add, del)
	}
	os.Remove(d.CNIConf + "/10-fake.conflist")
}

// TestStopAndRemoveOnAFullDisk: what frees room must work without room.
func TestStopAndRemoveOnAFullDisk(t *testing.T) {
	disk := t.TempDir()
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=128m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	}
	d := harness.Start(t, harness.WithRoot(filepath.Join(disk, "r")))
	pod := d.RunPod(d.Pod("full"))
	c := pod.Run(d.Sleeper("c"))
	done := pod.Run(d.Container("done", []string{"probe", "exit", "7", "1s"}))
	fill, err := os.Create(filepath.Join(disk, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for chunk := make([]byte, 1<<20); len(chunk) > 0; {
		if _, err := fill.Write(chunk); err != nil {
			chunk = chunk[:len(chunk)/2]
		}
	}
	if s := done.Wait(10 * time.Second); s.ExitCode != 7 {
		t.Errorf("code of what ended on a full disk = %d, want 7", s.ExitCode)
	}
	if _, err := d.TryRunPod(d.Pod("one-more")); err == nil {
		t.Log("a pod runs on a full disk")
	} else {
		wantCode(t, "a pod on a full disk", err, codes.ResourceExhausted)
	}
	c.Stop(5 * time.Second)
	c.Remove()
	pod.Stop()
	pod.Remove()
	if err := os.Remove(fill.Name()); err != nil {
		t.Error(err)
	}
	d.RunPod(d.Pod("after")).Remove()
}
