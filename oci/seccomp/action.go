package seccomp

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxErrno is the kernel's MAX_ERRNO: seccomp(2) cuts larger values to it.
const maxErrno = 4095

// verdict is what a program returns: SECCOMP_RET_* with its data.
type verdict uint32

const (
	killProcess verdict = unix.SECCOMP_RET_KILL_PROCESS
	noSys       verdict = unix.SECCOMP_RET_ERRNO | verdict(unix.ENOSYS)
)

// severity orders verdicts as the kernel does between filters: the larger, the more restrictive.
func (v verdict) severity() int {
	switch v & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_KILL_PROCESS:
		return 6
	case unix.SECCOMP_RET_KILL_THREAD:
		return 5
	case unix.SECCOMP_RET_TRAP:
		return 4
	case unix.SECCOMP_RET_ERRNO:
		return 3
	case unix.SECCOMP_RET_TRACE:
		return 2
	case unix.SECCOMP_RET_LOG:
		return 1
	}
	return 0
}

// denies tells whether v keeps the call from being made. TRACE counts as permissive: a tracer answers for itself.
func (v verdict) denies() bool { return v.severity() >= 3 }

// parseAction turns an action and its errno into a verdict. The rules are those of
// runtime-spec config-linux.md#seccomp; SCMP_ACT_NOTIFY needs an agent, which no handler has.
func parseAction(action specs.LinuxSeccompAction, errno *uint) (verdict, error) {
	data := verdict(unix.EPERM)
	if errno != nil {
		if action != specs.ActErrno && action != specs.ActTrace {
			return 0, fmt.Errorf("takes no errno")
		}
		if *errno > maxErrno {
			return 0, fmt.Errorf("has errno %d; the largest is %d", *errno, maxErrno)
		}
		data = verdict(*errno)
	}
	switch action {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return killProcess, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("needs a notification agent, which is not supported")
	case "":
		return 0, fmt.Errorf("is missing")
	}
	return 0, fmt.Errorf("is not an action of the runtime specification")
}

// Flags returns the flags that the profile asks seccomp(2) to set, SECCOMP_FILTER_FLAG_*. A profile without flags gets
// SPEC_ALLOW, as runc gives it: the filter itself is no reason to slow down speculation. An empty list, not nil, sets none.
func Flags(p *specs.LinuxSeccomp) (uint64, error) {
	if p.Flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint64
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // the filter is installed by a process of one thread
		default:
			return 0, &ProfileError{Field: "flags", Value: string(f), Rule: "must be LOG, SPEC_ALLOW or TSYNC"}
		}
	}
	return flags, nil
}
