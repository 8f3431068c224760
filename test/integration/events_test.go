package integration_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/wait"
)

// eventLog collects a daemon's events.
type eventLog struct {
	t      testing.TB
	stop   context.CancelFunc
	ended  chan error
	mu     sync.Mutex
	events []*runtimeapi.ContainerEventResponse
}

// watchEvents subscribes, and returns once nothing can be missed.
func watchEvents(d *harness.Daemon) *eventLog {
	d.T.Helper()
	ctx, cancel := context.WithCancel(d.T.Context())
	d.T.Cleanup(cancel)
	stream, err := d.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		d.T.Fatalf("GetContainerEvents: %v", err)
	}
	l := &eventLog{t: d.T, stop: cancel, ended: make(chan error, 1)}
	go func() {
		for {
			e, err := stream.Recv()
			if err != nil {
				l.ended <- err
				return
			}
			l.mu.Lock()
			l.events = append(l.events, e)
			l.mu.Unlock()
		}
	}()
	return l
}

// of are the events of one object.
func (l *eventLog) of(id string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, e := range l.events {
		if e.ContainerId == id {
			all = append(all, strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		}
	}
	return strings.Join(all, " ")
}

func (l *eventLog) await(id, want string) {
	l.t.Helper()
	if !wait.Until(20*time.Second, 5*time.Millisecond, func() bool { return l.of(id) == want }) {
		l.t.Fatalf("events of %.8s: %q, want %q", id, l.of(id), want)
	}
}

// last is the last event of one object.
func (l *eventLog) last(id string) *runtimeapi.ContainerEventResponse {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range slices.Backward(l.events) {
		if e.ContainerId == id {
			return e
		}
	}
	l.t.Fatalf("no event of %s", id)
	return nil
}

const wholeLife = "CREATED STARTED STOPPED DELETED"

func TestEvents(t *testing.T) {
	d := harness.Start(t)
	one, two := watchEvents(d), watchEvents(d)
	pod := d.RunPod(d.Pod("events"))
	one.await(pod.ID, "CREATED STARTED")
	if s := one.last(pod.ID).GetPodSandboxStatus(); s.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY || s.GetNetwork().GetIp() != pod.IPs()[0] || s.GetMetadata().GetUid() != pod.Config.Metadata.Uid {
		t.Errorf("the sandbox is told as %v", s)
	}
	done := pod.Run(d.Shell("done", "exit 7"))
	stays := pod.Run(d.Sleeper("stays"))
	one.await(done.ID, "CREATED STARTED STOPPED")
	e := one.last(done.ID)
	i := slices.IndexFunc(e.ContainersStatuses, func(s *runtimeapi.ContainerStatus) bool { return s.Id == done.ID })
	if i < 0 || e.ContainersStatuses[i].ExitCode != 7 || e.ContainersStatuses[i].State != exited || e.ContainersStatuses[i].FinishedAt == 0 || e.GetPodSandboxStatus().GetId() != pod.ID {
		t.Errorf("the exit is told as %v", e)
	}
	done.Remove()
	one.await(done.ID, wholeLife)
	if slices.ContainsFunc(one.last(done.ID).ContainersStatuses, func(s *runtimeapi.ContainerStatus) bool { return s.Id == done.ID }) {
		t.Error("a container that is deleted is told to be there")
	}
	pod.Stop()
	one.await(pod.ID, "CREATED STARTED STOPPED")
	if s := one.last(pod.ID); s.GetPodSandboxStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || one.of(stays.ID) != "CREATED STARTED STOPPED" {
		t.Errorf("the stop is told as %v, its container's events are %q", s, one.of(stays.ID))
	}
	pod.Remove()
	for _, l := range []*eventLog{one, two} {
		for _, id := range []string{pod.ID, done.ID, stays.ID} {
			l.await(id, wholeLife)
		}
		l.mu.Lock()
		var last int64
		for _, e := range l.events {
			if e.CreatedAt <= last || e.GetPodSandboxStatus().GetMetadata() == nil {
				t.Errorf("event of %d after one of %d, with %v", e.CreatedAt, last, e.GetPodSandboxStatus())
			}
			last = e.CreatedAt
		}
		l.mu.Unlock()
	}
	one.stop()
	if err := <-one.ended; status.Code(err) != codes.Canceled {
		t.Errorf("a stream that its client ends: %v", err)
	}
	d.Stop()
	if err := <-two.ended; status.Code(err) != codes.Unavailable {
		t.Errorf("a stream that the daemon ends: %v", err)
	}
	d.Start()
}

// TestEventsOverARestart: a client that comes back after a kill hears of what ended while no daemon ran.
func TestEventsOverARestart(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("restart"))
	c, stays := pod.Run(d.Sleeper("c")), pod.Run(d.Sleeper("stays"))
	lost := d.RunPod(d.Pod("lost"))
	l := lost.Run(d.Sleeper("l"))
	pid, monitor := c.PID(), monitorPID(t, lost)
	d.Kill()
	for _, p := range []int{pid, monitor} {
		if err := unix.Kill(p, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	d.Start()
	d.Eventually(20*time.Second, "what ended is known", func() bool { return c.Status().State == exited && l.Status().State == exited })
	w := watchEvents(d)
	w.await(c.ID, "STOPPED")
	w.await(l.ID, "STOPPED")
	w.await(lost.ID, "STOPPED")
	if got := w.of(stays.ID); got != "" {
		t.Errorf("what runs on has the events %q", got)
	}
	stays.Stop(time.Second)
	w.await(stays.ID, "STOPPED")
}

// TestEventsOfASlowClient: one that does not read holds up nothing, and finds all that it has not taken yet.
func TestEventsOfASlowClient(t *testing.T) {
	d := harness.Start(t)
	slow, err := d.Runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = slow.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	fast := watchEvents(d)
	pod := d.RunPod(d.Pod("slow"))
	// Statuses of some size soon fill what lies between the two; the rest waits in the daemon.
	label := strings.Repeat("x", 16<<10)
	var ids []string
	for i := range 60 {
		config := d.Shell("c"+strconv.Itoa(i), "exit 0")
		config.Annotations = map[string]string{"big": label}
		c := pod.Create(config)
		c.Start()
		c.Stop(0)
		c.Remove()
		ids = append(ids, c.ID)
	}
	for _, id := range ids {
		fast.await(id, wholeLife)
	}
	want := []string{pod.ID, pod.ID}
	for _, id := range ids {
		want = append(want, id, id, id, id)
	}
	for n := 0; n < len(want); {
		e, err := slow.Recv()
		if err != nil {
			t.Fatalf("after %d events: %v", n, err)
		}
		if n == 0 && e.ContainerId != pod.ID {
			continue // of what was there before
		}
		if e.ContainerId != want[n] {
			t.Fatalf("event %d is of %s, want %s", n, e.ContainerId, want[n])
		}
		n++
	}
}
