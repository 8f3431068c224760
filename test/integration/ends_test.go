package integration_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// node is what runs while daemons end and start: it must never notice.
type node struct {
	*harness.Daemon
	t       *testing.T
	pods    []*harness.Pod
	created *harness.Container
	writer  *harness.Container
	was     []seen
}

// seen is what is known of an object, from outside.
type seen struct {
	name   string
	status func() any
	was    any
}

// newNode runs pods of all kinds, with containers in all states, on a node with some images.
func newNode(t *testing.T) *node {
	n := &node{Daemon: harness.Start(t), t: t}
	n.pods = []*harness.Pod{
		n.RunPod(n.Pod("own", harness.HostPort(runtimeapi.Protocol_TCP, harness.FreePort(t), 80, ""))),
		n.RunPod(n.Pod("host", harness.Namespaces(runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE))),
		n.RunPod(n.Pod("shared", harness.Namespaces(runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD))),
	}
	for _, p := range n.pods {
		n.look(p.Config.Metadata.Name, func() any { return p.Status() })
		c := p.Run(n.Sleeper("runs"))
		n.look(p.Config.Metadata.Name+"/runs", func() any { return c.Status() })
		n.look(p.Config.Metadata.Name+"/runs, its process", func() any { return fmt.Sprint(c.PID(), " since ", startTime(t, c.PID())) })
	}
	n.writer = n.pods[0].Run(n.Container("writer", []string{"probe", "lines", "500", "line"}))
	n.look("writer", func() any { return n.writer.Status() })
	n.created = n.pods[0].Create(n.Sleeper("created"))
	n.look("created", func() any { return n.created.Status() })
	done := n.pods[0].Run(n.Shell("done", "exit 9"))
	done.Wait(harness.Patience)
	n.look("done", func() any { return done.Status() })
	for i := range 3 {
		layer := registrytestLayer(t, func(b *builder) { b.File("n", strconv.Itoa(i), 0o644) })
		n.Pull(harness.PushImage(t, fmt.Sprintf("test/end-%d", i), imageConfig(func(*ocispecConfig) {}), layer).Ref)
	}
	n.look("images", func() any {
		r, err := n.Images.ListImages(n.Context(), &runtimeapi.ListImagesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	})
	return n
}

func (n *node) look(name string, status func() any) {
	n.was = append(n.was, seen{name, status, status()})
}

// unchanged starts a daemon that nobody ends, and compares what it tells with what was told before.
func (n *node) unchanged() {
	n.t.Helper()
	n.Start()
	n.Check()
	for _, s := range n.was {
		same(n.t, s.name, s.status(), s.was)
	}
	if n.t.Failed() {
		n.t.FailNow()
	}
}

// finish checks what only the end shows.
func (n *node) finish() {
	n.t.Helper()
	n.created.Start()
	n.writer.WaitOutput("line 100")
	n.writer.Stop(5 * time.Second)
	countLines(n.t, "line", n.writer.LogFile())
}

// waits is how long a daemon gives what is under way, and then itself: an end that takes longer is an error.
const waits = 3*time.Second + 5*time.Second

// end ends a daemon by SIGTERM, sometimes with other signals beside it. It is no error, whatever the daemon does; may are signals that can end it before
// it has come so far as to take them.
func (n *node) end(may ...syscall.Signal) {
	n.t.Helper()
	pid, began := n.PID(), time.Now()
	if rand.IntN(3) == 0 {
		unix.Kill(pid, unix.SIGHUP)
	}
	unix.Kill(pid, unix.SIGTERM)
	if rand.IntN(3) == 0 {
		time.Sleep(time.Duration(rand.IntN(3000)) * time.Microsecond)
	}
	n.Stop() // once more
	how := n.Last().Sys().(syscall.WaitStatus)
	if how.ExitStatus() != 0 && !slices.Contains(may, how.Signal()) && time.Since(began) < waits {
		n.t.Errorf("berthd ended with %s", n.Last())
	}
}

// TestEndedAtAnyMomentOfItsStart ends daemons by SIGTERM while they start, which is neither a reason to give anything up nor an error.
func TestEndedAtAnyMomentOfItsStart(t *testing.T) {
	n := newNode(t)
	n.Stop()
	began := time.Now()
	n.Start()
	takes := time.Since(began)
	n.Stop()
	rounds := 60
	if harness.Handler != "" { // a start is the same for all handlers but for what it does last
		rounds = 15
	}
	for round := range rounds {
		if err := n.Begin(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(min(takes*3/2, 300*time.Millisecond)))))
		n.end(unix.SIGTERM, unix.SIGHUP)
		if round%15 == 14 {
			n.unchanged()
			n.Stop()
		}
	}
	n.unchanged()
	n.finish()
}

