package sandbox

import (
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/test/wait"
)

// What a plugin evicts is killed, behind its call; what is gone needs nothing more.
func TestEvictionEndsAContainer(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c, other := start(t, m, createRequest(p, "c", "exec sleep 1000")), start(t, m, createRequest(p, "other", "exec sleep 1000"))
	for _, id := range []string{c, "0123"} {
		if err := m.Change(t.Context(), adjust.Update{ContainerID: id, Evict: true, Reason: "why"}); err != nil {
			t.Errorf("Change: %v", err)
		}
	}
	if got := exited(t, m, c); got.ExitCode != exitKilled {
		t.Errorf("exit code %d", got.ExitCode)
	}
	if got, err := m.Container(other); err != nil || got.State != ContainerRunning {
		t.Errorf("another container is %s, %v", got.State, err)
	}
}

// A plugin that has seen a container may ask for another limit of it before the container is created: it has it then.
func TestChangeOfAContainerThatIsBeingCreated(t *testing.T) {
	w := newWorld(t)
	reached, let := make(chan struct{}), make(chan struct{})
	m := w.open(func(step string) error {
		if step == "prepare writable layer" {
			close(reached)
			<-let
		}
		return nil
	})
	p := run(t, m, podConfig("a"))
	created := make(chan error, 1)
	go func() {
		_, err := m.CreateContainer(t.Context(), createRequest(p, "c", "sleep"))
		created <- err
	}()
	<-reached
	c := m.containersOf(m.pods[p])[0]
	if err := m.Change(t.Context(), adjust.Update{ContainerID: c.id, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 300}}); err != nil {
		t.Errorf("Change: %v", err)
	}
	close(let)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	if !wait.Until(20*time.Second, time.Millisecond, func() bool { return c.asked().GetCpuShares() == 300 }) {
		t.Fatalf("it has %v", c.asked())
	}
}
