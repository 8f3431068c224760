package integration_test

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func TestExitCodes(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("exits"))
	for _, tc := range []struct {
		script string
		code   int32
		reason string
	}{
		{"exit 0", 0, "Completed"},
		{"exit 1", 1, "Error"},
		{"exit 255", 255, "Error"},
		{"kill -9 $$", 0, ""}, // PID 1 of a namespace is immune to itself
		{"sh -c 'kill -SEGV $$'; exit $?", 139, "Error"},
	} {
		c := pod.Run(d.Shell("c", tc.script))
		s := c.Wait(10 * time.Second)
		if tc.reason != "" && (s.ExitCode != tc.code || s.Reason != tc.reason) {
			t.Errorf("%s: code %d, reason %s, want %d %s", tc.script, s.ExitCode, s.Reason, tc.code, tc.reason)
		}
		if !(s.CreatedAt <= s.StartedAt && s.StartedAt <= s.FinishedAt) || time.Since(time.Unix(0, s.FinishedAt)) > time.Minute {
			t.Errorf("%s: created %d, started %d, finished %d", tc.script, s.CreatedAt, s.StartedAt, s.FinishedAt)
		}
		c.Remove()
	}
}

// TestShortContainers: however soon a container ends, its code and its output are kept.
func TestShortContainers(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("short"))
	for i := range 30 {
		c := pod.Run(d.Shell(fmt.Sprintf("c%d", i), fmt.Sprintf("echo out %d; exit %d", i, i)))
		if s := c.Wait(5 * time.Second); s.ExitCode != int32(i) {
			t.Errorf("code %d, want %d", s.ExitCode, i)
		}
		c.WaitOutput(fmt.Sprintf("out %d", i))
	}
}

func TestStopSignalAndGrace(t *testing.T) {
	d := harness.Start(t)
	image := harness.PushImage(t, "test/stop-signal", imageConfig(func(c *ocispecConfig) { c.StopSignal = "SIGUSR1" }))
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("signals"))
	for _, tc := range []struct {
		name    string
		options []harness.ContainerOption
		want    string
	}{
		{"default", nil, "SIGTERM"},
		{"of the image", []harness.ContainerOption{harness.Image(image.Ref)}, "SIGUSR1"},
		{"of the request", []harness.ContainerOption{harness.Image(image.Ref), func(c *runtimeapi.ContainerConfig) { c.StopSignal = runtimeapi.Signal_SIGNAL_SIGINT }}, "SIGINT"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			name := "c-" + tc.want
			c := pod.Run(d.Container(name, []string{"probe", "signals"}, tc.options...))
			c.WaitOutput("ready")
			c.Stop(10 * time.Second)
			if s := c.Status(); s.ExitCode != 0 {
				t.Errorf("code = %d", s.ExitCode)
			}
			if got := c.Output(); got != "ready\n"+tc.want+"\n" {
				t.Errorf("output = %q, want %s", got, tc.want)
			}
			if got := c.Status().StopSignal.String(); got != "SIGNAL_"+tc.want {
				t.Errorf("stop signal in the status = %s, want %s", got, tc.want)
			}
		})
	}
	bad := harness.PushImage(t, "test/bad-signal", imageConfig(func(c *ocispecConfig) { c.StopSignal = "SIGNOTHING" }))
	d.Pull(bad.Ref)
	_, err := pod.TryCreate(d.Sleeper("bad", harness.Image(bad.Ref)))
	wantCode(t, "image with an unknown stop signal", err, codes.InvalidArgument)
}

