package invariants

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/wait"
)

// Grace is how long things may take to settle.
const Grace = 20 * time.Second

// Check fails the test if I1 does not hold within Grace.
func Check(t testing.TB, d Daemon, rt runtimeapi.RuntimeServiceClient) {
	t.Helper()
	lines, err := Settle(context.Background(), func(ctx context.Context) ([]string, error) { return Hold(ctx, d, rt) })
	if err != nil {
		t.Errorf("check invariants: %v", err)
	}
	if len(lines) > 0 {
		t.Errorf("CRI lists, records and host differ:\n  %s", strings.Join(lines, "\n  "))
	}
}

// AsBefore fails the test if things are left behind, or gone, after Grace.
func AsBefore(t testing.TB, d Daemon, before Items) {
	t.Helper()
	lines, err := Settle(context.Background(), func(context.Context) ([]string, error) {
		after, err := Take(d)
		return Diff(d, before, after), err
	})
	if err != nil {
		t.Errorf("check that all is as before: %v", err)
	}
	if len(lines) > 0 {
		t.Errorf("not as before:\n  %s", strings.Join(lines, "\n  "))
	}
}

// Settle asks until nothing is found, and once more after Grace is over; it returns what is found then.
func Settle(ctx context.Context, look func(context.Context) ([]string, error)) (lines []string, err error) {
	wait.Until(Grace, 20*time.Millisecond, func() bool {
		one, cancel := context.WithTimeout(ctx, Grace)
		defer cancel()
		lines, err = look(one)
		return err == nil && len(lines) == 0 || ctx.Err() != nil
	})
	return lines, err
}

// Steady collects things once they are the same twice in a row: what is just about to go is nothing that was there before.
func Steady(ctx context.Context, d Daemon, take func(Daemon) (Items, error)) (items Items, err error) {
	lines, err := Settle(ctx, func(context.Context) ([]string, error) {
		last := items
		if items, err = take(d); err != nil {
			return nil, err
		}
		return append(Diff(d, last, items), Diff(d, items, last)...), nil
	})
	if err == nil && len(lines) > 0 {
		err = fmt.Errorf("the host does not come to rest: %q", lines)
	}
	return items, err
}

// stat tells a file's identity.
func stat(path string) (st unix.Stat_t, ok bool) {
	return st, unix.Stat(path, &st) == nil
}
