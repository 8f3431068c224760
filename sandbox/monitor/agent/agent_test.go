package agent

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

func kind(err error) int {
	var f *wire.Failure
	if errors.As(err, &f) {
		return f.Kind
	}
	return -1
}

// A container that is being made has no log and no process yet.
func TestCallsBeforeTheBirthAreRefused(t *testing.T) {
	a := newAgent()
	a.containers["c1"] = newContainer("c1")
	id := wire.Message{Body: wire.Encode(&wire.ID{ContainerID: "c1"})}
	if _, err := a.reopenLog(id); kind(err) != wire.FailedNotFound {
		t.Errorf("reopenLog = %v, want not found", err)
	}
	signal := wire.Message{Body: wire.Encode(&wire.Signal{ContainerID: "c1", Signal: int(unix.SIGTERM)})}
	if _, err := a.signal(signal); kind(err) != wire.FailedNotFound {
		t.Errorf("signal = %v, want not found", err)
	}
	if _, err := a.forget(id); err == nil {
		t.Error("forget took it")
	}
	a.shutdown()
}

// An exec must not fall back to the monitor's own pid namespace.
func TestExecNeedsThePIDNamespace(t *testing.T) {
	a := newAgent()
	c := newContainer("c1")
	c.pid, c.pidns = os.Getpid(), unknownNamespace
	var err error
	if c.pidfd, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		t.Fatal(err)
	}
	defer c.close()
	r := &wire.Exec{Process: engine.Process{Args: []string{"/no/such"}, Cwd: "/"}}
	files, err := execDescriptors(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.execBirth(c, r, files, nil); kind(err) != wire.FailedOther {
		t.Errorf("execBirth = %v, want a refusal", err)
	}
}
