package sandbox

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/sandbox/monitor"
)

// Bounds of what attached clients have not taken yet.
const (
	backlogMost    = 16 << 20 // of one stream
	backlogLeast   = 1 << 20  // of one stream, however much the others have
	allBacklogMost = 64 << 20 // of all clients
	chunkMost      = 32 << 10 // so that many small writes are not many small pieces
)

// allBacklog is the size of all backlogs together.
var allBacklog atomic.Int64

// backlog is a Writer that takes bytes for a client as they come, and passes them on as fast as the client can. It never waits: one that is full
// takes no more.
type backlog struct {
	to     io.Writer
	failed func(error)   // told when the client takes no more
	done   chan struct{} // closed when all is passed on, or will not be

	mu     sync.Mutex
	change sync.Cond
	chunks [][]byte
	size   int
	passed uint64 // bytes, for who wants to see progress
	ended  bool   // nothing more comes
	err    error  // nothing more is taken
}

func newBacklog(to io.Writer, failed func(error)) *backlog {
	b := &backlog{to: to, failed: failed, done: make(chan struct{})}
	b.change.L = &b.mu
	go b.pass()
	return b
}

// Write takes p, or returns why it does not: the client's error, or monitor.ErrSlow.
func (b *backlog) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	size := b.size + len(p)
	if size > backlogMost || size > backlogLeast && allBacklog.Load()+int64(len(p)) > allBacklogMost {
		return 0, monitor.ErrSlow
	}
	if last := len(b.chunks) - 1; last >= 0 && len(b.chunks[last])+len(p) <= chunkMost {
		b.chunks[last] = append(b.chunks[last], p...)
	} else {
		b.chunks = append(b.chunks, append([]byte(nil), p...))
	}
	b.grow(len(p))
	b.change.Broadcast()
	return len(p), nil
}

// grow counts n bytes more, or fewer. Preconditions: mu held.
func (b *backlog) grow(n int) {
	b.size += n
	allBacklog.Add(int64(n))
}

// end says that nothing more comes.
func (b *backlog) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ended = true
	b.change.Broadcast()
}

// drop gives up on the client.
func (b *backlog) drop(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	b.grow(-b.size)
	b.chunks = nil
	b.change.Broadcast()
}

// wait returns when the client has everything, or takes no more; with a limit, when it has taken nothing for so long.
func (b *backlog) wait(ctx context.Context, limit time.Duration) error {
	stalled := make(<-chan time.Time)
	if limit > 0 {
		ticker := time.NewTicker(limit)
		defer ticker.Stop()
		stalled = ticker.C
	}
	var before uint64
	for {
		select {
		case <-b.done:
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-stalled:
			b.mu.Lock()
			now := b.passed
			b.mu.Unlock()
			if now == before {
				return ErrExhausted
			}
			before = now
		}
	}
}

// pass gives the client what there is, until the end.
func (b *backlog) pass() {
	defer close(b.done)
	for {
		b.mu.Lock()
		for len(b.chunks) == 0 && !b.ended && b.err == nil {
			b.change.Wait()
		}
		if len(b.chunks) == 0 {
			b.mu.Unlock()
			return
		}
		chunk := b.chunks[0]
		b.chunks = b.chunks[1:]
		b.mu.Unlock()
		_, err := b.to.Write(chunk)
		if err != nil {
			b.drop(err)
			b.failed(err)
		}
		b.mu.Lock()
		if b.err == nil {
			b.grow(-len(chunk))
			b.passed += uint64(len(chunk))
			b.change.Broadcast()
		}
		b.mu.Unlock()
	}
}
