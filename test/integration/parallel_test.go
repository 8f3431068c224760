package integration_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
)

// TestDaemonsSideBySide: what one does, and its end, touches nothing of the other.
func TestDaemonsSideBySide(t *testing.T) {
	a, b := harness.Start(t), harness.Start(t)
	pa, pb := a.RunPod(a.Pod("same")), b.RunPod(b.Pod("same"))
	ca, cb := pa.Run(server(a, "first")), pb.Run(server(b, "second"))
	wantPage(a, pa.IPs()[0]+":80", "page of first")
	wantPage(b, pb.IPs()[0]+":80", "page of second")
	a.Check()
	b.Check()
	a.Restart()
	b.Check()
	pid := cb.PID()
	pa.Remove()
	a.AsBefore()
	b.Check()
	if cb.PID() != pid {
		t.Error("the other daemon's container was touched")
	}
	wantPage(b, pb.IPs()[0]+":80", "page of second")
	if _, err := a.Runtime.ContainerStatus(a.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: cb.ID}); err == nil {
		t.Error("one daemon knows the other's container")
	}
	_ = ca
}

// TestSecondDaemonOnOneFolder: it refuses at once.
func TestSecondDaemonOnOneFolder(t *testing.T) {
	d := harness.Start(t)
	start := time.Now()
	if err := harness.StartSecond(d); err == nil {
		t.Error("two daemons serve one folder")
	}
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("the refusal took %s", took)
	}
	d.Check()
}

// TestSameRequestTwice: creating is idempotent by metadata and configuration.
func TestSameRequestTwice(t *testing.T) {
	d := harness.Start(t)
	config := d.Pod("twice")
	pod := d.RunPod(config)
	again, err := d.TryRunPod(config)
	if err != nil || again.ID != pod.ID {
		t.Errorf("the same RunPodSandbox again = %v, %v, want %s", again, err, pod.ID)
	}
	cc := d.Sleeper("c")
	c := pod.Create(cc)
	againC, err := pod.TryCreate(cc)
	if err != nil || againC.ID != c.ID {
		t.Errorf("the same CreateContainer again = %v, %v, want %s", againC, err, c.ID)
	}
	other := d.Shell("c", "sleep 1")
	_, err = pod.TryCreate(other)
	wantCode(t, "CreateContainer with the name and another configuration", err, codes.AlreadyExists)
	if err != nil && !contains(err, c.ID) {
		t.Errorf("%v does not name %s", err, c.ID)
	}
	changed := d.Pod("twice")
	changed.Labels["more"] = "x"
	_, err = d.TryRunPod(changed)
	wantCode(t, "RunPodSandbox with the name and another configuration", err, codes.AlreadyExists)
	if err != nil && !contains(err, pod.ID) {
		t.Errorf("%v does not name %s", err, pod.ID)
	}
	c.Start()
	_, err = pod.TryCreate(cc)
	wantCode(t, "CreateContainer of one that runs", err, codes.AlreadyExists)
	// The next attempt of the kubelet's is another name.
	next := d.Sleeper("c")
	next.Metadata.Attempt = 1
	pod.Run(next)
	attempt := d.Pod("twice")
	attempt.Metadata.Attempt = 1
	d.RunPod(attempt)
	// After removal the name is free at once.
	c.Remove()
	pod.Create(cc)
	pod.Remove()
	d.RunPod(config)
}

// TestSameRequestAtOnce: ten callers get one pod, one address, one container.
func TestSameRequestAtOnce(t *testing.T) {
	d := harness.Start(t)
	config := d.Pod("crowd")
	ids := crowd(t, 10, func() (string, error) {
		p, err := d.TryRunPod(config)
		if err != nil {
			return "", err
		}
		return p.ID, nil
	})
	if len(ids) != 1 {
		t.Fatalf("%d pods: %v", len(ids), ids)
	}
	pod := d.RunPod(config)
	cc := d.Sleeper("c")
	if ids := crowd(t, 10, func() (string, error) {
		c, err := pod.TryCreate(cc)
		if err != nil {
			return "", err
		}
		return c.ID, nil
	}); len(ids) != 1 {
		t.Fatalf("%d containers: %v", len(ids), ids)
	}
	c := pod.Create(cc)
	started := 0
	var mu sync.Mutex
	crowd(t, 10, func() (string, error) {
		if err := c.TryStart(); err == nil {
			mu.Lock()
			started++
			mu.Unlock()
		}
		return "", nil
	})
	if started != 1 {
		t.Errorf("%d calls started the container", started)
	}
	d.Check()
	crowd(t, 10, func() (string, error) {
		_, err := d.Runtime.StopContainer(d.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 5})
		return "", err
	})
	crowd(t, 10, func() (string, error) {
		_, err := d.Runtime.RemovePodSandbox(d.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.ID})
		return "", err
	})
	d.AsBefore()
}

