// Package wait polls for what comes about by itself.
package wait

import "time"

// Until looks again and again, with pauses between, and reports whether it was ok within the limit. The clock is read before each look, so one
// look begins when the limit is over. A machine may stand still for longer than the limit, and the program that is waited for with it: what lies
// between two looks counts as a quarter of the limit at most.
func Until(limit, pause time.Duration, ok func() bool) bool {
	for left, last := limit, time.Now(); ; time.Sleep(pause) {
		now := time.Now()
		left, last = left-min(now.Sub(last), limit/4+1), now
		if ok() {
			return true
		}
		if left <= 0 {
			return false
		}
	}
}
