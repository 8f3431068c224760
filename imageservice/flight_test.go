package imageservice

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// TestCallThatIsGivenUpIsNotJoined: who comes while a call ends that nobody waits for any more gets none of its error, and a call of its own, which does
// not begin before the other has ended.
func TestCallThatIsGivenUpIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var g group[string, int]
		var ended atomic.Bool
		release, first := make(chan struct{}), make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _, err := g.do(ctx, "key", func(ctx context.Context) (int, error) {
				<-ctx.Done()
				<-release
				ended.Store(true)
				return 0, context.Cause(ctx)
			})
			first <- err
		}()
		synctest.Wait()
		cancel()
		synctest.Wait()
		type result struct {
			value int
			err   error
		}
		second := make(chan result, 1)
		go func() {
			value, _, err := g.do(t.Context(), "key", func(context.Context) (int, error) {
				if !ended.Load() {
					t.Error("it begins while the other is under way")
				}
				return 2, nil
			})
			second <- result{value, err}
		}()
		synctest.Wait()
		close(release)
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("the first = %v, want context.Canceled", err)
		}
		if r := <-second; r != (result{2, nil}) {
			t.Errorf("the second = %+v, want 2", r)
		}
	})
}
