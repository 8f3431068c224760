package engine

import (
	"testing"

	"golang.org/x/sys/unix"
)

// What the standard streams are may be opened again by name, whoever the process runs as, as images do with their logs.
func TestStreamsBelongToTheUser(t *testing.T) {
	plan := testPlan(t, "sh", "-c", "echo hello > /dev/fd/1")
	plan.Process.UID, plan.Process.GID = 1000, 1000
	if out, ws := output(t, plan); out != "hello\n" {
		t.Errorf("status %v, output %q", ws, out)
	}
}

// The limits are the process's, not those of what makes it.
func TestLowLimitsDoNotFailStarts(t *testing.T) {
	plan := testPlan(t, "sh", "-c", "ulimit -n")
	plan.Process.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 4, 4}}
	if out, ws := output(t, plan); out != "4\n" {
		t.Errorf("status %v, output %q", ws, out)
	}
}

func TestOOMScoreOutOfRangeIsAnError(t *testing.T) {
	plan := testPlan(t, "/bin/true")
	plan.Process.OOMScoreAdj, plan.Process.OOMScoreSet = -1<<63, true
	if c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); err == nil {
		end(c)
		t.Error("Start took it")
	}
}

// end waits for a process and gives its descriptor back.
func end(c Child) {
	unix.Wait4(c.PID, nil, 0, nil)
	unix.Close(c.PIDFD)
}
