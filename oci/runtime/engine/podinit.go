package engine

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// StartInit makes the first process of a pod's shared pid namespace: it reaps and waits, in an empty read-only root,
// without capabilities. It executes nothing, so no pause image is needed. With u the pid namespace belongs to that user
// namespace, and the init is its root.
//
// A container with CAP_SYS_PTRACE can make the init do what it likes. So there is nothing that it may do: no capability comes back by an
// execve, and the kernel refuses all system calls but those that it waits and ends by.
func StartInit(u *UserNamespace) (Child, error) {
	p := newProgram(nil)
	defer p.release()
	flags := uint64(unix.CLONE_NEWPID | unix.CLONE_NEWNS)
	if u != nil {
		p.joinUsers(u, &Process{})
		p.birth(flags, -1)
		p.becomeRoot()
		flags = 0
	}
	p.sys(unix.SYS_SETSID).any()
	p.emptyRoot()
	p.at("drop", "capabilities")
	p.bound(0)
	p.capset(0, 0, 0)
	p.sys(unix.SYS_PRCTL, num(unix.PR_SET_NO_NEW_PRIVS), num(1))
	p.sys(unix.SYS_PRCTL, num(unix.PR_SET_NAME), p.text("pod-init"))
	// SIGCHLD ignored: the kernel reaps whatever is left to this process (sigaction(2), SA_NOCLDWAIT).
	ignore := &[4]uintptr{1} // SIG_IGN
	p.sys(unix.SYS_RT_SIGACTION, num(unix.SIGCHLD), memory(p, ignore), num(0), num(8))
	p.filter(allowOnly(unix.SYS_CLOSE_RANGE, unix.SYS_GETPID, unix.SYS_PPOLL, unix.SYS_EXIT_GROUP), 0).any() // a kernel may have none
	p.at("close", "inherited descriptors")
	// Closing everything closes the start pipe too: that tells the parent that the init is up.
	p.sys(unix.SYS_CLOSE_RANGE, num(0), arg{value: 1<<32 - 1}, num(0))
	p.wait()
	return p.start(flags, -1, -1)
}

// emptyRoot leaves the child with an empty root that nothing can be made in, and without the host's mounts.
func (p *program) emptyRoot() {
	p.at("make", "the host's mounts slaves")
	p.sys(unix.SYS_MOUNT, num(0), p.text("/"), num(0), num(unix.MS_REC|unix.MS_SLAVE), num(0))
	p.scope(func() {
		root := p.register()
		p.newFilesystem(&Mount{Type: "tmpfs", Source: "tmpfs", Target: "/", Options: []string{"size=0k", "nr_inodes=2", "mode=555"},
			Set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}, root)
		p.at("change to", "an empty root")
		p.sys(unix.SYS_MOVE_MOUNT, root.arg(), p.text(""), atFDCWD, p.text("/"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		p.sys(unix.SYS_FCHDIR, root.arg())
		dot := p.text(".")
		p.sys(unix.SYS_PIVOT_ROOT, dot, dot)
		p.sys(unix.SYS_UMOUNT2, dot, num(unix.MNT_DETACH))
		p.sys(unix.SYS_CHDIR, p.text("/"))
	})
}

// allowOnly is a seccomp filter that refuses all system calls but these with EPERM, whatever the architecture that they are made for.
func allowOnly(calls ...uint32) []byte {
	b := binary.NativeEndian
	instruction := func(out []byte, code uint16, whenTrue uint8, k uint32) []byte { // struct sock_filter
		return b.AppendUint32(append(b.AppendUint16(out, code), whenTrue, 0), k)
	}
	out := instruction(nil, unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0) // the number
	for i, call := range calls {
		out = instruction(out, unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, uint8(len(calls)-i), call)
	}
	out = instruction(out, unix.BPF_RET|unix.BPF_K, 0, unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM))
	return instruction(out, unix.BPF_RET|unix.BPF_K, 0, unix.SECCOMP_RET_ALLOW)
}
