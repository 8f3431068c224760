package agent

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// When a monitor gives memory back.
const (
	trimAfter = 32              // requests
	trimDelay = 2 * time.Second // more may follow
)

// trimmer gives memory back that requests have used. The Go runtime would keep it for the next ones, which may come in a minute or
// never; in a process of a megabyte, of which there are as many as pods, it is most of it. A trim takes less than a
// millisecond, once in trimAfter requests.
type trimmer struct {
	requests atomic.Int32
	pending  atomic.Bool
}

// count counts one request that is over.
func (t *trimmer) count() {
	if t.requests.Add(1) < trimAfter || !t.pending.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(trimDelay, func() {
		t.requests.Store(0)
		t.pending.Store(false)
		spareBatch.Store(nil)
		debug.FreeOSMemory()
	})
}
