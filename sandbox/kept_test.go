package sandbox

import (
	"context"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/berthd/berth/test/wait"
)

// TestWhatDeadContainersKeep: there may be ten thousand of them. They keep neither their specification, also when it is looked at once more
// after the end, as at the end of a start that took longer than the process did, nor the calls that made them.
func TestWhatDeadContainersKeep(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	type call struct{ big [1 << 10]byte }
	type key struct{}
	made := func() (p, c string, calls []weak.Pointer[call]) {
		values := []*call{{}, {}, {}}
		ctx := func(i int) context.Context {
			calls = append(calls, weak.Make(values[i]))
			return context.WithValue(t.Context(), key{}, values[i])
		}
		p, err := m.RunPod(ctx(0), podConfig("a"), "")
		if err == nil {
			c, err = m.CreateContainer(ctx(1), createRequest(p, "c", "true"))
		}
		if err == nil {
			err = m.StartContainer(ctx(2), c)
		}
		if err != nil {
			t.Fatal(err)
		}
		return p, c, calls
	}
	p, id, calls := made()
	exited(t, m, id)
	c := m.containers[id]
	kept := func() bool {
		c.exec.Lock()
		defer c.exec.Unlock()
		return c.exec.spec != nil
	}
	wait.Until(time.Minute, time.Millisecond, func() bool { return !kept() })
	if s, err := m.specOf(c); err != nil || s.Process == nil || kept() {
		t.Errorf("specOf = %v, %v, kept: %v", s, err, kept())
	}
	for i, what := range []string{"RunPod", "CreateContainer", "StartContainer"} {
		gone := func() bool { runtime.GC(); return calls[i].Value() == nil }
		if !wait.Until(20*time.Second, time.Millisecond, gone) {
			t.Errorf("the call of %s is kept", what)
		}
	}
	remove(t, m, p)
}
