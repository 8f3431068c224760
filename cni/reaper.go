package cni

import (
	"context"
	"errors"
	"sync"
	"time"
)

const (
	reapRetry   = time.Second
	releaseWait = 30 * time.Second
)

// reaper deletes links behind the calls that end them. Deleting one takes the kernel about 20 ms of waiting, and so does deleting
// fifty, so what comes in while one deletion runs is the next one's batch.
type reaper struct {
	remove func(names []string) error

	mu     sync.Mutex
	jobs   map[string]*job // by link name; those waiting and those under way
	closed bool

	wake chan struct{}
	done chan struct{}
}

type job struct {
	release []func(context.Context) error // run when the link is gone
	done    chan struct{}
}

// startReaper starts the goroutine, which close stops.
func startReaper(remove func([]string) error) *reaper {
	r := &reaper{remove: remove, jobs: make(map[string]*job), wake: make(chan struct{}, 1), done: make(chan struct{})}
	go r.run()
	return r
}

// push queues a link. release runs when it is gone, once or more often; nil means there is nothing to release.
func (r *reaper) push(name string, release func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return // GC finds link and reservation
	}
	j := r.jobs[name]
	if j == nil {
		j = &job{done: make(chan struct{})}
		r.jobs[name] = j
	}
	if release != nil {
		j.release = append(j.release, release)
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reaper) has(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.jobs[name] != nil
}

// wait returns when the link is not queued, or when ctx ends.
func (r *reaper) wait(ctx context.Context, name string) error {
	r.mu.Lock()
	j := r.jobs[name]
	r.mu.Unlock()
	if j == nil {
		return nil
	}
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// idle returns when nothing is queued, or when ctx ends.
func (r *reaper) idle(ctx context.Context) error {
	for {
		name := ""
		r.mu.Lock()
		for name = range r.jobs {
			break
		}
		r.mu.Unlock()
		if name == "" {
			return nil
		}
		if err := r.wait(ctx, name); err != nil {
			return err
		}
	}
}

// close ends the goroutine after one more try for what is queued.
func (r *reaper) close() {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if !closed {
		close(r.wake)
	}
	<-r.done
}

func (r *reaper) run() {
	defer close(r.done)
	for open := true; open; {
		_, open = <-r.wake
		for r.round() != nil && open {
			select {
			case <-time.After(reapRetry):
			case _, open = <-r.wake:
			}
		}
	}
}

// round deletes what is queued when it begins. On an error it stays queued.
func (r *reaper) round() error {
	r.mu.Lock()
	batch := make(map[string]int, len(r.jobs)) // number of release functions seen
	names := make([]string, 0, len(r.jobs))
	for name, j := range r.jobs {
		batch[name] = len(j.release)
		names = append(names, name)
	}
	r.mu.Unlock()
	if len(names) == 0 {
		return nil
	}
	together := r.remove(names)
	ctx, cancel := context.WithTimeout(context.Background(), releaseWait)
	defer cancel()
	var errs []error
	for _, name := range names {
		if together != nil { // one link that cannot be deleted does not hold up the others
			if err := r.remove([]string{name}); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		errs = append(errs, r.finish(ctx, name, batch[name]))
	}
	return errors.Join(errs...)
}

// finish runs the first n release functions of a link that is gone.
func (r *reaper) finish(ctx context.Context, name string, n int) error {
	r.mu.Lock()
	j := r.jobs[name]
	release := j.release[:n:n]
	r.mu.Unlock()
	for _, f := range release {
		if err := f(ctx); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if j.release = j.release[n:]; len(j.release) == 0 {
		delete(r.jobs, name)
		close(j.done)
	}
	return nil
}
