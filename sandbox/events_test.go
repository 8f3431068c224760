package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/wait"
)

// listener collects events.
type listener struct {
	mu     sync.Mutex
	events []Event
	done   chan error
}

// listen subscribes, and returns once nothing can be missed.
func listen(t *testing.T, w *world, m *Manager) *listener {
	t.Helper()
	l := &listener{done: make(chan error, 1)}
	ready := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	w.callers.Go(func() {
		l.done <- m.Events(ctx, func() error { close(ready); return nil }, func(e Event) error {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.events = append(l.events, e)
			return nil
		})
	})
	<-ready
	return l
}

var eventNames = map[EventType]string{EventCreated: "created", EventStarted: "started", EventStopped: "stopped", EventDeleted: "deleted"}

// of are the events of one object, in order.
func (l *listener) of(id string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for _, e := range l.events {
		if e.ID == id {
			all = append(all, eventNames[e.Type])
		}
	}
	return all
}

// await waits until an object has had exactly these events.
func (l *listener) await(t *testing.T, id string, want ...string) {
	t.Helper()
	if !wait.Until(30*time.Second, time.Millisecond, func() bool { return slices.Equal(l.of(id), want) }) {
		t.Fatalf("events of %.8s: %v, want %v", id, l.of(id), want)
	}
}

// check holds all events against the rules: times that rise, each object's order, and states that fit.
func (l *listener) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	stage := map[string]EventType{}
	var last time.Time
	for i, e := range l.events {
		if !e.At.After(last) {
			t.Errorf("event %d is of %v, the one before of %v", i, e.At, last)
		}
		last = e.At
		before, seen := stage[e.ID]
		// A created container may be removed without having run, and a start may fail.
		if seen && e.Type <= before || !seen && e.Type != EventCreated {
			t.Errorf("event %d of %.8s is %s after %s (%v)", i, e.ID, eventNames[e.Type], eventNames[before], seen)
		}
		stage[e.ID] = e.Type
		if e.Pod.ID == "" || e.Pod.Config.GetMetadata().GetName() == "" {
			t.Errorf("event %d has no sandbox: %+v", i, e)
		}
		at := slices.IndexFunc(e.Containers, func(c Container) bool { return c.ID == e.ID })
		switch isPod := e.ID == e.Pod.ID; {
		case isPod && (e.Type == EventStarted) != (e.Pod.State == PodReady) && e.Type != EventCreated:
			t.Errorf("event %d: the sandbox is %s when it is %s", i, e.Pod.State, eventNames[e.Type])
		case isPod:
		case (at >= 0) != (e.Type != EventDeleted):
			t.Errorf("event %d: %s, among the containers: %v", i, eventNames[e.Type], at >= 0)
		case e.Type == EventStopped && e.Containers[at].State != ContainerExited:
			t.Errorf("event %d: stopped, and %s", i, e.Containers[at].State)
		}
	}
}

func TestEventsOfALife(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	first, second := listen(t, w, m), listen(t, w, m)
	p := run(t, m, podConfig("a"))
	long := start(t, m, createRequest(p, "long", "exec sleep 1000"))
	short := start(t, m, createRequest(p, "short", "exit 3"))
	never := create(t, m, createRequest(p, "never", "exit 3"))
	exited(t, m, short)
	if err := m.RemoveContainer(t.Context(), never); err != nil {
		t.Fatal(err)
	}
	if err := m.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := m.StopPod(t.Context(), p); err != nil { // again, and nothing more is told
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*listener{first, second} {
		for _, id := range []string{p, long, short} {
			l.await(t, id, "created", "started", "stopped", "deleted")
		}
		l.await(t, never, "created", "deleted")
		l.check(t)
		l.mu.Lock()
		order := []string{}
		for _, e := range l.events {
			if e.ID == p || e.ID == long {
				order = append(order, map[bool]string{true: "pod", false: "container"}[e.ID == p]+" "+eventNames[e.Type])
			}
			if e.ID == short && e.Type == EventStopped {
				if i := slices.IndexFunc(e.Containers, func(c Container) bool { return c.ID == short }); e.Containers[i].ExitCode != 3 || len(e.Containers) < 2 {
					t.Errorf("the exit is told with %+v", e.Containers)
				}
			}
		}
		l.mu.Unlock()
		want := "pod created, pod started, container created, container started, container stopped, pod stopped, container deleted, pod deleted"
		if got := strings.Join(order, ", "); got != want {
			t.Errorf("order: %s, want %s", got, want)
		}
	}
}

// TestEventsOfAnExitBeforeItsStart: a container that exits before its start is known has both events, in their order.
func TestEventsOfAnExitBeforeItsStart(t *testing.T) {
	w := newWorld(t)
	var m *Manager
	m = w.open(nil)
	l := listen(t, w, m)
	p := run(t, m, podConfig("a"))
	var all []string
	for i := range 30 {
		all = append(all, start(t, m, createRequest(p, fmt.Sprint("c", i), "exit 0")))
	}
	for _, id := range all {
		l.await(t, id, "created", "started", "stopped")
	}
	l.check(t)
}

func TestEventsOfWhatFails(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	l := listen(t, w, m)
	p := run(t, m, podConfig("a"))
	c := create(t, m, createRequest(p, "c", "exit 0"))
	f := w.monitorOf(p)
	f.mu.Lock()
	f.startErr = errors.New("no")
	f.mu.Unlock()
	if err := m.StartContainer(t.Context(), c); err == nil {
		t.Fatal("it starts")
	}
	l.await(t, c, "created", "stopped")
	w.network.set("Add", errors.New("no"))
	if _, err := m.RunPod(t.Context(), podConfig("b"), ""); err == nil {
		t.Fatal("it runs")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.ID != p && e.ID != c {
			t.Errorf("told of what never was: %+v", e)
		}
	}
}

// TestEventsOfALostMonitor: containers stop, and then their sandbox.
func TestEventsOfALostMonitor(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	l := listen(t, w, m)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "exec sleep 1000"))
	w.monitorOf(p).kill()
	l.await(t, c, "created", "started", "stopped")
	l.await(t, p, "created", "started", "stopped")
	l.check(t)
}

