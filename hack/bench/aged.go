package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
)

// What a monitor has done when it is weighed again.
const (
	agedPods  = 20
	agedBytes = 50 << 20
	agedExecs = 100
	agedRest  = 5 * time.Second
)

// agedScript writes lines of a hundred bytes, so many that their text alone is agedBytes, and stays.
const agedScript = `yes "$(printf '%%099d' 7)" | head -c %d; exec sleep 100000`

// age lets monitors log and serve execs, and weighs them.
func (s *side) age(ctx context.Context, b *bench) error {
	if err := pull(ctx, s, b.shell); err != nil {
		return err
	}
	logs := filepath.Join(b.dir, "logs-aged")
	lives, _, err := s.Client.Burst(ctx, agedPods, callers, func(n int) berthd.LifeSpec {
		return berthd.LifeSpec{Name: fmt.Sprintf("aged%d", n), Image: b.shell, LogDir: logs, Command: []string{"sh", "-c", fmt.Sprintf(agedScript, agedBytes)}}
	})
	if err != nil {
		return err
	}
	for n := range agedPods {
		if err := awaitSize(ctx, filepath.Join(logs, fmt.Sprintf("aged%d", n), "c.log"), agedBytes); err != nil {
			return err
		}
	}
	var g errgroup.Group
	g.SetLimit(callers)
	for _, l := range lives {
		g.Go(func() error {
			for range agedExecs {
				if _, err := l.Exec(ctx, "/bin/true"); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := s.rest(ctx); err != nil {
		return err
	}
	if _, err := berthd.Sink(ctx, lives, callers); err != nil {
		return err
	}
	return os.RemoveAll(logs)
}

// rest weighs the monitors that have worked, when they take no less any more: they give memory back a moment after their work, on a busy machine some
// moments.
func (s *side) rest(ctx context.Context) error {
	for last := math.MaxInt; ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(agedRest):
		}
		all, err := s.monitors()
		if err != nil {
			return err
		}
		s.oldMonitors = all
		if now := median(all); now >= last {
			return nil
		} else {
			last = now
		}
	}
}

// awaitSize waits until a log has grown to a size.
func awaitSize(ctx context.Context, path string, size int64) error {
	for {
		if st, err := os.Stat(path); err == nil && st.Size() > size {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to have %d bytes: %w", path, size, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// monitors weighs berth's monitors, one by one.
func (s *side) monitors() (all []int, err error) {
	pids, err := invariants.Monitors(s.berth.Daemon())
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		kib, err := berthd.PSS(pid)
		if err != nil {
			return nil, err
		}
		all = append(all, kib)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no monitor")
	}
	return all, nil
}

func median(v []int) int {
	if len(v) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(v))[len(v)/2]
}
