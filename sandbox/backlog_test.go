package sandbox

import (
	"errors"
	"io"
	"testing"

	"github.com/berthd/berth/sandbox/monitor"
)

// TestBacklogsAreBounded: what clients that stall are kept is bounded, for one stream and for all together; a little each may have however much the
// others have, and what one gives back another gets.
func TestBacklogsAreBounded(t *testing.T) {
	waitFor(t, func() bool { return allBacklog.Load() == 0 })
	release := make(chan struct{})
	stalled := writerFunc(func(b []byte) (int, error) { <-release; return len(b), nil })
	var all []*backlog
	// client fills a backlog up, and says how much it took.
	client := func() (b *backlog, took int) {
		b = newBacklog(stalled, func(err error) { t.Errorf("a client failed: %v", err) })
		all = append(all, b)
		return b, fill(t, b)
	}
	for range allBacklogMost / backlogMost {
		if _, took := client(); took != backlogMost {
			t.Errorf("a stream has %d bytes, want %d", took, backlogMost)
		}
	}
	for range 2 {
		if _, took := client(); took != backlogLeast {
			t.Errorf("a stream beside others that have all has %d bytes, want %d", took, backlogLeast)
		}
	}
	const least = 2 * backlogLeast
	if n := allBacklog.Load(); n != allBacklogMost+least {
		t.Errorf("all have %d bytes, want %d", n, allBacklogMost+least)
	}
	all[0].drop(io.ErrClosedPipe)
	last := all[len(all)-1]
	if took := fill(t, last); took != backlogMost-least {
		t.Errorf("a stream has %d bytes more when another has gone, want %d", took, backlogMost-least)
	}
	close(release)
	for i, b := range all {
		b.end()
		want := error(nil)
		if i == 0 {
			want = io.ErrClosedPipe
		}
		if err := b.wait(t.Context(), 0); !errors.Is(err, want) {
			t.Errorf("client %d = %v, want %v", i, err, want)
		}
	}
	if n := allBacklog.Load(); n != 0 {
		t.Errorf("%d bytes are left when all have theirs", n)
	}
}

// fill writes until a backlog takes no more, and returns how much it took.
func fill(t *testing.T, b *backlog) (took int) {
	t.Helper()
	piece := make([]byte, chunkMost)
	for {
		n, err := b.Write(piece)
		if errors.Is(err, monitor.ErrSlow) && n == 0 {
			return took
		}
		if took += n; err != nil || took > 2*allBacklogMost {
			t.Fatalf("Write = %d, %v after %d bytes", n, err, took)
		}
	}
}
