package sandbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ending is a fault that ends a Manager in an orderly way at its n-th effect: the calls under way have gone by then.
type ending struct {
	at int

	mu     sync.Mutex
	steps  []string
	manage *Manager
	calls  context.CancelFunc
	begun  chan struct{}
	swept  chan struct{} // closed by the last effect of a start
}

func newEnding(at int) *ending {
	return &ending{at: at, begun: make(chan struct{}), swept: make(chan struct{})}
}

func (e *ending) effect(step string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.steps = append(e.steps, step)
	if step == "sweep writable layers" {
		close(e.swept)
	}
	if len(e.steps) != e.at {
		return nil
	}
	if e.calls != nil {
		e.calls()
	}
	if e.manage != nil { // else it is still being opened
		e.manage.background.cancel()
	}
	close(e.begun)
	return nil
}

// open starts a Manager that ends at the chosen effect.
func (e *ending) open(w *world) *Manager {
	m := w.open(e.effect)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.manage = m
	select {
	case <-e.begun:
		m.background.cancel()
	default:
	}
	return m
}

// beginning is what is done with a sandbox and a container before somebody wants them to end. What fails is not made again.
func beginning(ctx context.Context, m *Manager) error {
	p, err := m.RunPod(ctx, podConfig("a"), "")
	if err != nil {
		return err
	}
	c, err := m.CreateContainer(ctx, createRequest(p, "c", "sleep 1000"))
	if err != nil {
		return err
	}
	if err := m.StartContainer(ctx, c); err != nil {
		return err
	}
	_, err = m.CreateContainer(ctx, createRequest(p, "d", "sleep 1000"))
	return err
}

// TestEndAtEveryStep ends the daemon in an orderly way at every effect of a beginning. What was acknowledged is there for the next one, and what
// was not is as if nobody had asked for it.
func TestEndAtEveryStep(t *testing.T) {
	for name, newWorld := range handlers {
		t.Run(name, func(t *testing.T) {
			w, count := newWorld(t), newEnding(0)
			m := count.open(w)
			if err := beginning(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			count.mu.Lock()
			all := slices.Clone(count.steps)
			count.mu.Unlock()
			t.Logf("%d steps: %s", len(all), strings.Join(all, ", "))
			for n := 1; n <= len(all); n++ {
				t.Run(fmt.Sprintf("%02d %s", n, all[n-1]), func(t *testing.T) {
					t.Parallel()
					endAtStep(t, newWorld(t), n)
				})
			}
		})
	}
}

func endAtStep(t *testing.T, w *world, n int) {
	e := newEnding(n)
	m := e.open(w)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	e.mu.Lock()
	e.calls = cancel
	e.mu.Unlock()
	if err := beginning(ctx, m); err == nil {
		t.Log("it was quicker than its end")
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = w.open(nil)
	w.recovered(m)
	for _, p := range m.Pods() {
		if p.State != PodReady {
			t.Errorf("sandbox %s is %s: %s", p.ID, p.State, p.Message)
		}
	}
	for _, c := range m.Containers() {
		if c.State == ContainerExited {
			t.Errorf("container %s is %s: %s %s", c.ID, c.State, c.Reason, c.Message)
		}
	}
	checkTruth(t, w, m)
	p, err := m.RunPod(t.Context(), podConfig("a"), "")
	if err != nil {
		t.Fatalf("the same call again: %v", err)
	}
	remove(t, m, p)
	w.empty()
}

// TestEndAtEveryStepOfRecovery ends daemons in an orderly way, one after the other, at every effect of their recovery. The last one finds what the
// first would have.
func TestEndAtEveryStepOfRecovery(t *testing.T) {
	for n := 1; n <= 30; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.open(nil)
			a, stopped := run(t, m, podConfig("a")), run(t, m, podConfig("s"))
			lives := start(t, m, createRequest(a, "c", "sleep 1000"))
			killed := start(t, m, createRequest(stopped, "c", "sleep 1000"))
			was, _ := m.Container(lives)
			if err := m.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			halfStopped(t, w, stopped)
			half(t, w, "half")
			for range 2 {
				e := newEnding(n)
				m := e.open(w)
				select {
				case <-e.begun:
				case <-e.swept: // it had fewer steps
				case <-time.After(time.Minute):
					t.Fatal("neither ended nor started")
				}
				if err := m.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			m = w.open(nil)
			w.recovered(m)
			checkTruth(t, w, m)
			if got, err := m.Pod(a); err != nil || got.State != PodReady {
				t.Errorf("the healthy sandbox is %+v, %v", got, err)
			}
			if got, err := m.Container(lives); err != nil || got.State != ContainerRunning || got.PID != was.PID {
				t.Errorf("its container is %+v, %v", got, err)
			}
			if got, err := m.Container(killed); err != nil || got.State != ContainerExited || got.Reason != ReasonError || got.ExitCode != 137 {
				t.Errorf("the container of the sandbox that was being stopped is %+v, %v", got, err)
			}
			if all := m.Pods(); len(all) != 2 {
				t.Errorf("sandboxes = %+v: want the healthy one and the stopped one", all)
			}
			for _, p := range m.Pods() {
				remove(t, m, p.ID)
			}
			w.empty()
		})
	}
}

// halfStopped leaves a sandbox that was being stopped when the daemon was killed: nothing of it has ended yet.
func halfStopped(t *testing.T, w *world, sandboxID string) {
	t.Helper()
	diesAt(t, w, "kill container", func(m *Manager) { m.StopPod(t.Context(), sandboxID) })
}