// TestEndedAtAnyMomentOfItsCalls ends daemons by SIGTERM while calls are under way. What they were asked for is done or not, and can be asked for again.
func TestEndedAtAnyMomentOfItsCalls(t *testing.T) {
	n := newNode(t)
	for round := range 4 {
		pod := n.RunPod(n.Pod(fmt.Sprintf("round-%d", round)))
		starts, stops, runs := pod.Create(n.Sleeper("starts")), pod.Run(n.Sleeper("stops")), pod.Run(n.Sleeper("runs"))
		next, another := n.Pod(fmt.Sprintf("next-%d", round)), n.Sleeper("another")
		layer := registrytestLayer(t, func(b *builder) { b.File("n", fmt.Sprint("round ", round), 0o644) })
		image := harness.PushImage(t, fmt.Sprintf("test/round-%d", round), imageConfig(func(*ocispecConfig) {}), layer).Ref
		calls := map[string]func(context.Context) error{
			"RunPodSandbox": func(ctx context.Context) error {
				_, err := n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: next})
				return err
			},
			"CreateContainer": func(ctx context.Context) error {
				_, err := n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.ID, Config: another, SandboxConfig: pod.Config})
				return err
			},
			"StartContainer": func(ctx context.Context) error {
				_, err := n.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: starts.ID})
				if status.Code(err) == codes.FailedPrecondition && starts.Status().State == running {
					return nil
				}
				return err
			},
			"StopContainer": func(ctx context.Context) error {
				_, err := n.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: stops.ID, Timeout: 60})
				return err
			},
			"ExecSync": func(ctx context.Context) error {
				_, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: runs.ID, Cmd: []string{"sleep", "0.02"}})
				return err
			},
			"UpdateContainerResources": func(ctx context.Context) error {
				_, err := n.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: runs.ID,
					Linux: &runtimeapi.LinuxContainerResources{CpuShares: int64(100 + round)}})
				return err
			},
			"PullImage": func(ctx context.Context) error {
				_, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
				return err
			},
		}
		stops.WaitOutput("up")
		pid := runs.PID()
		ctx, cancel := context.WithCancel(n.Context())
		var all errgroup.Group
		for _, call := range calls {
			all.Go(func() error { return call(ctx) })
		}
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		n.end()
		cancel()
		all.Wait() //nolint:errcheck // some of them may have been cut off
		n.Start()
		n.Check()
		for name, call := range calls {
			if err := call(n.Context()); err != nil {
				t.Errorf("round %d: %s again: %v", round, name, err)
			}
		}
		if s := stops.Status(); s.State != exited || s.ExitCode != 0 {
			t.Errorf("round %d: the container that was asked to end is %s with code %d", round, s.State, s.ExitCode)
		}
		if starts.Status().State != running || runs.PID() != pid {
			t.Errorf("round %d: a container does not run, or was started again", round)
		}
		if t.Failed() {
			return
		}
		pod.Remove()
		n.RunPod(next).Remove()
		if _, err := n.Images.RemoveImage(n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
			t.Error(err)
		}
	}
	n.Stop()
	n.unchanged()
	n.finish()
}

// TestEndedWithCallsThatTakeLong ends a daemon under calls that would take longer than it waits for.
func TestEndedWithCallsThatTakeLong(t *testing.T) {
	n := newNode(t)
	deaf := n.pods[0].Run(n.Shell("deaf", "trap '' TERM; echo up; while :; do sleep 1; done"))
	deaf.WaitOutput("up")
	pid := deaf.PID()
	calls := plugin(t, n.Daemon)
	n.Write(n.Dir+"/hang", "")
	config := n.Pod("interrupted")
	ctx, cancel := context.WithCancel(n.Context())
	defer cancel()
	var all errgroup.Group
	all.Go(func() error {
		_, err := n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		return err
	})
	all.Go(func() error {
		_, err := n.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: deaf.ID, Timeout: 300})
		return err
	})
	all.Go(func() error {
		_, err := n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: deaf.ID, Cmd: []string{"sleep", "1000"}})
		return err
	})
	n.Eventually(harness.Patience, "the plugin runs", func() bool { return countCalls(calls(), "ADD", "") == 1 })
	n.end()
	if err := all.Wait(); err == nil {
		t.Error("calls that take longer than the daemon waits have succeeded")
	}
	n.unchanged()
	if got := deaf.Status(); got.State != running || deaf.PID() != pid {
		t.Errorf("in its grace period the container has become %s", got.State)
	}
	n.Eventually(harness.Patience, "the plugin takes back what it made", func() bool { return countCalls(calls(), "DEL", "") > 0 })
	n.Eventually(harness.Patience, "the pod that was being made is gone", func() bool {
		r, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
		return err == nil && len(r.Items) == len(n.pods)
	})
	if err := os.Remove(n.CNIConf + "/10-fake.conflist"); err != nil {
		t.Fatal(err)
	}
	n.RunPod(config).Remove()
	deaf.Stop(0)
	if s := deaf.Status(); s.ExitCode != 137 {
		t.Errorf("the container that was killed ended with %d", s.ExitCode)
	}
	n.finish()
}