// TestEventsOfExitsAtARestart: who subscribes after the start hears of what ended while no daemon ran.
func TestEventsOfExitsAtARestart(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	before := listen(t, w, m)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "exec sleep 1000"))
	stays := start(t, m, createRequest(p, "stays", "exec sleep 1000"))
	pid := m.containerRecord(mustFind(t, m, c)).PID
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-before.done:
		if err == nil || !strings.Contains(err.Error(), "ending") {
			t.Errorf("the subscriber of the first daemon: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the subscriber of the first daemon waits on")
	}
	killProcess(t, pid)
	m = w.open(nil)
	w.recovered(m)
	exited(t, m, c)
	l := listen(t, w, m)
	l.await(t, c, "stopped")
	if got := l.of(stays); len(got) != 0 {
		t.Errorf("events of what runs on: %v", got)
	}
	m.events.forgetRecent()
	late := listen(t, w, m)
	if err := m.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	late.await(t, stays, "stopped")
	late.await(t, p, "stopped")
	late.await(t, c)
	l.await(t, p, "stopped")
}

func mustFind(t *testing.T, m *Manager, id string) *container {
	t.Helper()
	c, err := m.findContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestEventsOfASlowSubscriber: it holds up nobody, and is told that it missed something.
func TestEventsOfASlowSubscriber(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	m.events.forgetRecent()
	fast := listen(t, w, m)
	release, stuck, ready, done := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan error, 1)
	got := 0
	w.callers.Go(func() {
		done <- m.Events(t.Context(), func() error { close(ready); return nil }, func(Event) error {
			if got++; got == 1 {
				close(stuck)
				<-release
			}
			return nil
		})
	})
	<-ready
	p := run(t, m, podConfig("a"))
	<-stuck
	k := m.pods[p]
	had := func(n int) func() bool {
		return func() bool {
			fast.mu.Lock()
			defer fast.mu.Unlock()
			return len(fast.events) == n
		}
	}
	for n := range maxQueued {
		m.mu.Lock()
		m.tell(k, p, EventStopped)
		m.mu.Unlock()
		if n%1000 == 0 { // it is fast, but it may have to wait for a processor
			waitFor(t, had(n+3))
		}
	}
	m.mu.Lock()
	m.tell(k, p, EventStopped, EventStopped)
	m.mu.Unlock()
	close(release)
	if err := <-done; !errors.Is(err, ErrLagged) {
		t.Errorf("the slow subscriber: %v, want ErrLagged", err)
	}
	if got > 2 {
		t.Errorf("the slow subscriber got %d events, want those before it stood still", got)
	}
	waitFor(t, had(maxQueued+4))
	m.events.mu.Lock()
	if n := len(m.events.subscribers); n != 1 {
		t.Errorf("%d subscribers are left", n)
	}
	m.events.mu.Unlock()
}

func TestEventsAreBounded(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	for range maxSubscribers {
		listen(t, w, m)
	}
	never := func() error { t.Error("one too many is ready"); return nil }
	if err := m.Events(t.Context(), never, func(Event) error { return nil }); !errors.Is(err, ErrExhausted) {
		t.Errorf("one too many: %v", err)
	}
	wrong := errors.New("wrong")
	m.events.mu.Lock()
	clear(m.events.subscribers)
	m.events.mu.Unlock()
	if err := m.Events(t.Context(), func() error { return wrong }, nil); !errors.Is(err, wrong) {
		t.Errorf("ready fails: %v", err)
	}
	p := run(t, m, podConfig("a"))
	if err := m.Events(t.Context(), func() error { return nil }, func(Event) error { return wrong }); !errors.Is(err, wrong) {
		t.Errorf("each fails: %v", err)
	}
	m.mu.Lock()
	for range maxQueued + 1 {
		m.tell(m.pods[p], p, EventStopped)
	}
	m.mu.Unlock()
	if m.events.keep || m.events.recent != nil {
		t.Errorf("%d events are kept", len(m.events.recent))
	}
}

// TestEventsOfManyAtOnce: pods live and die at the same time; each object's order holds for each subscriber, whenever it came.
func TestEventsOfManyAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	first := listen(t, w, m)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for j := range 4 {
				p, err := m.RunPod(t.Context(), podConfig(fmt.Sprintf("p%d-%d", i, j)), "")
				if err != nil {
					t.Error(err)
					return
				}
				for k := range 2 {
					c, err := m.CreateContainer(t.Context(), createRequest(p, fmt.Sprint("c", k), "exit 0"))
					if err == nil {
						err = m.StartContainer(t.Context(), c)
					}
					if err != nil {
						t.Error(err)
					}
				}
				if err := m.RemovePod(t.Context(), p); err != nil {
					t.Error(err)
				}
			}
		})
	}
	second := listen(t, w, m) // what was before is among what it gets
	all.Wait()
	for _, l := range []*listener{first, second} {
		waitFor(t, func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return len(l.events) == 16*3*4
		})
		l.check(t)
	}
}

func killProcess(t *testing.T, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}
