package engine

import (
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Stdio are the three descriptors of a process; -1 is the null device. With a terminal they are not used.
type Stdio struct{ In, Out, Err int }

const lastCapability = 63

// keyctl(2) operations.
const keyctlJoinSessionKeyring = 1

type capHeader struct {
	version uint32
	pid     int32
}

type capData struct{ effective, permitted, inheritable uint32 }

type sockFprog struct {
	length uint16
	_      [6]byte
	filter uintptr
}

// early does what needs the host's view and the host's root: files of the host's /proc.
func (p *program) early(pr *Process) {
	// It is a copy of the monitor, which is not dumpable either: no process of a container sees into it (CVE-2016-9962).
	p.sys(unix.SYS_PRCTL, num(unix.PR_SET_DUMPABLE), num(0))
	p.sys(unix.SYS_UMASK, num(0))
	p.signals()
	p.oomScore(pr)
}

// ioprioWhoProcess says that ioprio_set(2) is about a process (linux/ioprio.h).
const ioprioWhoProcess = 1

// settle joins the cgroups, whose files the monitor has opened, and starts a session.
func (p *program) settle(cgroups []int) {
	zero := p.text("0")
	for _, fd := range cgroups {
		p.at("join", "the container's cgroup")
		p.sys(unix.SYS_WRITE, num(fd), zero, num(1))
	}
	p.at("start", "a session")
	p.sys(unix.SYS_SETSID).any()
}

// keyring gives the process a keyring of its own, as runc does: a quota that is used up must not keep the container from starting.
func (p *program) keyring() {
	p.sys(unix.SYS_KEYCTL, num(keyctlJoinSessionKeyring), num(0)).any()
}

// signals gives every signal its default action and blocks none: execve keeps what is ignored and what is blocked.
func (p *program) signals() {
	const last = 64
	action := memory(p, &[4]uintptr{})                                               // SIG_DFL
	p.sys(unix.SYS_RT_SIGACTION, num(1), action, num(0), num(8)).upTo(0, last).any() // SIGKILL and SIGSTOP have no other
	p.sys(unix.SYS_RT_SIGPROCMASK, num(unix.SIG_SETMASK), action, num(0), num(8))
}

// DefaultSignals gives the caller's ignored signals their default action again, for the programs that it executes: make, for one, leaves two of the
// C library's ignored. Go's own handlers stay.
func DefaultSignals() {
	for sig := uintptr(1); sig <= 64; sig++ {
		var old, action [4]uintptr // struct sigaction as the kernel has it: the handler first, 0 is SIG_DFL, 1 is SIG_IGN
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
		if old[0] == 1 {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&action)), 0, 8, 0, 0)
		}
	}
}

// oomScore sets the process's score. Without one in the request it is 0, and not the monitor's own, which is low.
func (p *program) oomScore(pr *Process) {
	const path = "/proc/self/oom_score_adj"
	p.at("write", path)
	score := strconv.Itoa(pr.OOMScoreAdj)
	p.scope(func() {
		fd := p.register()
		p.sys(unix.SYS_OPENAT, atFDCWD, p.text(path), num(unix.O_WRONLY|unix.O_CLOEXEC)).to(fd)
		o := p.sys(unix.SYS_WRITE, fd.arg(), p.text(score), num(len(score)))
		o.ignore = !pr.OOMScoreSet
		p.close(fd)
	})
}

// stdio puts the standard descriptors in place. Pipes become the user's: /dev/stdout opens the pipe again, and that
// asks for its mode (runc's fixStdioPermissions).
func (p *program) stdio(pr *Process, io Stdio, null int) {
	for i, fd := range []int{io.In, io.Out, io.Err} {
		var st unix.Stat_t
		if fd < 0 {
			fd = null
		} else if unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO {
			if uid, _, ok := p.users.owner(pr.UID, pr.GID); ok {
				unix.Fchown(fd, uid, -1) // where this is not allowed the descriptor itself works all the same
			}
		}
		p.at("set up", "standard streams")
		p.sys(unix.SYS_DUP3, num(fd), num(i), num(0))
	}
}

