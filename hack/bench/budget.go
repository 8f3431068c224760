package main

import (
	"context"
	"fmt"
	"os"

	"github.com/berthd/berth/hack/turns"
)

// The budgets of a check: multiples of the floor's median, and KiB.
const (
	readyBudget   = 4.0
	execBudget    = 4.0
	goneBudget    = 2.0
	monitorBudget = 1536
)

// checkBudgets measures what has a budget, and once more if one is exceeded: another process's minute of work is no reason to fail.
func (b *bench) checkBudgets(ctx context.Context) (breaches []string, err error) {
	for try := range 2 {
		if err := b.warm(ctx); err != nil {
			return nil, err
		}
		if err := b.turns.Run(ctx, b.pods, b.execs); err != nil {
			return nil, err
		}
		if err := b.sides[0].weighNew(ctx, b); err != nil {
			return nil, err
		}
		if err := b.sides[0].age(ctx, b); err != nil {
			return nil, err
		}
		b.printCheck(os.Stdout)
		if breaches = b.breaches(); len(breaches) == 0 {
			return nil, nil
		}
		if try == 0 {
			fmt.Println("\nAbove a budget; once more.")
		}
	}
	return breaches, nil
}

func (b *bench) breaches() (all []string) {
	berth, floor := b.sides[0], b.turns.Floor
	for _, m := range []struct {
		what        string
		got, budget float64
	}{
		{"pod ready, multiple of the floor", turns.Multiple(berth.Ready, floor.Ready), readyBudget},
		{"ExecSync, multiple of the floor", turns.Multiple(berth.Exec, floor.Exec), execBudget},
		{"pod gone, multiple of the floor", turns.Multiple(berth.Gone, floor.Gone), goneBudget},
		{"a monitor that has worked, KiB", float64(median(berth.oldMonitors)), monitorBudget},
	} {
		if m.got > m.budget {
			all = append(all, fmt.Sprintf("%s: %.2f, may be %.2f", m.what, m.got, m.budget))
		}
	}
	return all
}
