package imageservice

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

func (f *fakeSnap) walked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.walks
}

func TestLayerUsageIsWalkedBehindTheCalls(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	if _, err := w.Prepare(t.Context(), "k", p.ImageID); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	w.snap.mu.Lock() // a walk stands still
	if u, ok := w.LayerUsage(impatient, "k"); ok || u.Bytes != 0 {
		t.Errorf("before a walk: %+v, %v", u, ok)
	}
	w.snap.mu.Unlock()
	u, ok := w.LayerUsage(t.Context(), "k")
	if !ok || u.Bytes != 100 || u.Inodes != 2 || u.Mountpoint != w.root || time.Since(u.At) > time.Minute {
		t.Errorf("after the first walk: %+v, %v", u, ok)
	}
	for range 100 {
		if again, ok := w.LayerUsage(impatient, "k"); !ok || again != u {
			t.Fatalf("again: %+v, %v", again, ok)
		}
	}
	if n := w.snap.walked(); n != 1 {
		t.Errorf("%d walks, want 1", n)
	}
	// What is old is given out once more, and walked.
	w.walker.mu.Lock()
	w.walker.layers["k"].usage.At = u.At.Add(-2 * usageAge)
	w.walker.mu.Unlock()
	if old, ok := w.LayerUsage(impatient, "k"); !ok || old.Bytes != 100 {
		t.Errorf("what is old: %+v, %v", old, ok)
	}
	w.eventually("the layer is walked again", func() bool {
		again, ok := w.LayerUsage(impatient, "k")
		return ok && again.At.After(u.At)
	})
	if err := w.Release(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if u, ok := w.LayerUsage(t.Context(), "k"); ok {
		t.Errorf("of a layer that is released: %+v", u)
	}
	w.walker.mu.Lock()
	defer w.walker.mu.Unlock()
	if len(w.walker.layers) != 0 || len(w.walker.queue) != 0 {
		t.Errorf("left: %v, %v", w.walker.layers, w.walker.queue)
	}
}

// TestFirstWalkDoesNotRest has a walk that takes so long that others rest: a layer that somebody waits for is walked nevertheless.
func TestFirstWalkDoesNotRest(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	for _, key := range []string{"long", "new"} {
		if _, err := w.Prepare(t.Context(), key, p.ImageID); err != nil {
			t.Fatal(err)
		}
	}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	w.snap.mu.Lock()
	w.LayerUsage(impatient, "long")
	time.Sleep(1500 * time.Millisecond) // the rest is 20 times as long
	w.snap.mu.Unlock()
	if _, ok := w.LayerUsage(t.Context(), "long"); !ok {
		t.Error("nothing is known after the first walk")
	}
	patient, cancel := context.WithTimeout(t.Context(), 25*time.Second)
	defer cancel()
	if _, ok := w.LayerUsage(patient, "new"); !ok {
		t.Error("a layer waits for its first walk until others have rested")
	}
}

func TestLayerUsageOfManyAtOnce(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	w.pull(p.Ref)
	keys := []string{"a", "b", "c", "d", "e", "f"}
	for _, key := range keys {
		if _, err := w.Prepare(t.Context(), key, p.ImageID); err != nil {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	for i := range 60 {
		key := keys[i%len(keys)]
		all.Go(func() {
			for range 20 {
				w.LayerUsage(t.Context(), key)
			}
			if i >= 54 {
				if err := w.Release(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	w.eventually("nothing is known any more", func() bool {
		w.walker.mu.Lock()
		defer w.walker.mu.Unlock()
		return len(w.walker.layers) == 0
	})
}
