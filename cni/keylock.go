package cni

import (
	"context"
	"maps"
	"slices"
	"sync"
)

// keyLock is a mutex for each sandbox ID. The zero value is ready.
type keyLock struct {
	mu      sync.Mutex
	gates   map[string]*gate
	watches map[*keyWatch]bool
}

type gate struct {
	sem   chan struct{}
	users int // holder and waiters
}

// enter locks key and returns the function that unlocks it.
func (l *keyLock) enter(ctx context.Context, key string) (func(), error) {
	l.mu.Lock()
	if l.gates == nil {
		l.gates = make(map[string]*gate)
	}
	g := l.gates[key]
	if g == nil {
		g = &gate{sem: make(chan struct{}, 1)}
		l.gates[key] = g
	}
	g.users++
	for w := range l.watches {
		w.keys[key] = true
	}
	l.mu.Unlock()
	select {
	case g.sem <- struct{}{}:
		if ctx.Err() == nil {
			return func() { <-g.sem; l.leave(key, g) }, nil
		}
		<-g.sem
	case <-ctx.Done():
	}
	l.leave(key, g)
	return nil, context.Cause(ctx)
}

func (l *keyLock) leave(key string, g *gate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.users--; g.users == 0 {
		delete(l.gates, key)
	}
}

// watch remembers the keys that are locked or waited for from now on, until stop is called.
func (l *keyLock) watch() *keyWatch {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &keyWatch{lock: l, keys: make(map[string]bool, len(l.gates))}
	for key := range l.gates {
		w.keys[key] = true
	}
	if l.watches == nil {
		l.watches = make(map[*keyWatch]bool)
	}
	l.watches[w] = true
	return w
}

// keyWatch is a set that grows while its keyLock is used.
type keyWatch struct {
	lock *keyLock
	keys map[string]bool // guarded by lock.mu
}

func (w *keyWatch) stop() {
	w.lock.mu.Lock()
	defer w.lock.mu.Unlock()
	delete(w.lock.watches, w)
}

func (w *keyWatch) has(key string) bool {
	w.lock.mu.Lock()
	defer w.lock.mu.Unlock()
	return w.keys[key]
}

func (w *keyWatch) all() []string {
	w.lock.mu.Lock()
	defer w.lock.mu.Unlock()
	return slices.Collect(maps.Keys(w.keys))
}
