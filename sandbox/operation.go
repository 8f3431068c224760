package sandbox

import (
	"context"
	"errors"
	"sync"
)

// errAbandoned means that all callers of an operation had gone, so that it was undone.
var errAbandoned = errors.New("operation was given up by its callers")

// turn is a lock that is waited for with a context.
type turn chan struct{}

func newTurn() turn { return make(turn, 1) }

func (t turn) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	default:
	}
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turn) give() { <-t }

// operation is the making of one object, shared by all who ask for the same. It outlives a caller that goes away as long as another one
// waits; when the last goes, its context ends, and it undoes itself.
type operation struct {
	done   chan struct{}
	err    error // set before done is closed
	cancel context.CancelFunc

	mu      sync.Mutex
	waiters int // negative: abandoned
}

// join adds a caller. False: the operation is being undone.
func (o *operation) join() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiters < 0 {
		return false
	}
	o.waiters++
	return true
}

// wait returns the operation's result, or ctx's error when the caller goes first. The caller has joined.
func (o *operation) wait(ctx context.Context) error {
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.waiters--; o.waiters == 0 {
		o.waiters = -1
		o.cancel()
	}
	return ctx.Err()
}

// begin runs work on a context of its own, with the values of ctx, that also ends with the Manager. The caller has joined.
// nil: the Manager is being closed.
func (m *Manager) begin(ctx context.Context, work func(context.Context) error) *operation {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	o := &operation{done: make(chan struct{}), cancel: cancel, waiters: 1}
	unhook := context.AfterFunc(m.ctx, cancel)
	begun := m.background.start(func() {
		defer cancel()
		defer unhook()
		o.err = work(own)
		close(o.done)
		o.mu.Lock()
		defer o.mu.Unlock()
		o.cancel = func() {} // the object keeps its operation, and is not to keep its maker's call
	})
	if !begun {
		cancel()
		return nil
	}
	return o
}

// background are the goroutines that outlive a call.
type background struct {
	cancel  context.CancelFunc // of Manager.ctx
	mu      sync.Mutex
	closing bool
	group   sync.WaitGroup
}

// start runs work on a goroutine of its own. False: the Manager is being closed, and work does not run.
func (b *background) start(work func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.group.Go(work)
	return true
}

// wait lets nothing start any more and waits for what runs.
func (b *background) wait() {
	b.mu.Lock()
	b.closing = true
	b.mu.Unlock()
	b.group.Wait()
}

// settled waits for an operation that cannot be joined any more.
func (o *operation) settled(ctx context.Context) error {
	select {
	case <-o.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
