package sandbox

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox/netns"
	"github.com/berthd/berth/test/wait"
)

func TestRate(t *testing.T) {
	start := time.Now()
	at := func(seconds float64, cpu time.Duration) sample {
		return sample{at: start.Add(time.Duration(seconds * float64(time.Second))), cpu: cpu}
	}
	type step struct {
		sample
		want  uint64
		known bool
	}
	const second = time.Second
	for _, tc := range []struct {
		name  string
		start time.Time
		steps []step
	}{
		{"from the start", start, []step{{at(0.05, 0), 0, false}, {at(0.5, second/4), 5e8, true}}},
		{"from what was before the daemon", time.Time{}, []step{{at(100, 50*second), 0, false}, {at(102, 51*second), 5e8, true}}},
		{"an old object", start.Add(-time.Hour), []step{{at(0, 50*second), 0, false}, {at(2, 52*second), 1e9, true}}},
		{"calls that come fast share a sample", time.Time{}, []step{
			{at(0, 0), 0, false}, {at(2, 2*second), 1e9, true}, {at(2.1, 2*second), 952380952, true}, {at(2.2, 2*second), 909090909, true}, {at(4, 2*second), 0, true}}},
		{"a pause that is too long", time.Time{}, []step{{at(0, 0), 0, false}, {at(1000, second), 0, false}, {at(1010, 6*second), 5e8, true}}},
		{"a count that goes back", time.Time{}, []step{{at(0, 9*second), 0, false}, {at(10, second), 0, false}, {at(20, 6*second), 5e8, true}}},
		{"a start to come", start.Add(time.Hour), []step{{at(0, 0), 0, false}, {at(2, second), 5e8, true}}},
	} {
		var g gauge
		for i, s := range tc.steps {
			if got, known := g.rate(s.sample, tc.start); got != s.want || known != s.known {
				t.Errorf("%s, step %d: %d, %v, want %d, %v", tc.name, i, got, known, s.want, s.known)
			}
		}
	}
}

func TestSortInterfaces(t *testing.T) {
	got := sortInterfaces([]netns.Interface{{Name: "lo"}, {Name: "net1"}, {Name: "eth0"}, {Name: "net2"}}, "eth0")
	if len(got) != 3 || got[0].Name != "eth0" || got[1].Name != "net1" || got[2].Name != "net2" {
		t.Errorf("%v", got)
	}
}

// descriptors lists this process's that lead to a path with the part.
func descriptors(t *testing.T, part string) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, part) {
			found = append(found, to)
		}
	}
	return found
}

// awaitClosed waits until nothing leads to a path with one of the parts any more, and as many meters as are wanted are open: an exit is told before
// its container's is closed.
func awaitClosed(t *testing.T, m *Manager, meters int64, parts ...string) {
	t.Helper()
	open := func() (all []string) {
		for _, part := range parts {
			all = append(all, descriptors(t, part)...)
		}
		return all
	}
	if !wait.Until(20*time.Second, time.Millisecond, func() bool { return len(open()) == 0 && m.meters.open.Load() == meters }) {
		t.Fatalf("open: %q, %d meters, want %d", open(), m.meters.open.Load(), meters)
	}
}

