package imageservice

import (
	"context"
	"encoding/base64"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/imageservice/registry/registrytest"
)

// TestLayersUnderWayAreSharedByThoseWhoMayHaveThem: a download is shared by pulls with different credentials, each of which has
// shown its own; who has none gets nothing of it, and disturbs nobody.
func TestLayersUnderWayAreSharedByThoseWhoMayHaveThem(t *testing.T) {
	w := newWorld(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Token, Username: "u", Password: "p", RegistryToken: "r"}})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{noise(9, 1<<20)}})
	w.snap.hold = make(chan struct{})
	pair := Auth{Auth: base64.StdEncoding.EncodeToString([]byte("u:p"))}
	good := []Auth{pair, {RegistryToken: "r"}, {Username: "u", Password: "p", ServerAddress: w.reg.Host()}}
	errs := make(chan error, len(good))
	for _, a := range good {
		go func() {
			_, err := w.Pull(t.Context(), p.Ref, a, nil)
			errs <- err
		}()
	}
	<-w.snap.holding
	w.eventually("all who may have it to wait for the layer", func() bool {
		w.pulls.layers.mu.Lock()
		defer w.pulls.layers.mu.Unlock()
		waiters := 0
		for _, f := range w.pulls.layers.running {
			waiters += f.waiters
		}
		return waiters == len(good)
	})
	for _, a := range []Auth{{}, {Username: "u", Password: "x"}, {RegistryToken: "x"}, {IdentityToken: "x"}} {
		if _, err := w.Pull(t.Context(), p.Ref, a, nil); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("Pull without the right to: %v", err)
		}
	}
	close(w.snap.hold)
	for range good {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := w.reg.Count("GET", p.Layers[0].Digest.String()); n > 2 { // the first may be a challenge
		t.Errorf("the layer was asked for %d times", n)
	}
}

// TestASlowPullLeavesTheProcessorsToOthers: with one layer unpacked at a time, one that waits for its registry does not count.
func TestASlowPullLeavesTheProcessorsToOthers(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Close()
	s, err := Open(t.Context(), Config{
		Root: w.root, Snapshot: w.snap, Unpack: 1, Registry: registry.Config{StallTimeout: time.Hour},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Service = s
	slow := w.push("a/slow", "1", registrytest.Image{Layers: []registrytest.Layer{noise(1, 1<<20), noise(2, 1<<20)}})
	for _, l := range slow.Layers {
		w.reg.AddFault(registrytest.Fault{Path: l.Digest.String(), Cut: registrytest.Stall, At: 400_000})
	}
	done := make(chan error, 1)
	go func() {
		_, err := w.Pull(t.Context(), slow.Ref, Auth{}, nil)
		done <- err
	}()
	w.eventually("both layers to wait", func() bool { return w.reg.Count("GET", "/a/slow/blobs/") == 3 })
	w.pull(w.push("a/quick", "1", registrytest.Image{Layers: []registrytest.Layer{noise(3, 2<<20), layerOf("x", "y")}}).Ref)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("the slow pull: %v", err)
	}
	w.reopen()
}

// TestLayersFoundByAPullStay: an image is removed whose layer a pull under way has found here and counts on.
func TestLayersFoundByAPullStay(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	shared := layerOf("shared", "s")
	gone := w.push("a/gone", "1", registrytest.Image{Layers: []registrytest.Layer{shared}})
	w.pull(gone.Ref)
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{shared, layerOf("own", "o")}})
	w.snap.hold = make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := w.Pull(t.Context(), p.Ref, Auth{}, nil)
		done <- err
	}()
	<-w.snap.holding
	if err := w.Remove(t.Context(), gone.Ref); err != nil {
		t.Error(err)
	}
	close(w.snap.hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if published, _ := w.snap.layers(); published != 2 {
		t.Errorf("%d layers published, want 2", published)
	}
}

