package sandbox

import (
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/runtime/external"
)

// What follows a container's end has the time that its hooks name, and a time of its own for those that name none.
func TestTimeOfHooksThatFollowAnEnd(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	id, err := m.CreateContainer(t.Context(), createRequest(run(t, m, podConfig("a")), "c", "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	c := m.containers[id]
	if got := m.stoppedHooksTime(c); got != 0 {
		t.Errorf("without a bundle: %v", got)
	}
	minute, hour := 60, 3600
	bundle := external.Bundle{Folder: m.bundle(c), Config: &specs.Spec{Hooks: &specs.Hooks{
		Poststart: []specs.Hook{{Path: "/a", Timeout: &hour}}, Poststop: []specs.Hook{{Path: "/b", Timeout: &minute}, {Path: "/c"}}}}}
	if err := bundle.WriteUnmounted(); err != nil {
		t.Fatal(err)
	}
	if got := m.stoppedHooksTime(c); got != time.Minute+hookTimeout {
		t.Errorf("with hooks: %v, want %v", got, time.Minute+hookTimeout)
	}
}
