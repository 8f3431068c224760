package sandbox

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/berthd/berth/cni"
)

func TestRunPodWaitsForTheNetwork(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	w.network.mu.Lock()
	w.network.notReady = 1 // each waits a part of the patience, on a busy machine a great one
	w.network.mu.Unlock()
	p := run(t, m, podConfig("a"))
	remove(t, m, p)

	w.network.set("Plan", fmt.Errorf("the plugin is being installed: %w", cni.ErrNotReady))
	begin := time.Now()
	if _, err := m.RunPod(t.Context(), podConfig("a"), ""); !errors.Is(err, ErrState) || time.Since(begin) < networkPatience {
		t.Errorf("RunPod = %v after %v", err, time.Since(begin))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.RunPod(ctx, podConfig("a"), ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("RunPod of an impatient caller = %v", err)
	}
	w.network.set("Plan", errors.New("no address"))
	waitFor(t, func() bool { return len(m.Pods()) == 0 }) // what the impatient caller had begun
	w.network.plans = 0
	if _, err := m.RunPod(t.Context(), podConfig("b"), ""); err == nil || w.network.plans != 1 {
		t.Errorf("RunPod with another error = %v after %d plans", err, w.network.plans)
	}
	w.network.set("Plan", nil)
	waitFor(t, func() bool { return len(m.Pods()) == 0 })
	w.empty()
}
