package engine

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A label that the kernel does not take is an error that names it: no program runs without its label.
func TestLabelOnKernelWithoutSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this kernel has SELinux") // without a policy it takes any label
	}
	plan := testPlan(t, "true")
	plan.Process.SELinux = "system_u:system_r:container_t:s0:c1,c2"
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	var e *Error
	if !errors.As(err, &e) || e.Step != StepLabel || e.Path != `"system_u:system_r:container_t:s0:c1,c2"` {
		t.Errorf("Start = %v", err)
	}
	if err == nil {
		c.discard()
	}
	plan = testPlan(t, "true")
	plan.Rootfs.Options = append(plan.Rootfs.Options, "context=system_u:object_r:container_file_t:s0:c1,c2")
	if _, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Start with a label for files = %v, want EINVAL", err)
	}
}

// The label's commas do not end the option in mount(2)'s string.
func TestLabelAmongMountOptions(t *testing.T) {
	_, joined := nameLayers([]string{"lowerdir+=/a", "context=u:r:t:s0:c1,c2", "volatile"})
	if want := `lowerdir=0,context="u:r:t:s0:c1,c2",volatile`; joined != want {
		t.Errorf("options %s, want %s", joined, want)
	}
	options := otherOptions([]string{"lowerdir+=/a", "context=u:r:t:s0:c1,c2"})
	if !slices.Equal(options, []string{"context=u:r:t:s0:c1,c2"}) {
		t.Errorf("options %q", options)
	}
}

// A kernel with SELinux and without a policy takes any label of a process where labels are written.
func TestLabelOnKernelWithoutPolicy(t *testing.T) {
	current, err := os.ReadFile("/proc/self/attr/current")
	if _, there := os.Stat("/sys/fs/selinux/enforce"); there != nil || err != nil || strings.TrimRight(string(current), "\x00\n") != "kernel" {
		t.Skip("this is no kernel with SELinux and without a policy")
	}
	plan := testPlan(t, "sh", "-c", "echo ran")
	plan.Process.SELinux = "system_u:system_r:container_t:s0:c1,c2"
	if out, ws := output(t, plan); out != "ran\n" || ws.ExitStatus() != 0 {
		t.Errorf("printed %q, status %d", out, ws.ExitStatus())
	}
}
