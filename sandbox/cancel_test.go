package sandbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// made are the objects of a life.
type made struct{ pod, first, second string }

// callsOfALife are the calls of one sandbox's life, each to be made again with the same request.
var callsOfALife = []struct {
	name string
	call func(ctx context.Context, m *Manager, o *made) error
}{
	{"RunPod", func(ctx context.Context, m *Manager, o *made) error {
		return sameID(&o.pod, func() (string, error) { return m.RunPod(ctx, podConfig("a"), "") })
	}},
	{"CreateContainer", func(ctx context.Context, m *Manager, o *made) error {
		return sameID(&o.first, func() (string, error) { return m.CreateContainer(ctx, createRequest(o.pod, "c", "sleep 1000")) })
	}},
	{"StartContainer", func(ctx context.Context, m *Manager, o *made) error { return m.StartContainer(ctx, o.first) }},
	{"ExecSync", func(ctx context.Context, m *Manager, o *made) error {
		_, err := m.ExecSync(ctx, o.first, []string{"true"}, time.Minute)
		return err
	}},
	{"UpdateContainer", func(ctx context.Context, m *Manager, o *made) error {
		return m.UpdateContainer(ctx, o.first, &runtimeapi.LinuxContainerResources{CpuShares: 512})
	}},
	{"UpdatePod", func(ctx context.Context, m *Manager, o *made) error {
		return m.UpdatePod(ctx, o.pod, nil, &runtimeapi.LinuxContainerResources{CpuShares: 512})
	}},
	{"ReopenLog", func(ctx context.Context, m *Manager, o *made) error { return m.ReopenLog(ctx, o.first) }},
	{"StopContainer", func(ctx context.Context, m *Manager, o *made) error {
		return m.StopContainer(ctx, o.first, time.Second)
	}},
	{"RemoveContainer", func(ctx context.Context, m *Manager, o *made) error { return m.RemoveContainer(ctx, o.first) }},
	{"CreateContainer again", func(ctx context.Context, m *Manager, o *made) error {
		return sameID(&o.second, func() (string, error) { return m.CreateContainer(ctx, createRequest(o.pod, "d", "sleep 1000")) })
	}},
	{"StartContainer again", func(ctx context.Context, m *Manager, o *made) error { return m.StartContainer(ctx, o.second) }},
	{"StopPod", func(ctx context.Context, m *Manager, o *made) error { return m.StopPod(ctx, o.pod) }},
	{"RemovePod", func(ctx context.Context, m *Manager, o *made) error { return m.RemovePod(ctx, o.pod) }},
}

// sameID keeps the ID that a call returned, and refuses another one afterwards.
func sameID(id *string, call func() (string, error)) error {
	got, err := call()
	if err != nil {
		return err
	}
	if *id != "" && *id != got {
		return fmt.Errorf("the ID is %s, and was %s", got, *id)
	}
	*id = got
	return nil
}

// giveUp is a fault that ends the context of the call that is under way at the n-th effect, and holds the effect up for a while.
type giveUp struct {
	at   int
	hold time.Duration

	mu     sync.Mutex
	steps  []string
	cancel context.CancelFunc
}

func (g *giveUp) effect(step string) error {
	g.mu.Lock()
	g.steps = append(g.steps, step)
	now := len(g.steps) == g.at
	if now && g.cancel != nil { // nil: before the first call
		g.cancel()
	}
	g.mu.Unlock()
	if now {
		time.Sleep(g.hold)
	}
	return nil
}

// call makes a call whose context ends at the chosen effect.
func (g *giveUp) call(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g.mu.Lock()
	g.cancel = cancel
	g.mu.Unlock()
	return do(ctx)
}

// TestCallersGiveUpAtEveryStep: at each effect of a life the caller goes away, and its repetition, which begins while the first call may still
// be at work, gets the same object or carries the call through. Nothing is left after the life.
func TestCallersGiveUpAtEveryStep(t *testing.T) {
	for name, newWorld := range handlers {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			count := &giveUp{}
			lead(t, w, count)
			all := slices.Clone(count.steps)
			t.Logf("%d steps: %s", len(all), strings.Join(all, ", "))
			for n := 1; n <= len(all); n++ {
				for _, hold := range []time.Duration{0, 30 * time.Millisecond} {
					t.Run(fmt.Sprintf("%02d %s, held up for %v", n, all[n-1], hold), func(t *testing.T) {
						t.Parallel()
						lead(t, newWorld(t), &giveUp{at: n, hold: hold})
					})
				}
			}
		})
	}
}

// lead leads a life in which every call that fails is made again.
func lead(t *testing.T, w *world, g *giveUp) {
	t.Helper()
	m := w.open(g.effect)
	var o made
	for _, c := range callsOfALife {
		first := g.call(t.Context(), func(ctx context.Context) error { return c.call(ctx, m, &o) })
		if first == nil {
			continue
		}
		if g.at == 0 {
			t.Fatalf("%s: %v", c.name, first)
		}
		if err := c.call(t.Context(), m, &o); err != nil {
			t.Fatalf("%s, which ended with %q, again: %v", c.name, first, err)
		}
	}
	if len(m.Pods()) != 0 || len(m.Containers()) != 0 {
		t.Errorf("listed after removal: %+v %+v", m.Pods(), m.Containers())
	}
	w.empty()
}