// TestASlowRegistryDoesNotHoldUpOthers: a registry that never gets on with a layer keeps nobody waiting who has it from another one.
func TestASlowRegistryDoesNotHoldUpOthers(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Configure(Config{Registry: registry.Config{StallTimeout: time.Hour}})
	slow, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	img := registrytest.Image{Layers: []registrytest.Layer{noise(1, 1<<20)}}
	p, err := slow.Push("a/evil", "1", img)
	if err != nil {
		t.Fatal(err)
	}
	slow.AddFault(registrytest.Fault{Path: p.Layers[0].Digest.String(), Cut: registrytest.Stall, At: 400_000})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.Pull(ctx, p.Ref, Auth{}, nil)
		done <- err
	}()
	w.eventually("the slow registry to be asked", func() bool { return slow.Count("GET", p.Layers[0].Digest.String()) > 0 })
	patient, stop := context.WithTimeout(t.Context(), time.Minute)
	defer stop()
	if _, err := w.Pull(patient, w.push("a/good", "1", img).Ref, Auth{}, nil); err != nil {
		t.Errorf("the pull from another registry: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow pull: %v", err)
	}
	if published, ingested := w.snap.layers(); published != 1 || ingested != 0 {
		t.Errorf("%d layers published, %d ingested", published, ingested)
	}
}

// TestCancelOfAPullByChunksLeavesNothing ends such a pull at many moments.
func TestCancelOfAPullByChunksLeavesNothing(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Configure(Config{Registry: registry.Config{ChunkSize: 256 << 10, Backoff: time.Millisecond}})
	p := w.push("a/b", "1", registrytest.Image{Layers: []registrytest.Layer{noise(1, 5<<20), noise(2, 3<<20), layerOf("x", "y")}})
	w.reg.AddFault(registrytest.Fault{Path: "/blobs/", Pace: registrytest.Pace{Size: 64 << 10, Every: time.Millisecond}})
	before := runtime.NumGoroutine()
	whole := 0
	for i := range 40 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*2*time.Millisecond)
		_, err := w.Pull(ctx, p.Ref, Auth{}, nil)
		cancel()
		if err == nil {
			whole++
			if err := w.Remove(t.Context(), p.Ref); err != nil {
				t.Fatal(err)
			}
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Pull that was cancelled: %v", err)
		}
		if pub, ing := w.snap.layers(); pub+ing != 0 {
			t.Errorf("%d layers published, %d ingested after the cancel", pub, ing)
		}
	}
	w.eventually("goroutines to end", func() bool { return runtime.NumGoroutine() <= before+10 })
	w.eventually("requests to end", func() bool { return w.reg.Serving() == 0 })
	w.reg.ClearFaults()
	if id := w.pull(p.Ref); id != p.ImageID {
		t.Errorf("the pull after %d cancelled ones brought %s", 40-whole, id)
	}
}

func TestPullsAreRemembered(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	p := w.push("a/b", "1", registrytest.Image{})
	if _, ok := w.lastPull(p.Ref); ok {
		t.Error("a pull is known that never was")
	}
	w.pull(p.Ref)
	last, ok := w.lastPull(p.Ref)
	if !ok || last.State != StateDone || last.Ended == nil || last.Error != "" || last.ImageID != p.ImageID {
		t.Errorf("%+v", last)
	}
	if len(last.Endpoints) != 1 || last.Endpoints[0].Answers != 4 || last.Endpoints[0].Bytes == 0 || last.Endpoints[0].Failures != 0 ||
		!strings.Contains(last.Endpoints[0].URL, w.reg.Host()) {
		t.Errorf("endpoints = %+v", last.Endpoints)
	}
	for range maxEnded + 5 {
		if _, err := w.Pull(t.Context(), w.reg.Host()+"/no/such", Auth{}, nil); !errors.Is(err, ErrNotFound) {
			t.Fatal(err)
		}
	}
	last, ok = w.lastPull(w.reg.Host() + "/no/such:latest")
	if !ok || last.State != StateFailed || !strings.Contains(last.Error, "not found") || last.Endpoints[0].Failures != 1 {
		t.Errorf("%+v", last)
	}
	if _, ok := w.lastPull(p.Ref); ok {
		t.Error("more pulls are remembered than should be")
	}
	if _, ok := w.lastPull("no reference at all"); ok {
		t.Error("a pull of what is no reference is known")
	}
}
