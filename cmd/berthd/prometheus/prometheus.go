// Package prometheus counts the daemon's calls and shows them, with a few facts about the daemon, in Prometheus' text format (version 0.0.4).
//
// What is counted stays small: a method and a code are few, whatever clients send.
package prometheus

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// bounds of the histogram, in seconds. A list takes less than the first, a pull more than the last.
var bounds = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60}

// Gauge is one number of now, or one of a family of numbers that a label tells apart.
type Gauge struct {
	Name, Help string
	Label      string // "" = the family is one number, and its key is ""
	Read       func() map[string]float64
}

// Calls counts calls. It may be used from any number of goroutines.
type Calls struct {
	Version string
	Gauges  []Gauge

	mu      sync.Mutex
	answers map[answer]uint64
	times   map[string]*histogram
}

type answer struct{ method, code string }

type histogram struct {
	buckets []uint64 // not cumulated; the last is of what is above all bounds
	seconds float64
}

// Observe counts one call.
func (c *Calls) Observe(method, code string, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.answers == nil {
		c.answers, c.times = map[answer]uint64{}, map[string]*histogram{}
	}
	c.answers[answer{method, code}]++
	h := c.times[method]
	if h == nil {
		h = &histogram{buckets: make([]uint64, len(bounds)+1)}
		c.times[method] = h
	}
	i, _ := slices.BinarySearch(bounds, took.Seconds())
	h.buckets[i]++
	h.seconds += took.Seconds()
}

// ServeHTTP answers GET /metrics.
func (c *Calls) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/metrics" {
		http.NotFound(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "only GET", http.StatusMethodNotAllowed)
		return
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_ = c.Write(w) // the client has gone
}

// Write writes all metrics, in the same order each time.
func (c *Calls) Write(w io.Writer) error {
	var b strings.Builder
	head := func(name, kind, help string) { fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	head("berth_build_info", "gauge", "The version of berthd; the value is 1.")
	fmt.Fprintf(&b, "berth_build_info{version=%q} 1\n", c.Version)
	for _, g := range c.Gauges {
		kind := "gauge"
		if strings.HasSuffix(g.Name, "_total") {
			kind = "counter"
		}
		head(g.Name, kind, g.Help)
		values := g.Read()
		for _, key := range slices.Sorted(maps.Keys(values)) {
			label := ""
			if g.Label != "" {
				label = fmt.Sprintf("{%s=%q}", g.Label, key)
			}
			fmt.Fprintf(&b, "%s%s %s\n", g.Name, label, number(values[key]))
		}
	}
	c.writeCalls(&b, head)
	_, err := io.WriteString(w, b.String())
	return err
}

func (c *Calls) writeCalls(b *strings.Builder, head func(name, kind, help string)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	head("berth_cri_calls_total", "counter", "Calls of the CRI that have been answered, by method and gRPC code.")
	byName := func(a, b answer) int { return cmp.Or(cmp.Compare(a.method, b.method), cmp.Compare(a.code, b.code)) }
	for _, a := range slices.SortedFunc(maps.Keys(c.answers), byName) {
		fmt.Fprintf(b, "berth_cri_calls_total{method=%q,code=%q} %d\n", a.method, a.code, c.answers[a])
	}
	head("berth_cri_call_seconds", "histogram", "How long calls of the CRI took; of streams, how long they lasted.")
	for _, method := range slices.Sorted(maps.Keys(c.times)) {
		h, sum := c.times[method], uint64(0)
		for i, n := range h.buckets {
			sum += n
			bound := "+Inf"
			if i < len(bounds) {
				bound = number(bounds[i])
			}
			fmt.Fprintf(b, "berth_cri_call_seconds_bucket{method=%q,le=%q} %d\n", method, bound, sum)
		}
		fmt.Fprintf(b, "berth_cri_call_seconds_sum{method=%q} %s\nberth_cri_call_seconds_count{method=%q} %d\n", method, number(h.seconds), method, sum)
	}
}

func number(n float64) string { return strconv.FormatFloat(n, 'g', -1, 64) }

// Process are the gauges that every Prometheus client has about its own process.
func Process(started time.Time) []Gauge {
	one := func(read func() float64) func() map[string]float64 {
		return func() map[string]float64 { return map[string]float64{"": read()} }
	}
	return []Gauge{
		{Name: "process_start_time_seconds", Help: "Start time of berthd, in seconds since 1970.", Read: one(func() float64 { return float64(started.Unix()) })},
		{Name: "process_resident_memory_bytes", Help: "Resident memory of berthd in bytes.", Read: one(residentMemory)},
		{Name: "process_open_fds", Help: "Open file descriptors of berthd.", Read: one(func() float64 {
			entries, _ := os.ReadDir("/proc/self/fd")
			return float64(max(0, len(entries)-1)) // one is the folder's own
		})},
	}
}

// residentMemory reads the second number of statm, in pages.
func residentMemory() float64 {
	text, _ := os.ReadFile("/proc/self/statm")
	if fields := strings.Fields(string(text)); len(fields) > 1 {
		n, _ := strconv.ParseFloat(fields[1], 64)
		return n * float64(os.Getpagesize())
	}
	return 0
}
