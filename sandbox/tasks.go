package sandbox

import (
	"context"
	"errors"
	"sync"
)

// tasks are the parts of one operation that go on at the same time. The first error ends the context of the others; all are
// waited for.
type tasks struct {
	ctx    context.Context //nolint:containedctx // lives as long as the group, within one call
	cancel context.CancelFunc
	group  sync.WaitGroup

	mu   sync.Mutex
	errs []error
}

func newTasks(ctx context.Context) *tasks {
	t := &tasks{}
	t.ctx, t.cancel = context.WithCancel(ctx)
	return t
}

func (t *tasks) run(work func(context.Context) error) {
	t.group.Go(func() {
		err := protect(func() error { return work(t.ctx) })
		if err == nil {
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		// What failed only because another one had is not worth telling.
		if len(t.errs) == 0 || !errors.Is(err, context.Canceled) {
			t.errs = append(t.errs, err)
		}
		t.cancel()
	})
}

// wait returns the errors of all tasks, joined.
func (t *tasks) wait() error {
	t.group.Wait()
	t.cancel()
	return errors.Join(t.errs...)
}

// each runs work for all items at once and joins the errors; none ends the others.
func each[T any](items []T, work func(T) error) error {
	if len(items) == 1 {
		return work(items[0])
	}
	var group sync.WaitGroup
	errs := make([]error, len(items))
	for i, item := range items {
		group.Go(func() { errs[i] = protect(func() error { return work(item) }) })
	}
	group.Wait()
	return errors.Join(errs...)
}