// become turns the child into the process: directory, limits, user, capabilities, filters, execve. The order follows
// runtime-spec config.md#process and runc: a filter that the process may not add by itself (no_new_privs unset) goes in
// while the child still has its capabilities, and everything after it is what any filter must allow to let a program start.
func (p *program) become(pr *Process, root arg) {
	if pr.Terminal {
		p.at("set", "the controlling terminal")
		p.sys(unix.SYS_IOCTL, num(0), num(unix.TIOCSCTTY), num(0))
	}
	p.at(StepCwd, pr.Cwd)
	p.scope(func() {
		cwd := p.register()
		p.open(root, pr.Cwd, unix.O_PATH|unix.O_DIRECTORY).to(cwd)
		p.sys(unix.SYS_FCHDIR, cwd.arg())
		p.close(cwd)
	})
	waits := p.gate.points&Starting != 0
	if waits { // a hook in the container may be allowed to look into this process
		p.closeAllBut([]int{p.pipe[1], p.gate.pipe[0]})
	} else {
		p.at("close", "inherited descriptors")
		p.sys(unix.SYS_CLOSE_RANGE, num(3), arg{value: 1<<32 - 1}, num(unix.CLOSE_RANGE_CLOEXEC))
	}
	if len(pr.Scheduler) > 0 {
		p.at("set", "scheduling policy")
		p.sys(unix.SYS_SCHED_SETATTR, num(0), slice(p, pr.Scheduler), num(0))
	}
	if pr.IOPriority != 0 {
		p.at("set", "I/O priority")
		p.sys(unix.SYS_IOPRIO_SET, num(ioprioWhoProcess), num(0), num(pr.IOPriority))
	}
	// No earlier: RLIMIT_NOFILE would keep the child from opening the directory. No later: a hard limit is raised by a capability.
	for i := range pr.Rlimits {
		l := &pr.Rlimits[i]
		p.at("set rlimit", strconv.Itoa(int(l.Resource)))
		lim := []uint64{l.Soft, l.Hard}
		p.sys(unix.SYS_PRLIMIT64, num(0), num(l.Resource), slice(p, lim), num(0))
	}
	p.at("drop", "capabilities")
	caps := &pr.Capabilities
	p.bound(caps.Bounding)
	p.sys(unix.SYS_PRCTL, num(unix.PR_SET_KEEPCAPS), num(1))
	p.at("set", "groups")
	p.sys(unix.SYS_SETGROUPS, num(len(pr.Groups)), slice(p, pr.Groups))
	p.at("set", "user")
	p.sys(unix.SYS_SETRESGID, num(pr.GID), num(pr.GID), num(pr.GID))
	p.sys(unix.SYS_SETRESUID, num(pr.UID), num(pr.UID), num(pr.UID))
	if len(pr.Seccomp) > 0 && !pr.NoNewPrivs {
		p.at("set", "capabilities")
		p.capset(caps.Permitted|1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SETPCAP, caps.Permitted|1<<unix.CAP_SYS_ADMIN|1<<unix.CAP_SETPCAP, caps.Inheritable)
		p.seccomp(pr)
	}
	p.at("set", "capabilities")
	p.capset(caps.Effective, caps.Permitted, caps.Inheritable)
	p.sys(unix.SYS_PRCTL, num(unix.PR_CAP_AMBIENT), num(unix.PR_CAP_AMBIENT_CLEAR_ALL)).any()
	for c := range lastCapability + 1 {
		if caps.Ambient&(1<<c) != 0 {
			p.sys(unix.SYS_PRCTL, num(unix.PR_CAP_AMBIENT), num(unix.PR_CAP_AMBIENT_RAISE), num(c))
		}
	}
	p.sys(unix.SYS_UMASK, num(pr.Umask))
	if pr.NoNewPrivs {
		p.at("set", "no_new_privs")
		p.sys(unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1))
		p.seccomp(pr)
	}
	if waits {
		p.waitAt(Starting)
	}
	p.exec(pr)
}

// bound drops from the bounding set what is not in keep.
func (p *program) bound(keep uint64) {
	for c := 0; c <= lastCapability; c++ {
		first := c
		for c <= lastCapability && keep&(1<<c) == 0 {
			c++
		}
		if first < c {
			// EINVAL: this kernel ends its list before.
			p.sys(unix.SYS_PRCTL, num(unix.PR_CAPBSET_DROP), num(first)).upTo(1, uint8(c-1)).onErrorNext(p, unix.EINVAL)
		}
	}
}

// onErrorNext lets the program go on after errno, and after no other error.
func (o *op) onErrorNext(p *program, errno unix.Errno) {
	l := &label{}
	o.onError(l, errno)
	p.here(l)
}

func (p *program) capset(effective, permitted, inheritable uint64) {
	header := &capHeader{version: unix.LINUX_CAPABILITY_VERSION_3}
	data := &[2]capData{
		{uint32(effective), uint32(permitted), uint32(inheritable)},
		{uint32(effective >> 32), uint32(permitted >> 32), uint32(inheritable >> 32)},
	}
	p.sys(unix.SYS_CAPSET, memory(p, header), memory(p, data))
}

func (p *program) seccomp(pr *Process) {
	if len(pr.Seccomp) == 0 {
		return
	}
	p.at("install", "the seccomp filter")
	p.filter(pr.Seccomp, pr.SeccompFlags)
}

func (p *program) filter(program []byte, flags uint64) *op {
	const seccompSetModeFilter = 1
	filter := slice(p, program)
	// Too long is the kernel's EINVAL, and never the length's low bits.
	prog := &sockFprog{length: uint16(min(len(program)/8, 1<<16-1)), filter: filter.value}
	return p.sys(unix.SYS_SECCOMP, num(seccompSetModeFilter), num(flags), memory(p, prog))
}

// exec tries every place that execvp(3) would.
func (p *program) exec(pr *Process) {
	candidates := []string{pr.Path}
	if pr.Path == "" {
		candidates[0] = pr.Args[0]
	}
	p.at(StepExec, quote(candidates[0]))
	argv, envp := p.vector(pr.Args), p.vector(pr.Env)
	if pr.Path == "" && !strings.Contains(pr.Args[0], "/") {
		candidates = nil
		for _, dir := range strings.Split(searchPath(pr.Env), ":") {
			if dir == "" {
				dir = "."
			}
			candidates = append(candidates, dir+"/"+pr.Args[0])
		}
	}
	for _, c := range candidates {
		p.sys(unix.SYS_EXECVE, p.text(c), argv, envp).kind = opTry
	}
	p.sys(0).kind = opGiveUp
}

func (p *program) vector(list []string) arg {
	v := make([]uintptr, len(list)+1)
	for i, s := range list {
		v[i] = p.text(s).value
	}
	return slice(p, v)
}

// searchPath is the PATH of an environment; the last entry of a name counts, as in containerd and runc.
func searchPath(env []string) string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	return path
}

// quote puts a path in quotes without package strconv's tables for printable runes.
func quote(s string) string {
	b := []byte{'"'}
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == 0x7f {
			b = append(b, '?')
		} else {
			b = append(b, c)
		}
	}
	return string(append(b, '"'))
}
