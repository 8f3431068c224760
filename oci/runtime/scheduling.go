package runtime

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/runtime/engine"
)

// Classes of I/O (linux/ioprio.h): the class stands above thirteen bits for the priority, 0 to 7.
var ioClasses = map[specs.IOPriorityClass]uint32{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

const ioClassShift, maxIOPriority = 13, 7

// Policies and flags of the scheduler (linux/sched.h).
var (
	policies = map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedIdle: 5,
		specs.SchedDeadline: 6}
	schedulerFlags = map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4,
		specs.SchedFlagKeepPolicy: 8, specs.SchedFlagKeepParams: 16}
)

// schedAttrSize is that of struct sched_attr's first version (sched_setattr(2)).
const schedAttrSize = 48

// compileScheduling translates what a process has of the schedulers of processors and of block devices.
func compileScheduling(sp *specs.Process) (engine.Scheduling, error) {
	var out engine.Scheduling
	if p := sp.IOPriority; p != nil && p.Class != "" {
		class, ok := ioClasses[p.Class]
		if !ok || p.Priority < 0 || p.Priority > maxIOPriority {
			return out, &UnsupportedError{"process.ioPriority", fmt.Sprintf("%s %d", p.Class, p.Priority)}
		}
		out.IOPriority = class<<ioClassShift | uint32(p.Priority)
	}
	s := sp.Scheduler
	if s == nil || s.Policy == "" {
		return out, nil
	}
	policy, ok := policies[s.Policy]
	if !ok || s.Nice < -20 || s.Nice > 19 || s.Priority < 0 || s.Priority > 99 {
		return out, &UnsupportedError{"process.scheduler", strings.TrimSpace(fmt.Sprintf("%s, nice %d, priority %d", s.Policy, s.Nice, s.Priority))}
	}
	var flags uint64
	for _, f := range s.Flags {
		flag, ok := schedulerFlags[f]
		if !ok {
			return out, &UnsupportedError{"process.scheduler.flags", string(f)}
		}
		flags |= flag
	}
	b := binary.NativeEndian
	a := b.AppendUint32(nil, schedAttrSize)
	a = b.AppendUint32(a, policy)
	a = b.AppendUint64(a, flags)
	a = b.AppendUint32(a, uint32(s.Nice))
	a = b.AppendUint32(a, uint32(s.Priority))
	for _, n := range []uint64{s.Runtime, s.Deadline, s.Period} {
		a = b.AppendUint64(a, n)
	}
	out.Scheduler = a
	return out, nil
}