func TestStatsAreOpenAsLongAsTheirObject(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	if s, err := m.PodStats(p); err != nil || !s.Measured || s.CPU != 0 || s.Processes != 0 || s.Memory.Limit != Unlimited {
		t.Errorf("a pod without a container: %+v, %v", s, err)
	}
	c := create(t, m, createRequest(p, "c", "while :; do :; done"))
	if s, err := m.ContainerStats(c); err != nil || s.CPU != 0 || s.At.IsZero() || s.Memory.Limit != Unlimited {
		t.Errorf("a container that is not started: %+v, %v", s, err)
	}
	if err := m.StartContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := descriptors(t, c); len(got) != 0 {
		t.Errorf("open before anybody asked: %q", got)
	}
	waitFor(t, func() bool {
		s, err := m.ContainerStats(c)
		if err != nil {
			t.Fatal(err)
		}
		return s.CPU > 50*time.Millisecond && s.Sampled && s.NanoCores > 1e6 && s.NanoCores < 3e9 && s.Memory.Usage > 0
	})
	got, err := m.PodStats(p[:12])
	if err != nil || got.CPU < 50*time.Millisecond || got.Processes == 0 || got.Memory.Usage == 0 || len(got.Interfaces) != 0 {
		t.Errorf("pod: %+v, %v", got, err)
	}
	if len(descriptors(t, c)) == 0 || len(descriptors(t, "/net/dev")) != 1 || m.meters.open.Load() != 2 {
		t.Errorf("open: %q, %q, %d meters", descriptors(t, c), descriptors(t, "/net/dev"), m.meters.open.Load())
	}
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, m, 1, c) // the pod's own
	if s, err := m.ContainerStats(c); err != nil || s.CPU != 0 {
		t.Errorf("after the exit: %+v, %v", s, err)
	}
	if err := m.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, m, 0, p, "/net/dev")
	if s, err := m.PodStats(p); err != nil || s.Measured {
		t.Errorf("a stopped pod: %+v, %v", s, err)
	}
	if _, err := m.PodStats("none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown pod: %v", err)
	}
}

func TestStatsAfterARestart(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "exec sleep 1000"))
	if _, err := m.ContainerStats(c); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := descriptors(t, c); len(got) != 0 {
		t.Errorf("open after Close: %q", got)
	}
	m = w.open(nil)
	w.recovered(m)
	if s, err := m.ContainerStats(c); err != nil || s.Memory.Usage == 0 {
		t.Errorf("by the next manager: %+v, %v", s, err)
	}
	if s, err := m.PodStats(p); err != nil || s.Processes != 1 {
		t.Errorf("by the next manager: %+v, %v", s, err)
	}
}

// TestStatsWithoutDescriptors: what may not stay open is opened for each call.
func TestStatsWithoutDescriptors(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	m.meters.most = 0
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "exec sleep 1000"))
	for range 3 {
		if s, err := m.ContainerStats(c); err != nil || s.Memory.Usage == 0 {
			t.Errorf("%+v, %v", s, err)
		}
	}
	if got := descriptors(t, c); len(got) != 0 {
		t.Errorf("open: %q", got)
	}
}

func TestStatsOfPodsThatShareACgroup(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	parent := w.cgroups.Tree() + "/shared"
	configs := []*runtimeapi.PodSandboxConfig{podConfig("a"), podConfig("b")}
	var pods []string
	for _, config := range configs {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent}
		pods = append(pods, run(t, m, config))
	}
	busy := start(t, m, createRequest(pods[0], "c", "while :; do :; done"))
	start(t, m, createRequest(pods[1], "c", "exec sleep 1000"))
	waitFor(t, func() bool {
		s, err := m.ContainerStats(busy)
		return err == nil && s.CPU > 200*time.Millisecond
	})
	mine, err := m.PodStats(pods[0])
	other, err2 := m.PodStats(pods[1])
	if err != nil || err2 != nil || mine.CPU < 200*time.Millisecond || other.CPU > 100*time.Millisecond || other.Memory.Usage == 0 || other.Processes != 1 {
		t.Errorf("%+v, %v\n%+v, %v", mine, err, other, err2)
	}
}

// TestStatsRaceWithTheEnd: who measures while a container exits and its pod is removed gets numbers or ErrNotFound, and holds nothing.
func TestStatsRaceWithTheEnd(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	for range 5 {
		p := run(t, m, podConfig("a"))
		c := start(t, m, createRequest(p, "c", "exec sleep 1000"))
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					if _, err := m.ContainerStats(c); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
					if _, err := m.PodStats(p); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
				}
			})
		}
		if err := m.RemovePod(t.Context(), p); err != nil {
			t.Error(err)
		}
		close(stop)
		readers.Wait()
		awaitClosed(t, m, 0, p, "/net/dev")
	}
}
