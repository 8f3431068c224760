package engine

import "golang.org/x/sys/unix"

// Exec runs a process in the container whose first process pidfd refers to, as a child of the caller. ownPID tells
// whether the container has a pid namespace other than the caller's. Results and errors are those of Start.
func Exec(pr *Process, target Target, cgroups Cgroups, io Stdio) (Child, error) {
	var d descriptors
	defer d.close()
	if len(pr.Args) == 0 {
		return Child{}, &Error{StepExec, `""`, unix.ENOENT}
	}
	early, late, err := cgroups.tasks(&d)
	if err != nil {
		return Child{}, err
	}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Child{}, &Error{"open", "/dev/null", errno(err)}
	}
	d.add(null)
	p := newProgram(target.Users)
	defer p.release()
	if err := p.confinement(pr, &d); err != nil {
		return Child{}, err
	}
	p.early(pr)
	p.settle(append(early, late...))
	if target.Users != nil {
		p.raiseLimits(pr)
	}
	p.at("join", "the container's namespaces")
	p.sys(unix.SYS_SETNS, num(target.PIDFD), num(target.Namespaces|unix.CLONE_NEWNS))
	if target.Users != nil {
		p.becomeRoot()
	}
	p.keyring()
	var terminal *console
	var become error
	p.scope(func() {
		root := p.register()
		p.at("open", "the container's root")
		p.sys(unix.SYS_OPENAT, atFDCWD, p.text("/"), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).to(root)
		if terminal, become = p.console(pr, root.arg(), consoleHidden, &d); become != nil {
			return
		}
		if terminal == nil {
			p.stdio(pr, io, null)
		}
		p.become(pr, root.arg())
	})
	if become != nil {
		return Child{}, become
	}
	return p.startWith(terminal, 0, cgroups.Unified, target.PIDNamespace)
}

// Target is the container that an exec joins.
type Target struct {
	// PIDFD refers to the container's first process.
	PIDFD int
	// PIDNamespace is a descriptor of the container's pid namespace, or -1 when it is the caller's own.
	PIDNamespace int
	// Namespaces are CLONE_NEW* bits to join besides the mount namespace.
	Namespaces uint64
	// Users is the user namespace; then CLONE_NEWUSER is in Namespaces. Nil: the host's.
	Users *UserNamespace
}

// StartInit makes the first process of a pod's shared pid namespace: it reaps and waits, in an empty read-only root,
// without capabilities. It executes nothing, so no pause image is needed. With u the pid namespace belongs to that user
// namespace, and the init is its root.
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
	p.at("make", "the host's mounts slaves")
	p.sys(unix.SYS_SETSID).any()
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
	p.at("drop", "capabilities")
	p.capset(0, 0, 0)
	p.sys(unix.SYS_PRCTL, num(unix.PR_SET_NAME), p.text("pod-init"))
	// SIGCHLD ignored: the kernel reaps whatever is left to this process (sigaction(2), SA_NOCLDWAIT).
	ignore := &[4]uintptr{1} // SIG_IGN
	p.sys(unix.SYS_RT_SIGACTION, num(unix.SIGCHLD), memory(p, ignore), num(0), num(8))
	p.at("close", "inherited descriptors")
	// Closing everything closes the start pipe too: that tells the parent that the init is up.
	p.sys(unix.SYS_CLOSE_RANGE, num(0), arg{value: 1<<32 - 1}, num(0))
	p.wait()
	return p.start(flags, -1, -1)
}
