package registry

import (
	"context"
	"sync"
)

// budget is what all sources of a client use together. A pull has one connection of its own, so that slow ones take speed
// from others and never all; further ones, and the memory of chunks ahead of their readers, come from here.
type budget struct {
	connections chan struct{} // has one element for each that is in use

	mu    sync.Mutex
	bytes int64 // left; guarded by mu
}

func newBudget(c Config) *budget {
	return &budget{connections: make(chan struct{}, c.MaxConnections), bytes: c.MaxBuffered}
}

// takeAhead takes a connection and memory for a chunk, if there are both.
func (b *budget) takeAhead(bytes int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes < bytes {
		return false
	}
	select {
	case b.connections <- struct{}{}:
		b.bytes -= bytes
		return true
	default:
		return false
	}
}

func (b *budget) giveConnection() { <-b.connections }

func (b *budget) giveBytes(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes += n
}

// connection waits for one: the pull's own, or one of the budget.
func (s *Source) connection(ctx context.Context) (give func(), err error) {
	select {
	case s.own <- struct{}{}:
		return func() { <-s.own }, nil
	default:
	}
	select {
	case s.own <- struct{}{}:
		return func() { <-s.own }, nil
	case s.budget.connections <- struct{}{}:
		return s.budget.giveConnection, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// single is a blob that comes over one connection at a time.
type single struct {
	span
	give func() // of the connection; nil before the first Read and after the last
}

func (s *single) Read(p []byte) (n int, err error) {
	if s.give == nil && !s.closed {
		if s.give, err = s.blob.source.connection(s.ctx); err != nil {
			return 0, err
		}
	}
	return s.span.Read(p)
}

func (s *single) Close() error {
	if s.give != nil {
		s.give()
		s.give = nil
	}
	return s.span.Close()
}
