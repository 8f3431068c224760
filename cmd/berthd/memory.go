package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// When memory is given back.
const (
	// trimInterval is how often the heap is looked at, which takes microseconds.
	trimInterval = 5 * time.Second
	// trimQuiet is how much may be allocated between two looks by a daemon that counts as idle: a kubelet's polling is less.
	trimQuiet = 4 << 20
	// trimWorth is how much must be there to give back. A collection of the heap takes a few milliseconds.
	trimWorth = 6 << 20
)

// trimMemory gives what a pull or many pods have left behind back to the host once the daemon is idle. Left alone the Go runtime
// does so only after minutes: it collects when the heap has doubled, and an idle heap does not grow.
func trimMemory(ctx context.Context) {
	tick := time.NewTicker(trimInterval)
	defer tick.Stop()
	before := readHeap()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := readHeap()
		if now.allocated-before.allocated < trimQuiet && now.spare() > trimWorth {
			runtime.GC() // what lies in a sync.Pool outlives one collection
			debug.FreeOSMemory()
			now = readHeap()
		}
		before = now
	}
}

// heap is what the Go runtime says about its heap, in bytes.
type heap struct {
	allocated            uint64 // since the start
	objects, live        uint64 // live: at the last collection
	freeSpans, freeSlots uint64
}

// spare is what a collection could give back at most.
func (h heap) spare() uint64 {
	have := h.objects + h.freeSpans + h.freeSlots
	return have - min(have, h.live)
}

// readHeap asks the runtime.
func readHeap() heap {
	s := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/unused:bytes"},
	}
	metrics.Read(s)
	n := func(i int) uint64 {
		if s[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return s[i].Value.Uint64()
	}
	return heap{allocated: n(0), objects: n(1), live: n(2), freeSpans: n(3), freeSlots: n(4)}
}
