package engine

import (
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A label that the kernel does not take is an error that names it: no program runs without its label.
func TestLabelOnKernelWithoutSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("this kernel has SELinux")
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
