package runtime

import (
	"errors"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestCompileScheduling(t *testing.T) {
	got, err := compileScheduling(&specs.Process{IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 5},
		Scheduler: &specs.Scheduler{Policy: specs.SchedDeadline, Nice: -3, Priority: 4, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork, specs.SchedFlagReclaim},
			Runtime: 5, Deadline: 6, Period: 7}})
	if err != nil || got.IOPriority != 2<<13|5 || len(got.Scheduler) != schedAttrSize {
		t.Fatalf("%+v, %v", got, err)
	}
	attr := *(*unix.SchedAttr)(unsafe.Pointer(&append(got.Scheduler, make([]byte, 64)...)[0]))
	if want := (unix.SchedAttr{Size: schedAttrSize, Policy: 6, Flags: 3, Nice: -3, Priority: 4, Runtime: 5, Deadline: 6, Period: 7}); attr != want {
		t.Errorf("%+v, want %+v", attr, want)
	}
	if got, err := compileScheduling(&specs.Process{Scheduler: &specs.Scheduler{}, IOPriority: &specs.LinuxIOPriority{}}); err != nil || got.IOPriority != 0 || got.Scheduler != nil {
		t.Errorf("nothing asked for: %+v, %v", got, err)
	}
	for name, p := range map[string]*specs.Process{
		"class":    {IOPriority: &specs.LinuxIOPriority{Class: "best"}},
		"priority": {IOPriority: &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 8}},
		"policy":   {Scheduler: &specs.Scheduler{Policy: specs.SchedISO}},
		"nice":     {Scheduler: &specs.Scheduler{Policy: specs.SchedOther, Nice: 20}},
		"flag":     {Scheduler: &specs.Scheduler{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagUtilClampMin}}},
	} {
		var unsupported *UnsupportedError
		if _, err := compileScheduling(p); !errors.As(err, &unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