// Every signal that the CRI names is one that a container can be stopped by, and in its status by that name.
func TestEveryStopSignal(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("signals"))
	if n := len(runtimeapi.Signal_name); n != 66 {
		t.Errorf("%d signals with the default, want 66", n)
	}
	for n, name := range runtimeapi.Signal_name {
		want := runtimeapi.Signal(n)
		c := pod.Create(d.Container("c", []string{"probe", "signals"}, func(c *runtimeapi.ContainerConfig) { c.StopSignal = want }))
		if want == runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
			want = runtimeapi.Signal_SIGNAL_SIGTERM
		}
		if got := c.Status().StopSignal; got != want {
			t.Errorf("%s: the status has %s", name, got)
		}
		c.Remove()
	}
	// Those that a shell hears of by their numbers; the grace period is for a busy machine, none waits for it.
	for number, signal := range map[int]runtimeapi.Signal{17: runtimeapi.Signal_SIGNAL_SIGCLD, 29: runtimeapi.Signal_SIGNAL_SIGPOLL, 30: runtimeapi.Signal_SIGNAL_SIGPWR,
		34: runtimeapi.Signal_SIGNAL_SIGRTMIN, 49: runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15, 50: runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, 64: runtimeapi.Signal_SIGNAL_SIGRTMAX} {
		c := pod.Run(d.Shell(fmt.Sprint("c", number), fmt.Sprintf("trap 'exit %d' %d; echo up; sleep 3600 & wait", number, number),
			func(c *runtimeapi.ContainerConfig) { c.StopSignal = signal }))
		c.WaitOutput("up")
		c.Stop(20 * time.Second)
		if s := c.Status(); s.ExitCode != int32(number) || s.StopSignal != signal {
			t.Errorf("%s: code %d, %s in the status", signal, s.ExitCode, s.StopSignal)
		}
	}
	c, err := pod.TryCreate(d.Sleeper("unknown", func(c *runtimeapi.ContainerConfig) { c.StopSignal = 99 }))
	wantCode(t, fmt.Sprintf("an unknown signal, %v", c), err, codes.InvalidArgument)
}

func TestGracePeriod(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("grace"))
	stubborn := func(name string) *harness.Container {
		c := pod.Run(d.Container(name, []string{"probe", "ignore"}))
		c.WaitOutput("ready")
		return c
	}
	c := stubborn("waits")
	start := time.Now()
	c.Stop(2 * time.Second)
	if took := time.Since(start); took < 1900*time.Millisecond || took > harness.Patience {
		t.Errorf("stop with a grace of 2 s took %s", took)
	}
	if s := c.Status(); s.ExitCode != 137 {
		t.Errorf("code = %d, want 137", s.ExitCode)
	}
	if got := c.Output(); got != "ready\nSIGTERM\n" {
		t.Errorf("output = %q", got)
	}
	c = stubborn("at-once")
	start = time.Now()
	c.Stop(0)
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("stop without grace took %s", took)
	}
	// A second call with a shorter grace wins over the first.
	c = stubborn("shorter")
	first := make(chan error, 1)
	go func() {
		_, err := d.Runtime.StopContainer(d.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 25})
		first <- err
	}()
	c.WaitOutput("SIGTERM")
	start = time.Now()
	c.Stop(0)
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("a stop without grace during another took %s", took)
	}
	if err := <-first; err != nil {
		t.Errorf("the first stop: %v", err)
	}
	// So does removal, and the stop of the pod.
	c = stubborn("removed")
	go d.Runtime.StopContainer(d.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 25})
	c.WaitOutput("SIGTERM")
	start = time.Now()
	c.Remove()
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("removal during a stop took %s", took)
	}
	c = stubborn("pod")
	start = time.Now()
	pod.Stop()
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("the stop of the pod took %s", took)
	}
	if s := c.Status(); s.State != exited {
		t.Errorf("state = %s", s.State)
	}
}

// TestTheWholeTreeEnds: children in sessions of their own that ignore signals end with the container.
func TestTheWholeTreeEnds(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("tree"))
	c := pod.Run(d.Container("c", []string{"probe", "fork", "10"}))
	c.WaitOutput("forked 10")
	start := time.Now()
	c.Stop(0)
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("stop took %s", took)
	}
	d.Check()
}

func TestStopOfACreatedContainer(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("created"))
	c := pod.Create(d.Sleeper("c"))
	c.Stop(time.Second)
	if s := c.Status(); s.State == running {
		t.Errorf("state = %s", s.State)
	}
	c.Remove()
	d.Check()
}

func TestCallerGivesUpDuringGrace(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("impatient"))
	c := pod.Run(d.Container("c", []string{"probe", "ignore"}))
	c.WaitOutput("ready")
	ctx, cancel := contextFor(t, 300*time.Millisecond)
	defer cancel()
	_, err := d.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 20})
	wantCode(t, "stop with a short deadline", err, codes.DeadlineExceeded)
	if s := c.Status(); s.State != running {
		t.Errorf("state = %s, want it to run on in its grace", s.State)
	}
	c.Stop(0)
}
