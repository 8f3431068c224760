package imageservice

import (
	"context"
	"sync"
	"time"
)

// How writable layers are walked. The first walk of a layer never waits: somebody waits for it.
const (
	// usageAge is how old an answer may be before the layer is walked again.
	usageAge = 10 * time.Second
	// walkShare is the part of the time that walks may take, 1/walkShare, once walkCredit is used up.
	walkShare  = 20
	walkCredit = 50 * time.Millisecond
)

// LayerUsage is what a writable layer took when it was last walked.
type LayerUsage struct {
	FsUsage
	At time.Time
}

// walker walks writable layers that somebody asks for, one at a time, behind the calls.
type walker struct {
	wake chan struct{}

	mu     sync.Mutex
	layers map[string]*walked
	first  []string // keys of layers that have never been walked
	queue  []string // keys of others
}

// walked is what is known of one layer.
type walked struct {
	usage  LayerUsage
	queued bool
	first  chan struct{} // closed by the first walk, also when the layer is gone
}

func newWalker() walker { return walker{wake: make(chan struct{}, 1), layers: map[string]*walked{}} }

// LayerUsage is what a writable layer took lately. Nobody waits for a walk, but that a layer that has never been walked is waited for until
// ctx ends. False: it is not known, or there is no such layer.
func (s *Service) LayerUsage(ctx context.Context, key string) (LayerUsage, bool) {
	first := s.walker.ask(key)
	select {
	case <-first:
	case <-ctx.Done():
	}
	usage, ok := s.walker.known(key)
	usage.Mountpoint = s.root
	return usage, ok
}

// ask puts a layer into the queue if what is known of it is old. The channel is closed when it has been walked once.
func (w *walker) ask(key string) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.layers[key]
	if l == nil {
		l = &walked{first: make(chan struct{})}
		w.layers[key] = l
	}
	if !l.queued && time.Since(l.usage.At) > usageAge {
		l.queued = true
		if l.usage.At.IsZero() {
			w.first = append(w.first, key)
		} else {
			w.queue = append(w.queue, key)
		}
		select {
		case w.wake <- struct{}{}:
		default: // it has been asked already
		}
	}
	return l.first
}

func (w *walker) known(key string) (LayerUsage, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.layers[key]
	if l == nil || l.usage.At.IsZero() {
		return LayerUsage{}, false
	}
	return l.usage, true
}

// next takes a key out of a queue; as long as walks rest, of a layer that has never been walked. "": there is none.
func (w *walker) next(rest time.Duration) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	from := &w.first
	if len(*from) == 0 && rest == 0 {
		from = &w.queue
	}
	if len(*from) == 0 {
		return ""
	}
	key := (*from)[0]
	*from = (*from)[1:]
	return key
}

// store keeps what a walk found; an error means that the layer is gone, or cannot be read, and nothing is known of it.
func (w *walker) store(key string, usage LayerUsage, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.layers[key]
	if l == nil { // released meanwhile
		return
	}
	if err != nil {
		delete(w.layers, key)
	}
	if l.usage.At.IsZero() {
		close(l.first)
	}
	l.usage, l.queued = usage, false
}

// forget drops what is known of a layer that was released.
func (w *walker) forget(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.layers[key]; l != nil {
		delete(w.layers, key)
		if l.usage.At.IsZero() {
			close(l.first)
		}
	}
}

// walk walks what is asked for until ctx ends. After a burst it keeps to its share of the time, whatever containers write.
func (s *Service) walk(ctx context.Context) {
	credit, last := walkCredit, time.Now()
	for ctx.Err() == nil {
		rest := walkShare * -min(0, credit+time.Since(last)/walkShare)
		key := s.walker.next(rest)
		if key == "" {
			s.walker.sleep(ctx, rest)
			continue
		}
		start := time.Now()
		bytes, inodes, err := s.snap.Usage(ctx, key)
		end := time.Now()
		s.walker.store(key, LayerUsage{FsUsage: FsUsage{Bytes: uint64(max(0, bytes)), Inodes: uint64(max(0, inodes))}, At: end}, err)
		credit = min(walkCredit, credit+start.Sub(last)/walkShare) - end.Sub(start)
		last = end
	}
}

// sleep returns when something new is asked for, when a rest is over, or when ctx ends; a rest of 0 has no end.
func (w *walker) sleep(ctx context.Context, rest time.Duration) {
	var rested <-chan time.Time
	if rest > 0 {
		timer := time.NewTimer(rest)
		defer timer.Stop()
		rested = timer.C
	}
	select {
	case <-w.wake:
	case <-rested:
	case <-ctx.Done():
	}
}
