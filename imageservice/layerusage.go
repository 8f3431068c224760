package imageservice

import (
	"context"
	"sync"
	"time"
)

// How writable layers are walked.
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
	queue  []string // keys
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
	usage.Mountpoint = s.config.Root
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
		w.queue = append(w.queue, key)
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

// next takes a key out of the queue.
func (w *walker) next() (string, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 {
		return "", false
	}
	key := w.queue[0]
	w.queue = w.queue[1:]
	return key, true
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
		key, ok := s.walker.next()
		if !ok {
			select {
			case <-s.walker.wake:
			case <-ctx.Done():
			}
			continue
		}
		start := time.Now()
		bytes, inodes, err := s.snap.Usage(ctx, key)
		end := time.Now()
		s.walker.store(key, LayerUsage{FsUsage: FsUsage{Bytes: uint64(max(0, bytes)), Inodes: uint64(max(0, inodes))}, At: end}, err)
		credit = min(walkCredit, credit+start.Sub(last)/walkShare) - end.Sub(start)
		last = end
		if credit < 0 {
			rest(ctx, -credit*walkShare)
		}
	}
}

func rest(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
