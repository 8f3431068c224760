package sandbox

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
)

// classed gives containers a class of service.
type classed string

func (c classed) Adjust(_ context.Context, into *adjust.Container) error {
	into.Spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: string(c)}
	return nil
}

// A container's process is in its class of service before it runs; one that cannot join does not run.
func TestRealClassOfService(t *testing.T) {
	m, _ := realManager(t)
	m.hooks.resctrl = t.TempDir()
	tasks := m.hooks.resctrl + "/gold/tasks"
	if err := errors.Join(os.Mkdir(m.hooks.resctrl+"/gold", 0o755), os.WriteFile(tasks, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	m.cfg.Adjusters = []Adjuster{classed("gold")}
	config := podConfig("classed") // in a shared pid namespace it is the process's parent that joins, before the birth
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}}
	p := run(t, m, config)
	c := start(t, m, createRequest(p, "c", "/bin/sh", "-c", "sleep 1000"))
	if text, err := os.ReadFile(tasks); err != nil || string(text) != strconv.Itoa(m.containers[c].rec.PID) {
		t.Errorf("tasks = %q, %v; the process is %d", text, err, m.containers[c].rec.PID)
	}
	m.cfg.Adjusters = []Adjuster{classed("silver")}
	id, err := m.CreateContainer(t.Context(), createRequest(p, "none", "/bin/sh", "-c", "sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartContainer(t.Context(), id); err == nil || !strings.Contains(err.Error(), "silver") {
		t.Errorf("StartContainer without the class: %v", err)
	}
}
