package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

var sink []byte

// The names of runtime/metrics are a contract that is easy to mistype: a wrong one reads as 0.
func TestReadHeapSeesAnAllocation(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // a collection of its own accord would find the allocation alive
	before := readHeap()
	sink = make([]byte, 32<<20)
	now := readHeap()
	if now.allocated-before.allocated < 32<<20 || now.objects < 32<<20 || now.spare() < trimWorth {
		t.Errorf("before %+v, after an allocation of 32 MiB %+v", before, now)
	}
	runtime.KeepAlive(sink)
	sink = nil
	runtime.GC()
	if now = readHeap(); now.live > 32<<20 || now.live == 0 || now.freeSpans == 0 {
		t.Errorf("after a collection %+v", now)
	}
}
