package host

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/seccomp"
	"github.com/berthd/berth/oci/spec"
)

// rlimits are the resource limits by their names in the runtime specification.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// Read gathers all of spec.Host that the host and the calling process tell. The cgroup facts (CgroupV2, Controllers,
// SwapLimit) and the operator's defaults (Rlimits, PidsLimit) are for the caller to fill in, and so is SELinux: the
// operator decides whether it is used.
func Read() (spec.Host, error) {
	var h spec.Host
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return h, fmt.Errorf("read kernel version: %w", err)
	}
	var err error
	if h.Kernel, err = seccomp.ParseKernel(unix.ByteSliceToString(uts.Release[:])); err != nil {
		return h, err
	}
	h.Arch = runtime.GOARCH
	h.Hostname = unix.ByteSliceToString(uts.Nodename[:])
	if h.Capabilities, err = capabilities(); err != nil {
		return h, err
	}
	if h.OOMScoreAdj, err = oomScoreAdj(); err != nil {
		return h, err
	}
	h.RlimitHard = map[string]uint64{}
	for name, n := range rlimits {
		var l unix.Rlimit
		if err := unix.Getrlimit(n, &l); err != nil {
			return h, fmt.Errorf("read limit %s: %w", name, err)
		}
		h.RlimitHard[name] = l.Max
	}
	if h.Devices, err = Devices("/dev"); err != nil {
		return h, err
	}
	h.Seccomp = hasSeccomp()
	if h.AppArmor, err = ReadAppArmor(); err != nil {
		return h, err
	}
	return h, nil
}

// capabilities returns what the process can hand on: held now, and in its bounding set.
func capabilities() ([]string, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	mask := ^uint64(0)
	found := 0
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(line, ":")
		if name != "CapPrm" && name != "CapBnd" {
			continue
		}
		m, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err != nil {
			return nil, fmt.Errorf("read capabilities: %w", err)
		}
		mask &= m
		found++
	}
	if found != 2 {
		return nil, errors.New("read capabilities: /proc/self/status has none")
	}
	return spec.CapabilityNames(mask), nil
}

func oomScoreAdj() (int, error) {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, fmt.Errorf("read own out-of-memory score: %w", err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("read own out-of-memory score: %w", err)
	}
	return n, nil
}

// hasSeccomp asks the kernel for the action that filters need most.
func hasSeccomp() bool {
	// prctl(2): EINVAL without CONFIG_SECCOMP_FILTER, EFAULT for the null pointer with it.
	_, _, e := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, 0, 0, 0, 0)
	return e == unix.EFAULT
}

// ReadAppArmor returns the state of AppArmor. Default is left empty: berth's own profile is named by whoever loads it.
func ReadAppArmor() (spec.AppArmor, error) {
	var a spec.AppArmor
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.HasPrefix(b, []byte("Y")) {
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("read AppArmor state: %w", err)
	}
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if errors.Is(err, fs.ErrNotExist) { // securityfs is not mounted: profiles cannot be judged
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	defer func() { _ = f.Close() }()
	a.Enabled = true
	for s := bufio.NewScanner(f); ; {
		if !s.Scan() {
			if err := s.Err(); err != nil {
				return a, fmt.Errorf("list AppArmor profiles: %w", err)
			}
			return a, nil
		}
		if i := strings.LastIndex(s.Text(), " ("); i > 0 {
			a.Loaded = append(a.Loaded, s.Text()[:i])
		}
	}
}
