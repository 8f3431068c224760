package main

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	"github.com/berthd/berth/hack/turns"
)

// table is a Markdown table with a column a side.
type table struct {
	w     io.Writer
	sides []*side
}

// head begins a table; the sides' columns follow those named.
func (t table) head(names ...string) {
	for _, s := range t.sides {
		names = append(names, s.name)
	}
	fmt.Fprintf(t.w, "| %s |\n|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
}

// row prints cells and one of each side. An empty one is a dash.
func (t table) row(cell func(*side) string, cells ...string) {
	for _, s := range t.sides {
		text := "–"
		if c := cell(s); c != "" {
			text = c
		}
		cells = append(cells, text)
	}
	fmt.Fprintf(t.w, "| %s |\n", strings.Join(cells, " | "))
}

// print prints everything that was measured.
func (b *bench) print(w io.Writer) {
	var versions []string
	for _, s := range b.sides {
		versions = append(versions, s.name+" "+s.version)
	}
	fmt.Fprintf(w, "%s, on %d CPUs. Milliseconds, the median unless said, of %d pods and %d execs of each side in turns with the floor.\n\n",
		strings.Join(versions, ", "), runtime.NumCPU(), b.pods, b.pods*b.execs)
	b.latencies(table{w, b.sides})
	fmt.Fprintln(w)
	b.loads(table{w, b.sides})
	b.berthAlone(w)
}

// latencies are beside the floor.
func (b *bench) latencies(t table) {
	t.head("what", "must, aim", "floor")
	floor := b.turns.Floor
	for _, r := range []struct {
		what, budget string
		of           func(turns.Side) []time.Duration
	}{
		{"pod ready: RunPodSandbox + CreateContainer + StartContainer", "3×, 2×", func(s turns.Side) []time.Duration { return s.Ready }},
		{"ExecSync /bin/true", "3×, 2×", func(s turns.Side) []time.Duration { return s.Exec }},
		{"pod gone: stop + remove of container and pod", "1.5×, 0.5×", func(s turns.Side) []time.Duration { return s.Gone }},
	} {
		f := r.of(floor)
		t.row(func(s *side) string {
			d := r.of(s.Side)
			return fmt.Sprintf("%.2f (%.2f×)", turns.At(d, .5), turns.Multiple(d, f))
		}, r.what, r.budget, fmt.Sprintf("%.2f", turns.At(f, .5)))
		t.row(func(s *side) string { return fmt.Sprintf("%.2f", turns.At(r.of(s.Side), .9)) }, "– p90", "", fmt.Sprintf("%.2f", turns.At(f, .9)))
	}
}

// loads have no floor.
func (b *bench) loads(t table) {
	mib := func(kib int) float64 { return float64(kib) / 1024 }
	t.head("what", "must, aim")
	t.row(func(s *side) string { return fmt.Sprintf("%.1f", s.rate) }, fmt.Sprintf("pods a second, %d at once", callers), "80, 150")
	t.row(func(s *side) string { return fmt.Sprintf("%.2f ms", turns.At(s.stats, .5)) }, fmt.Sprintf("ListContainerStats, %d containers", statsPods), "5 ms, 2 ms")
	t.row(func(s *side) string { return fmt.Sprintf("%.2f MiB", mib(s.loaded.others-s.idle.others)/loadedPods) },
		fmt.Sprintf("memory a pod of the runtime's own processes (PSS), %d pods", loadedPods), "1 MiB, 0.5 MiB")
	t.row(func(s *side) string { return fmt.Sprintf("%.1f MiB", mib(s.idle.daemon)) }, "daemon, idle (PSS)", "35 MiB, 25 MiB")
	t.row(func(s *side) string { return fmt.Sprintf("%.1f MiB", mib(s.loaded.daemon)) }, fmt.Sprintf("daemon, %d pods (PSS)", loadedPods), "")
	var size int64
	for _, s := range bigLayers {
		size += s
	}
	t.row(func(s *side) string { return fmt.Sprintf("%.1f s", turns.At(s.pulls, .5)/1000) },
		fmt.Sprintf("pull + unpack, %d layers, %d MiB unpacked, %d MiB packed; gzip alone takes %.1f s", len(bigLayers), size>>20, b.big.packed>>20, b.big.gunzip.Seconds()), "5 s, 2.5 s")
}

// berthAlone are what only berth is measured for.
func (b *bench) berthAlone(w io.Writer) {
	s := b.sides[0]
	if s.berth == nil {
		return
	}
	fmt.Fprintf(w, "\n| what | must | berth |\n|---|---|---|\n")
	fmt.Fprintf(w, "| median monitor (PSS), %d pods | 1.1 MiB | %d KiB |\n", loadedPods, median(s.newMonitors))
	fmt.Fprintf(w, "| median monitor (PSS), %d pods, after %d MiB of log and %d execs each | 1.5 MiB | %d KiB |\n", agedPods, agedBytes>>20, agedExecs, median(s.oldMonitors))
	fmt.Fprintf(w, "| %d pods: up, listed, gone; the host is as before | | %.2f s, %.2f ms, %.2f s |\n", manyPods, b.many.up.Seconds(),
		float64(b.many.list.Microseconds())/1000, b.many.gone.Seconds())
}

// printCheck prints what a check has measured.
func (b *bench) printCheck(w io.Writer) {
	berth, floor := b.sides[0], b.turns.Floor
	fmt.Fprintf(w, "\n| what | floor p50 | berth p50 | berth p90 | multiple | may be |\n|---|---|---|---|---|---|\n")
	row := func(what string, f, d []time.Duration, budget float64) {
		fmt.Fprintf(w, "| %s | %.2f | %.2f | %.2f | %.2f | %.1f |\n", what, turns.At(f, .5), turns.At(d, .5), turns.At(d, .9), turns.Multiple(d, f), budget)
	}
	row("pod ready", floor.Ready, berth.Ready, readyBudget)
	row("ExecSync", floor.Exec, berth.Exec, execBudget)
	row("pod gone", floor.Gone, berth.Gone, goneBudget)
	fmt.Fprintf(w, "\nMedian monitor: %d KiB when it is new, %d KiB after %d MiB of log and %d execs, may be %d.\n",
		median(berth.newMonitors), median(berth.oldMonitors), agedBytes>>20, agedExecs, monitorBudget)
}