// crowd calls f from n callers and returns the answers without doubles.
func crowd(t testing.TB, n int, f func() (string, error)) map[string]bool {
	t.Helper()
	answers := map[string]bool{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			answer, err := f()
			if err != nil {
				t.Errorf("one of %d callers: %v", n, err)
				return
			}
			mu.Lock()
			answers[answer] = true
			mu.Unlock()
		})
	}
	wg.Wait()
	return answers
}

// TestManyPodsAtOnce: whole lives in parallel, with a second round that uses the same names.
func TestManyPodsAtOnce(t *testing.T) {
	d := harness.Start(t)
	d.Sleeper("pulled before")
	for range 2 {
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() {
				pod := d.RunPod(d.Pod(fmt.Sprintf("p%d", i)))
				c := pod.Run(d.Sleeper("c"))
				if got := c.Sh("hostname"); got != fmt.Sprintf("p%d", i) {
					t.Errorf("hostname = %q", got)
				}
				if i%2 == 0 {
					c.Stop(5 * time.Second)
					c.Remove()
					pod.Stop()
				}
				pod.Remove()
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		d.AsBefore()
	}
}

// TestCallersThatGiveUp: a call that is cancelled at any moment is undone or found by its repetition.
func TestCallersThatGiveUp(t *testing.T) {
	d := harness.Start(t)
	d.Sleeper("pulled before")
	for i := range 40 {
		config := d.Pod(fmt.Sprintf("p%d", i%5))
		ctx, cancel := contextFor(t, time.Duration(i)*250*time.Microsecond)
		d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		cancel()
		pod := d.RunPod(config)
		cc := d.Sleeper("c")
		ctx, cancel = contextFor(t, time.Duration(i)*100*time.Microsecond)
		d.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.ID, Config: cc, SandboxConfig: config})
		cancel()
		c := pod.Create(cc)
		ctx, cancel = contextFor(t, time.Duration(i)*200*time.Microsecond)
		d.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
		cancel()
		d.Eventually(5*time.Second, "the start is over", func() bool {
			s := c.Status()
			return s.State == created || s.State == running
		})
		if c.Status().State == created {
			if err := c.TryStart(); err != nil && c.Status().State != running {
				t.Errorf("start again: %v", err)
			}
		}
		ctx, cancel = contextFor(t, time.Duration(i)*100*time.Microsecond)
		d.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.ID})
		cancel()
		pod.Remove()
		if t.Failed() {
			return
		}
	}
	d.AsBefore()
}

// TestEverybodyAtOneContainer: calls of every kind on one container and pod, many at a time; only the state rules may refuse them.
func TestEverybodyAtOneContainer(t *testing.T) {
	d := harness.Start(t)
	for range 5 {
		pod := d.RunPod(d.Pod("one"))
		c := pod.Create(d.Sleeper("c"))
		ctx := d.Context()
		calls := []func() error{
			func() error { return c.TryStart() },
			func() error { _, err := c.TryExec(time.Minute, "true"); return err },
			func() error {
				_, err := d.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 1})
				return err
			},
			func() error {
				_, err := d.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
				return err
			},
			func() error {
				_, err := d.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
				return err
			},
			func() error {
				_, err := d.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
				return err
			},
			func() error {
				_, err := d.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.ID})
				return err
			},
		}
		var wg sync.WaitGroup
		for i := range 70 {
			wg.Go(func() {
				if err := calls[i%len(calls)](); err != nil && !expected(err) {
					t.Errorf("call %d: %v", i%len(calls), err)
				}
			})
		}
		wg.Wait()
		pod.Remove()
		if t.Failed() {
			return
		}
		d.AsBefore()
	}
}

// TestTwoHundredPods: a node's worth and more of them comes, is listed and goes; the harness sees that the host is as before.
func TestTwoHundredPods(t *testing.T) {
	const pods, callers = 200, 10
	d := harness.Start(t)
	sleeper := d.Sleeper("pulled before")
	ctx, cancel := contextFor(t, 5*time.Minute)
	defer cancel()
	lives, up, err := d.Burst(ctx, pods, callers, func(n int) berthd.LifeSpec {
		return berthd.LifeSpec{Name: fmt.Sprintf("p%d", n), Image: sleeper.Image.Image, Command: sleeper.Command, LogDir: d.Dir + "/logs"}
	})
	if err != nil {
		t.Fatal(err)
	}
	listed, err := d.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(listed.Items) != pods {
		t.Errorf("%d pods are listed, want %d: %v", len(listed.GetItems()), pods, err)
	}
	for _, p := range listed.GetItems() {
		if p.State != podReady {
			t.Errorf("pod %s is %s", p.Metadata.Name, p.State)
		}
	}
	containers, err := d.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: running}}})
	if err != nil || len(containers.Containers) != pods {
		t.Errorf("%d containers run, want %d: %v", len(containers.GetContainers()), pods, err)
	}
	d.Check()
	gone, err := berthd.Sink(ctx, lives, callers)
	if err != nil {
		t.Fatal(err)
	}
	d.AsBefore()
	t.Logf("up in %s, gone in %s", up, gone)
}
