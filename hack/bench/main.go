package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/berthd/berth/hack/turns"
	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/images"
)

// options are the flags.
type options struct {
	pods, execs, pulls int
	only               string
	peers              []string
	check              bool
}

// bench is one run.
type bench struct {
	options
	dir      string
	registry *registrytest.Registry
	turns    *turns.Turns
	shell    string // image with a shell
	big      bigImage
	sides    []*side // berth first
	many     many
}

func main() {
	b := &bench{}
	count(&b.pods, "pods", 40, "pods of each side, one at a time")
	count(&b.execs, "execs", 5, "execs in each of them")
	count(&b.pulls, "pulls", 3, "pulls of the big image by each side")
	flag.StringVar(&b.only, "only", "", "names of the runtimes to measure, with commas; default: all that are there")
	flag.Func("peer", "measure the runtime that answers at a socket, as NAME=SOCKET; may be repeated", func(v string) error {
		if name, socket, ok := strings.Cut(v, "="); !ok || name == "" || socket == "" {
			return errors.New("want NAME=SOCKET")
		}
		b.peers = append(b.peers, v)
		return nil
	})
	flag.BoolVar(&b.check, "check", false, "measure what has a budget in CI, and fail when one is exceeded twice")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	breaches, err := b.run(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	if len(breaches) > 0 {
		fmt.Fprintln(os.Stderr, "bench: above budget:", strings.Join(breaches, "; "))
		os.Exit(1)
	}
}

// count is a flag of how often something is measured.
func count(n *int, name string, usual int, usage string) {
	*n = usual
	flag.Func(name, fmt.Sprintf("%s (default %d)", usage, usual), func(v string) (err error) {
		if *n, err = strconv.Atoi(v); err == nil && *n < 1 {
			err = errors.New("must be 1 or more")
		}
		return err
	})
}

// run measures and prints, and returns the budgets that were exceeded, of a check.
func (b *bench) run(ctx context.Context) (breaches []string, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root")
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	defer cancel()
	if b.dir, err = os.MkdirTemp("/var/tmp", "bb"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.registry, err = registrytest.Start(registrytest.Options{}); err != nil {
		return nil, err
	}
	defer b.registry.Close()
	defer func() { err = errors.Join(err, b.end()) }()
	if err := b.open(ctx); err != nil {
		return nil, err
	}
	if b.check {
		return b.checkBudgets(ctx)
	}
	return nil, b.measure(ctx)
}

// open makes the images and starts the runtimes.
func (b *bench) open(ctx context.Context) (err error) {
	if b.turns, err = turns.Open(b.dir); err != nil {
		return err
	}
	if err := b.turns.Serve(b.registry); err != nil {
		return err
	}
	if b.shell, err = b.serveShell(); err != nil {
		return err
	}
	if err := b.start(ctx); err != nil {
		return err
	}
	for _, s := range b.sides {
		if err := b.turns.Add(ctx, s.Peer); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// serveShell makes the image that logs.
func (b *bench) serveShell() (string, error) {
	busybox, err := images.Busybox()
	if err != nil {
		return "", err
	}
	layer, err := images.Shell(busybox).Layer()
	if err != nil {
		return "", err
	}
	pushed, err := b.registry.Push("bench/shell", "1", registrytest.Image{Layers: []registrytest.Layer{layer}})
	return pushed.Ref, err
}

// end takes everything away, also after an error or a signal.
func (b *bench) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var errs []error
	for _, s := range b.sides {
		errs = append(errs, s.Client.RemoveLives(ctx))
	}
	if b.turns != nil {
		errs = append(errs, b.turns.Close(ctx))
	}
	for _, s := range b.sides {
		for _, image := range []string{b.shell, b.big.ref} {
			errs = append(errs, s.removeImage(ctx, image))
		}
		errs = append(errs, s.end())
	}
	return errors.Join(errs...)
}

// measure takes one measurement after the other.
func (b *bench) measure(ctx context.Context) error {
	type step struct {
		what string
		do   func(context.Context) error
	}
	steps := []step{
		{"everything once", b.warm},
		{"one at a time", func(ctx context.Context) error { return b.turns.Run(ctx, b.pods, b.execs) }},
		{"many at a time", b.each((*side).crowds)},
		{"a big image", b.pull},
	}
	if berth := b.sides[0]; berth.berth != nil {
		steps = append(steps, step{"monitors that have worked", func(ctx context.Context) error { return berth.age(ctx, b) }}, step{"200 pods", b.twoHundred})
	}
	for _, s := range steps {
		fmt.Fprintf(os.Stderr, "bench: %s\n", s.what)
		if err := s.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	b.print(os.Stdout)
	return nil
}

// each makes a step of one that every side takes for itself.
func (b *bench) each(do func(*side, context.Context, *bench) error) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, s := range b.sides {
			if err := do(s, ctx, b); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		return nil
	}
}

// warm touches everything once, and then weighs the daemons while they are idle.
func (b *bench) warm(ctx context.Context) error {
	if err := b.turns.Run(ctx, 3, 3); err != nil {
		return err
	}
	b.turns.Floor = turns.Side{}
	for _, s := range b.sides {
		s.Side = turns.Side{}
		idle, err := s.weigh()
		if err != nil {
			return err
		}
		s.idle = idle
	}
	return nil
}
