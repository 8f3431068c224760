package imageservice

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// group runs one call a key at a time and shares its result. A call ends early only when nobody waits for it any more.
// The zero value is ready.
type group[K comparable, V any] struct {
	mu      sync.Mutex
	running map[K]*flight[V]
	closed  error // set by close
	wait    sync.WaitGroup
}

// flight is one call under way.
type flight[V any] struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiters int // guarded by group.mu; 0 = it was given up

	value V // with err written before done is closed
	err   error
}

// do runs fn for key, or waits for the call that is under way. led says that this caller's fn ran. fn gets ctx's values, but
// not its end. When the last waiter goes, do returns after fn has.
func (g *group[K, V]) do(ctx context.Context, key K, fn func(context.Context) (V, error)) (value V, led bool, err error) {
	f, led, err := g.join(ctx, key, fn)
	if err != nil {
		return value, false, err
	}
	select {
	case <-f.done:
		return f.value, led, f.err
	case <-ctx.Done():
	}
	g.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	g.mu.Unlock()
	if last {
		f.cancel(context.Cause(ctx))
		<-f.done
		if f.err == nil {
			return f.value, led, nil // it was quicker
		}
	}
	return value, led, context.Cause(ctx)
}

// join finds the call for key or starts it. One that was given up is waited for first, so that two never overlap.
func (g *group[K, V]) join(ctx context.Context, key K, fn func(context.Context) (V, error)) (f *flight[V], led bool, err error) {
	for {
		g.mu.Lock()
		if g.closed != nil {
			defer g.mu.Unlock()
			return nil, false, g.closed
		}
		f := g.running[key]
		if f == nil {
			defer g.mu.Unlock()
			return g.start(ctx, key, fn), true, nil
		}
		if f.waiters > 0 {
			f.waiters++
			g.mu.Unlock()
			return f, false, nil
		}
		g.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return nil, false, context.Cause(ctx)
		}
	}
}

// start runs fn in a goroutine of its own.
// Preconditions: g.mu held.
func (g *group[K, V]) start(ctx context.Context, key K, fn func(context.Context) (V, error)) *flight[V] {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &flight[V]{done: make(chan struct{}), cancel: cancel, waiters: 1}
	if g.running == nil {
		g.running = map[K]*flight[V]{}
	}
	g.running[key] = f
	g.wait.Go(func() {
		defer cancel(nil)
		f.value, f.err = guard(func() (V, error) { return fn(ctx) })
		g.mu.Lock()
		delete(g.running, key)
		g.mu.Unlock()
		close(f.done)
	})
	return f
}

// guard turns a panic, which hostile bytes may have found a way to, into an error: no image may end the daemon.
func guard[V any](fn func() (V, error)) (value V, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("internal fault: %v\n%s", r, debug.Stack())
		}
	}()
	return fn()
}

// close ends all calls with err, lets none begin, and waits.
func (g *group[K, V]) close(err error) {
	g.mu.Lock()
	g.closed = err
	for _, f := range g.running {
		f.cancel(err)
	}
	g.mu.Unlock()
	g.wait.Wait()
}
