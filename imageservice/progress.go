package imageservice

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/berthd/berth/imageservice/reference"
	"github.com/berthd/berth/imageservice/registry"
)

// States of a pull, and of a layer in it.
const (
	StateResolving   = "resolving"
	StateDownloading = "downloading"
	StateStoring     = "storing"
	StateWaiting     = "waiting"
	StateDone        = "done"
	StateExists      = "exists" // the layer was here before
	StateFailed      = "failed"
)

// maxEnded is how many pulls that have ended are remembered.
const maxEnded = 32

// Progress is how far a pull is.
type Progress struct {
	Ref     string          `json:"ref"` // as it was asked for
	ImageID string          `json:"imageID,omitempty"`
	State   string          `json:"state"`
	Started time.Time       `json:"started"`
	Layers  []LayerProgress `json:"layers"`

	// Endpoints are whom the pull may ask, in order, and what came of it.
	Endpoints []registry.Endpoint `json:"endpoints,omitempty"`

	Ended *time.Time `json:"ended,omitempty"` // nil: it is under way
	Error string     `json:"error,omitempty"`
}

// LayerProgress is how far a layer is, in bytes of its compressed blob.
type LayerProgress struct {
	Digest string `json:"digest"`
	State  string `json:"state"`
	Bytes  uint64 `json:"bytes"`
	Size   uint64 `json:"size"`
}

// tracker is the progress of one pull. Its methods can be called by many goroutines.
type tracker struct {
	fetching *sync.Map // of the service: layerKey to *atomic.Int64, the bytes read so far
	host     string    // of the reference

	mu      sync.Mutex
	p       Progress        // guarded by mu
	src     source          // guarded by mu; nil before it is open
	diffIDs []digest.Digest // of p.Layers; guarded by mu
}

func (t *tracker) state(state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p.State = state
}

// from says where the pull's content comes from.
func (t *tracker) from(src source) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.src = src
}

// end says how the pull has ended.
func (t *tracker) end(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	t.p.Ended, t.p.State = &now, StateDone
	if err != nil {
		t.p.State, t.p.Error = StateFailed, err.Error()
	}
}

func (t *tracker) layers(imageID string, layers []Layer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.p.ImageID, t.p.State = imageID, StateDownloading
	for _, l := range layers {
		t.p.Layers = append(t.p.Layers, LayerProgress{Digest: l.Digest.String(), State: StateWaiting, Size: uint64(l.Size)})
		t.diffIDs = append(t.diffIDs, l.DiffID)
	}
}

func (t *tracker) layer(diffID digest.Digest, state string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.diffIDs {
		if t.diffIDs[i] == diffID {
			t.p.Layers[i].State = state
		}
	}
}

func (t *tracker) progress() Progress {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.p
	p.Layers = slices.Clone(p.Layers)
	if t.src != nil {
		p.Endpoints = t.src.Endpoints()
	}
	for i := range p.Layers {
		l := &p.Layers[i]
		if l.State == StateDone || l.State == StateExists {
			l.Bytes = l.Size
			continue
		}
		if n, ok := t.fetching.Load(layerKey{t.host, t.diffIDs[i]}); ok { // by this pull or by another one
			l.State, l.Bytes = StateDownloading, min(uint64(n.(*atomic.Int64).Load()), l.Size)
		}
	}
	return p
}

// Pulls tells how far the pulls are that are under way, oldest first; with a reference, how far the latest of that is, or how it
// ended, if that is not forgotten yet.
func (s *Service) Pulls(ref string) []Progress {
	if ref != "" {
		if p, ok := s.lastPull(ref); ok {
			return []Progress{p}
		}
		return nil
	}
	s.pulls.mu.Lock()
	all := slices.Collect(maps.Values(s.pulls.trackers))
	s.pulls.mu.Unlock()
	out := make([]Progress, 0, len(all))
	for _, t := range all {
		out = append(out, t.progress())
	}
	slices.SortFunc(out, func(a, b Progress) int { return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Ref, b.Ref)) })
	return out
}

// lastPull tells of the latest pull of a reference: one that is under way, or else the last that has ended.
func (s *Service) lastPull(ref string) (Progress, bool) {
	parsed, err := reference.Parse(ref)
	if err != nil {
		return Progress{}, false
	}
	s.pulls.mu.Lock()
	var found *tracker
	for key, t := range s.pulls.trackers {
		if key.ref == parsed.String() && (found == nil || t.p.Started.After(found.p.Started)) { // Started never changes
			found = t
		}
	}
	last, ok := Progress{}, false
	for _, e := range s.pulls.ended {
		if e.ref == parsed.String() {
			last, ok = e.progress, true
		}
	}
	s.pulls.mu.Unlock()
	if found != nil {
		return found.progress(), true
	}
	return last, ok
}

// report calls fn ten times a second with the progress of a pull, until the function that it returns is called; that
// waits for the last call to end.
func (s *Service) report(key pullKey, fn func(Progress)) (stop func()) {
	if fn == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			s.pulls.mu.Lock()
			t := s.pulls.trackers[key]
			s.pulls.mu.Unlock()
			if t != nil {
				fn(t.progress())
			}
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
