package wait_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/test/wait"
)

const limit = 20 * time.Second

// Fails when time in which nobody could look, or come to be ok, is counted.
func TestUntilOutlivesStalls(t *testing.T) {
	for name, after := range map[string]time.Duration{"while it stands still": 0, "a moment later": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var at time.Time // when it will be ok
				if !wait.Until(limit, time.Second, func() bool {
					if !at.IsZero() {
						return time.Now().After(at)
					}
					time.Sleep(3 * limit)
					at = time.Now().Add(after)
					return false
				}) {
					t.Error("it was not seen")
				}
			})
		})
	}
}

func TestUntilEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin, looks := time.Now(), 0
		if wait.Until(limit, time.Second, func() bool { looks++; return false }) {
			t.Error("it is ok")
		}
		if took := time.Since(begin); took != limit || looks != 21 {
			t.Errorf("%d looks in %s", looks, took)
		}
		if looks = 0; !wait.Until(0, time.Second, func() bool { looks++; return true }) || looks != 1 {
			t.Errorf("%d looks at what is so", looks)
		}
	})
}
