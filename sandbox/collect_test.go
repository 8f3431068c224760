package sandbox

import (
	"errors"
	"testing"
	"time"

	"github.com/berthd/berth/cni"
)

// TestTheNetworkIsCollectedAgainAndAgain: what appears behind the daemon's back goes, what pods have stays, and a pod that is being attached is waited for.
func TestTheNetworkIsCollectedAgainAndAgain(t *testing.T) {
	w := newWorld(t)
	w.cfg.CollectInterval = 50 * time.Millisecond
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	stray := func() {
		w.network.mu.Lock()
		defer w.network.mu.Unlock()
		w.network.attached["stray"] = "/nowhere"
	}
	alone := func() bool { all := w.network.all(); return len(all) == 1 && all[0] == p }
	for range 2 {
		stray()
		waitFor(t, alone)
	}
	m.adding.RLock() // as an Add does
	stray()
	time.Sleep(4 * w.cfg.CollectInterval)
	if alone() {
		t.Error("the network was collected while a pod was being attached")
	}
	m.adding.RUnlock()
	waitFor(t, alone)
	remove(t, m, p)
	w.empty()
}

// TestSweepIsSoonRepeatedAfterAFailure: what a daemon left behind does not wait an hour, or for a restart, because the first attempt of the next one failed.
func TestSweepIsSoonRepeatedAfterAFailure(t *testing.T) {
	w := newWorld(t)
	failed := errors.New("the list changed while it was read")
	w.network.attached["stray"], w.rootfs.keys["stray"], w.rootfs.unlisted = "/nowhere", true, failed
	w.network.set("GC", failed)
	w.open(nil)
	waitFor(t, func() bool {
		w.rootfs.mu.Lock()
		defer w.rootfs.mu.Unlock()
		return w.rootfs.lists >= 2
	})
	w.network.set("GC", nil)
	waitFor(t, func() bool { return len(w.network.all()) == 0 })
	w.rootfs.mu.Lock()
	w.rootfs.unlisted = nil
	w.rootfs.mu.Unlock()
	waitFor(t, func() bool { return len(w.left()) == 0 })
	w.empty()
}

func TestCheckNetwork(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	if err := m.CheckNetwork(t.Context(), p); err != nil {
		t.Errorf("of a pod that is attached: %v", err)
	}
	w.network.set("Check", errors.New("a link is missing"))
	if err := m.CheckNetwork(t.Context(), p); err == nil {
		t.Error("what the network finds is not told")
	}
	w.network.set("Check", nil)
	w.network.mu.Lock()
	ns := w.network.attached[p]
	delete(w.network.attached, p)
	w.network.mu.Unlock()
	if err := m.CheckNetwork(t.Context(), p); !errors.Is(err, cni.ErrNotAttached) {
		t.Errorf("of a pod that is not attached: %v", err)
	}
	w.network.mu.Lock()
	w.network.attached[p] = ns
	w.network.mu.Unlock()
	if err := m.CheckNetwork(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("of no pod: %v", err)
	}
	if err := m.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := m.CheckNetwork(t.Context(), p); err != nil {
		t.Errorf("of a stopped pod: %v", err)
	}
	remove(t, m, p)
	w.empty()
}
