package sandbox

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/netns"
)

// Bounds of samples of the use of processors.
const (
	// sampleWindow is the shortest time that a rate is taken over: calls that come faster share a sample.
	sampleWindow = time.Second
	// sampleAge is the longest: what happened before says nothing about now.
	sampleAge = 5 * time.Minute
	// sampleYoung is how long an object must have lived for a rate since its start.
	sampleYoung = 100 * time.Millisecond
)

// gauge measures one object. Its descriptors are opened when somebody asks, and closed for good at the object's end.
type gauge struct {
	mu       sync.Mutex
	closed   bool
	meter    *cgroup.Meter
	counters *netns.Counters // of a sandbox
	older    sample
	newer    sample
}

// sample is how much of the processors an object had used at a time.
type sample struct {
	at  time.Time
	cpu time.Duration
}

// close gives the descriptors back, for good. It is idempotent.
func (g *gauge) close(m *meters) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.counters.Close()
	g.drop(m)
}

// drop closes the meter. Preconditions: g.mu held.
func (g *gauge) drop(m *meters) {
	if g.meter != nil {
		g.meter.Close()
		g.meter = nil
		m.open.Add(-1)
	}
}

// closeGauges closes those of all objects.
func (m *Manager) closeGauges() {
	m.mu.RLock()
	all := make([]*gauge, 0, len(m.pods)+len(m.containers))
	for _, p := range m.pods {
		all = append(all, &p.gauge)
	}
	for _, c := range m.containers {
		all = append(all, &c.gauge)
	}
	m.mu.RUnlock()
	for _, g := range all { // not with m.mu held, which comes after a gauge's
		g.close(&m.meters)
	}
}

// refresh has the limits read anew.
func (g *gauge) refresh() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.meter != nil {
		g.meter.Refresh()
	}
}

// rate is the use of the processors lately. A sample at the object's start, when it had used nothing, stands for an earlier one.
// Preconditions: g.mu held.
func (g *gauge) rate(now sample, start time.Time) (nanoCores uint64, known bool) {
	if age := now.at.Sub(start); g.newer.at.IsZero() && !start.IsZero() && age >= 0 {
		if age < sampleYoung {
			return 0, false
		}
		g.newer = sample{at: start}
		g.older = g.newer
	}
	if now.at.Sub(g.newer.at) >= sampleWindow {
		g.older, g.newer = g.newer, now
	}
	window := now.at.Sub(g.older.at)
	if g.older.at.IsZero() || window <= 0 || window > sampleAge || now.cpu < g.older.cpu {
		return 0, false
	}
	return uint64(float64(now.cpu-g.older.cpu) / window.Seconds()), true
}

// meters counts the meters that are open. Those beyond most are opened for each call.
type meters struct {
	open    atomic.Int64
	most    int64
	devices deviceNames
}

// maxMeters is how many meters may be open: a third of the descriptors that the daemon may have.
func maxMeters() int64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return int64(min(limit.Cur, 1<<20) / 3 / cgroup.MeterFiles)
}