// TestCrashLoop kills daemons by SIGKILL while they recover, one after the other, while a monitor is killed and others hang. What has lost its monitor
// ends, what hung goes on, and nothing else notices.
func TestCrashLoop(t *testing.T) {
	n := newNode(t)
	hung := n.pods[2]
	lost := n.RunPod(n.Pod("lost"))
	c := lost.Run(n.Sleeper("runs"))
	stopped := n.RunPod(n.Pod("stopped"))
	killed := stopped.Run(n.Shell("runs", "trap '' TERM; echo up; while :; do sleep 1; done"))
	monitors := map[*harness.Pod]int{hung: monitorPID(t, hung), lost: monitorPID(t, lost)}
	pid := c.PID()
	n.Kill()
	began := time.Now()
	n.Start()
	takes := time.Since(began)
	ctx, cancel := context.WithCancel(n.Context())
	defer cancel()
	var stop errgroup.Group
	stop.Go(func() error { // one is being stopped when it all begins
		_, err := n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.ID})
		return err
	})
	n.Kill()
	cancel()
	stop.Wait() //nolint:errcheck // it may have been cut off
	patient := true
	for round := range 10 {
		unix.Kill(monitors[hung], unix.SIGSTOP)
		began := time.Now()
		if err := n.Begin(); err != nil {
			t.Fatal(err)
		}
		pause := time.Duration(rand.Int64N(int64(min(2*takes, 300*time.Millisecond))))
		time.Sleep(pause / 2)
		if round == 4 {
			unix.Kill(monitors[lost], unix.SIGKILL)
		}
		time.Sleep(pause / 2)
		n.Kill()
		patient = patient && time.Since(began) < 4*time.Second // a daemon gives a monitor up after five
		unix.Kill(monitors[hung], unix.SIGCONT)
	}
	if !patient {
		t.Log("this machine stood still for seconds: berthd may have given the monitor that hung up, as it should")
		n.Start()
		return
	}
	n.unchanged()
	if s := c.Wait(harness.Patience); s.Reason != "MonitorLost" {
		t.Errorf("what lost its monitor ended with code %d, reason %q", s.ExitCode, s.Reason)
	}
	n.Eventually(harness.Patience, "its process is gone", func() bool { return !lives(pid) })
	if _, err := n.Runtime.StopPodSandbox(n.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: stopped.ID}); err != nil {
		t.Errorf("the stop again: %v", err)
	}
	if s := killed.Status(); s.State != exited || s.ExitCode != 137 {
		t.Errorf("the container of the pod that was stopped is %s with code %d", s.State, s.ExitCode)
	}
	n.finish()
}

// TestDaemonStandsStill stops the daemon's process and lets it go on: what runs never needs it, and what happened meanwhile it hears of.
func TestDaemonStandsStill(t *testing.T) {
	n := newNode(t)
	events := watchEvents(n.Daemon)
	if err := os.Mkdir(n.Dir+"/gate", 0o755); err != nil {
		t.Fatal(err)
	}
	ends := n.pods[1].Run(n.Shell("ends", "echo up; while [ ! -e /gate/open ]; do sleep 0.02; done; exit 7", harness.Mounts(
		&runtimeapi.Mount{HostPath: n.Dir + "/gate", ContainerPath: "/gate"})))
	ends.WaitOutput("up")
	pid, daemon := ends.PID(), n.PID()
	if err := unix.Kill(daemon, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer unix.Kill(daemon, unix.SIGCONT)
	lines := len(readRaw(t, n.writer.LogFile()))
	if err := os.WriteFile(n.Dir+"/gate/open", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n.Eventually(harness.Patience, "the container ends", func() bool { return !lives(pid) })
	n.Eventually(harness.Patience, "the log goes on", func() bool { return len(readRaw(t, n.writer.LogFile())) > lines+1000 })
	if err := unix.Kill(daemon, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if s := ends.Wait(harness.Patience); s.ExitCode != 7 {
		t.Errorf("what ended meanwhile has code %d, want 7", s.ExitCode)
	}
	events.await(ends.ID, "CREATED STARTED STOPPED")
	ends.Remove()
	n.Stop()
	n.unchanged()
	n.finish()
}
