package imageservice

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/imageservice/registry/registrytest"
)

// gatedSnap is a fakeSnap that keeps layers waiting that are unpacked.
type gatedSnap struct {
	*fakeSnap
	gated   sync.Map // by diffID
	tries   sync.Map // diffIDs of those that were tried
	atOnce  atomic.Int32
	tooMany atomic.Int32 // of atOnce
	gate    chan struct{}
}

func (g *gatedSnap) Ingest(ctx context.Context, d digest.Digest, r io.Reader) error {
	if _, ok := g.gated.Load(d); !ok {
		return g.fakeSnap.Ingest(ctx, d, r)
	}
	raw, err := io.ReadAll(r)
	if err == nil {
		if n := g.atOnce.Add(1); n > 1 {
			g.tooMany.Store(n)
		}
		defer g.atOnce.Add(-1)
	}
	g.tries.Store(d, true)
	if err != nil {
		return fmt.Errorf("ingest: %w", err)
	}
	select {
	case <-g.gate:
	case <-ctx.Done():
	}
	return g.fakeSnap.Ingest(ctx, d, bytes.NewReader(raw))
}

// frames is data as zstd frames, each with a window of 1<<log bytes.
func frames(log int, data []byte) (all []byte) {
	for chunk := range slices.Chunk(data, 100_000) {
		all = append(all, frame(log, chunk)...)
	}
	return all
}

// frame is data as one zstd frame with a window of 1<<log bytes, not compressed.
func frame(log int, data []byte) []byte {
	block := len(data)<<3 | 1 // the last one
	return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, byte(log-10) << 3, byte(block), byte(block >> 8), byte(block >> 16)}, data...)
}

// TestWideWindowsWaitForEachOther: layers that need much memory to be unpacked are unpacked one after another, whoever pulls them, and
// hold nobody else up.
func TestWideWindowsWaitForEachOther(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	snap := &gatedSnap{fakeSnap: w.snap, gate: make(chan struct{})}
	s, err := Open(t.Context(), Config{Root: w.root, Snapshot: snap, Registry: patient, Unpack: 1})
	if err != nil {
		t.Fatal(err)
	}
	w.Service = s
	single, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	packed := func(name string, body []byte, pack func(raw []byte) []byte) registrytest.Layer {
		l := layerOf(name, string(body))
		raw, err := registrytest.Tar(l.Files...)
		if err != nil {
			t.Fatal(err)
		}
		l.Blob = pack(raw)
		if name != "usual" {
			snap.gated.Store(digest.FromBytes(raw), true)
		}
		return l
	}
	wide := func(raw []byte) []byte { return frame(26, raw) }
	push := func(repo string) string {
		return w.push(repo, "1", registrytest.Image{Layers: []registrytest.Layer{
			packed(repo+"1", nil, wide),
			packed(repo+"2", nil, func(raw []byte) []byte { return append(frame(23, raw[:700]), frame(24, raw[700:])...) }),
			packed(repo+"3", make([]byte, 9<<20), func(raw []byte) []byte { return single.EncodeAll(raw, nil) }),
		}}).Ref
	}
	done := make(chan error)
	pull := func(ctx context.Context, ref string) {
		_, err := w.Pull(ctx, ref, Auth{}, nil)
		done <- err
	}
	tried := func(want int) {
		w.eventually(fmt.Sprintf("%d layers to be tried", want), func() bool {
			n := 0
			snap.tries.Range(func(any, any) bool { n++; return true })
			return n == want
		})
	}
	go pull(t.Context(), push("a/b"))
	go pull(t.Context(), push("c/d"))
	tried(6)
	ctx, giveUp := context.WithCancel(t.Context())
	go pull(ctx, w.push("e/f", "1", registrytest.Image{Layers: []registrytest.Layer{packed("e", nil, wide)}}).Ref)
	tried(7)
	giveUp()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up: %v", err)
	}
	usual := packed("usual", nil, func(raw []byte) []byte { return frame(23, raw) })
	w.pull(w.push("g/h", "1", registrytest.Image{Layers: []registrytest.Layer{usual}}).Ref)
	if n := snap.tooMany.Load(); n != 0 {
		t.Errorf("%d wide layers at once, want 1", n)
	}
	close(snap.gate)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	w.pull(w.push("i/j", "1", registrytest.Image{Layers: []registrytest.Layer{packed("i", nil, wide)}}).Ref)
	if n := snap.tooMany.Load(); n != 0 {
		t.Errorf("%d wide layers at once, want 1", n)
	}
	if published, ingested := snap.layers(); published != 8 || ingested != 0 {
		t.Errorf("%d layers published and %d ingested, want 8 and 0", published, ingested)
	}
}

// TestASlowRegistryOfAWideLayerHoldsUpNobody: a layer has no turn while its registry is waited for.
func TestASlowRegistryOfAWideLayerHoldsUpNobody(t *testing.T) {
	w := newWorld(t, registrytest.Options{})
	w.Configure(Config{Registry: registry.Config{StallTimeout: time.Hour}})
	wide := func(seed byte) registrytest.Layer {
		l := noise(seed, 1<<20)
		raw, err := registrytest.Tar(l.Files...)
		if err != nil {
			t.Fatal(err)
		}
		l.Blob = frames(26, raw)
		return l
	}
	slow := w.push("a/slow", "1", registrytest.Image{Layers: []registrytest.Layer{wide(1)}})
	w.reg.AddFault(registrytest.Fault{Path: slow.Layers[0].Digest.String(), Cut: registrytest.Stall, At: 400_000})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.Pull(ctx, slow.Ref, Auth{}, nil)
		done <- err
	}()
	w.eventually("the slow layer to be fetched to the disk", func() bool { return w.reg.Count("GET", slow.Layers[0].Digest.String()) > 1 })
	w.pull(w.push("b/quick", "1", registrytest.Image{Layers: []registrytest.Layer{wide(2), wide(3)}}).Ref)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("the slow pull: %v", err)
	}
	if published, ingested := w.snap.layers(); published != 2 || ingested != 0 {
		t.Errorf("%d layers published and %d ingested, want 2 and 0", published, ingested)
	}
}
