// Command bench measures berthd beside the kernel's own floor, in one run, and prints a Markdown table:
//
//	go run ./hack/bench [-pods N] [-execs N] [-parallel N] [-burst N] [-check]
//
// Floor and berth take turns, pod by pod and exec by exec, so that both see the same machine. Pods run one at a time but for the last
// row. With -check the exit status is 1 when a latency is above its budget.
//
// Needs root and gcc. The daemon that is measured has folders, a socket and a bridge of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/hack/turns"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
)

// The budgets of this stage, as multiples of the floor.
const (
	readyBudget = 5.0
	execBudget  = 5.0
)

type bench struct {
	pods, execs, parallel, burst int

	dir    string
	berthd *berthd.Process
	turns  *turns.Turns

	idle, loaded int // daemon, KiB
	monitor      int // each, KiB
	rate         float64
}

func main() {
	b := &bench{}
	flag.IntVar(&b.pods, "pods", 50, "pods of each side")
	flag.IntVar(&b.execs, "execs", 5, "execs in each pod")
	flag.IntVar(&b.parallel, "parallel", 10, "pods at once in the last row")
	flag.IntVar(&b.burst, "burst", 100, "pods of the last row")
	check := flag.Bool("check", false, "fail when a latency is above its budget")
	flag.Parse()
	err := b.run(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	b.print()
	if *check && (turns.Multiple(b.turns.Berth.Ready, b.turns.Floor.Ready) > readyBudget || turns.Multiple(b.turns.Berth.Exec, b.turns.Floor.Exec) > execBudget) {
		fmt.Fprintf(os.Stderr, "bench: pod ready may take %.0f and exec %.0f times the floor\n", readyBudget, execBudget)
		os.Exit(1)
	}
}

func (b *bench) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	if b.dir, err = os.MkdirTemp("/var/tmp", "bb"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	end, err := b.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if b.turns, err = turns.Open(ctx, b.dir, b.berthd); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.berthd.RemovePods(ctx), b.turns.Close(ctx)) }()
	if err := b.measure(ctx); err != nil {
		return err
	}
	return b.together(ctx)
}

// start starts the daemon that is measured.
func (b *bench) start(ctx context.Context) (end func() error, err error) {
	bin, err := berthd.Build(filepath.Join(b.dir, "bin"))
	if err != nil {
		return nil, err
	}
	opts := berthd.Options{Bin: bin, Root: filepath.Join(b.dir, "r"), State: filepath.Join(b.dir, "s"), Config: filepath.Join(b.dir, "config.toml"),
		Bridge: fmt.Sprintf("bench%d", os.Getpid()%100000), Log: filepath.Join(b.dir, "berthd.log")}
	config := fmt.Sprintf("[network]\nconf_dir = %q\nbridge = %q\nsubnets = [\"10.248.0.0/16\", \"fd00:be28::/64\"]\n", filepath.Join(b.dir, "net.d"), opts.Bridge)
	if err := os.WriteFile(opts.Config, []byte(config), 0o600); err != nil {
		return nil, err
	}
	if b.berthd, err = berthd.New(opts); err != nil {
		return nil, err
	}
	end = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs := []error{b.berthd.RemovePods(ctx)}
		d := b.berthd.Daemon()
		d.PID = 0
		return errors.Join(append(errs, b.berthd.Stop(), b.berthd.Close(), berthd.Sweep(d))...)
	}
	return end, b.berthd.Start(ctx)
}

// measure takes turns, and weighs daemon and monitors while all pods run.
func (b *bench) measure(ctx context.Context) error {
	warm, _, err := b.turns.Up(ctx, "warm")
	if err != nil {
		return err
	}
	if _, err := warm.Down(ctx); err != nil {
		return err
	}
	if b.idle, err = berthd.PSS(b.berthd.PID()); err != nil {
		return err
	}
	return b.turns.Run(ctx, b.pods, b.execs, b.weigh)
}

// weigh measures memory while all pods run.
func (b *bench) weigh() (err error) {
	if b.loaded, err = berthd.PSS(b.berthd.PID()); err != nil {
		return err
	}
	pids, err := invariants.Monitors(b.berthd.Daemon())
	if err != nil || len(pids) == 0 {
		return fmt.Errorf("find monitors: %d found: %w", len(pids), err)
	}
	for _, pid := range pids {
		kib, err := berthd.PSS(pid)
		if err != nil {
			return err
		}
		b.monitor += kib
	}
	b.monitor /= len(pids)
	return nil
}

// together brings pods up with several callers at once.
func (b *bench) together(ctx context.Context) error {
	work, failed := make(chan int), make(chan error, b.parallel)
	go func() {
		defer close(work)
		for i := range b.burst {
			work <- i
		}
	}()
	start := time.Now()
	for range b.parallel {
		go func() {
			var err error
			for i := range work {
				if err == nil {
					_, _, err = b.turns.Up(ctx, fmt.Sprintf("burst%d", i))
				}
			}
			failed <- err
		}()
	}
	var errs []error
	for range b.parallel {
		errs = append(errs, <-failed)
	}
	b.rate = float64(b.burst) / time.Since(start).Seconds()
	return errors.Join(errs...)
}

func (b *bench) print() {
	fmt.Printf("%d pods and %d execs of each side, taking turns; milliseconds\n\n", b.pods, b.pods*b.execs)
	fmt.Println("| what | floor p50 | berth p50 | berth p90 | multiple of the floor | budget |")
	fmt.Println("|---|---|---|---|---|---|")
	row := func(what string, f, l []time.Duration, budget string) {
		fmt.Printf("| %s | %.2f | %.2f | %.2f | %.2f | %s |\n", what, turns.At(f, .5), turns.At(l, .5), turns.At(l, .9), turns.Multiple(l, f), budget)
	}
	floor, berth := b.turns.Floor, b.turns.Berth
	row("pod ready: RunPodSandbox + CreateContainer + StartContainer", floor.Ready, berth.Ready, fmt.Sprintf("%.0f", readyBudget))
	row("ExecSync /bin/true", floor.Exec, berth.Exec, fmt.Sprintf("%.0f", execBudget))
	row("pod gone: stop + remove of container and pod", floor.Gone, berth.Gone, "")
	fmt.Printf("\n| what | berth |\n|---|---|\n")
	fmt.Printf("| pods a second, %d at once | %.1f |\n", b.parallel, b.rate)
	fmt.Printf("| a monitor's memory (PSS), %d running | %d KiB |\n", b.pods, b.monitor)
	fmt.Printf("| the daemon's memory (PSS), no pod | %.1f MiB |\n", float64(b.idle)/1024)
	fmt.Printf("| the daemon's memory (PSS), %d pods | %.1f MiB |\n", b.pods, float64(b.loaded)/1024)
}
