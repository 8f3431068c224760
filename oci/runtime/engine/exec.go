package engine

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Exec runs a process in a container, as a child of the caller. Results and errors are those of Start.
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
	terminal, err := newConsole(pr, &d)
	if err != nil {
		return Child{}, err
	}
	tasks := append(early, late...)
	p.early(pr)
	if target.Users != nil {
		p.raiseLimits(pr)
	}
	p.confine(pr)
	unified := cgroups.Unified
	if target.PIDNamespace < 0 {
		p.settle(tasks)
		p.at("join", "the container's namespaces")
		p.sys(unix.SYS_SETNS, num(target.PIDFD), num(target.Namespaces|unix.CLONE_NEWNS))
	} else {
		needed := append([]int{null, io.In, io.Out, io.Err}, tasks...)
		if terminal != nil {
			needed = append(needed, terminal.child)
		}
		if err := p.enter(target, unified, needed); err != nil {
			return Child{}, err
		}
		unified = -1
		p.settle(tasks)
		if n := target.Namespaces & unix.CLONE_NEWCGROUP; n != 0 {
			p.at("join", "the container's cgroup namespace")
			p.sys(unix.SYS_SETNS, num(target.PIDFD), num(n))
		}
	}
	if target.Users != nil {
		p.becomeRoot()
	}
	p.keyring()
	p.scope(func() {
		root := p.register()
		p.at("open", "the container's root")
		p.sys(unix.SYS_OPENAT, atFDCWD, p.text("/"), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).to(root)
		if terminal != nil {
			p.console(terminal, pr, root.arg(), consoleHidden)
		} else {
			p.stdio(pr, io, null)
		}
		p.become(pr, root.arg())
	})
	return p.startWith(terminal, 0, unified, -1)
}

// enter gets the child into a pid namespace. Whoever is in there with CAP_SYS_PTRACE sees into all that appears there, from its first moment:
// so the child, which is a copy of the monitor with the host's root and the monitor's descriptors, does not appear there itself. It lets
// go of them, joins the container, and gives birth to the process, which has nothing but the container and what it needs.
func (p *program) enter(target Target, unified int, needed []int) error {
	if err := p.makePipe(); err != nil {
		return err
	}
	p.closeAllBut(append(needed, p.pipe[1], target.PIDFD, target.PIDNamespace, unified))
	p.at("join", "the container's pid namespace")
	p.sys(unix.SYS_SETNS, num(target.PIDNamespace), num(unix.CLONE_NEWPID))
	p.sys(unix.SYS_CLOSE, num(target.PIDNamespace))
	p.at("join", "the container's namespaces")
	// The cgroup namespace comes when the process is in its cgroup: from inside of one, none outside of it is left (cgroups(7), nsdelegate).
	p.sys(unix.SYS_SETNS, num(target.PIDFD), num(target.Namespaces&^unix.CLONE_NEWCGROUP|unix.CLONE_NEWNS))
	p.birth(0, unified)
	if unified >= 0 {
		p.sys(unix.SYS_CLOSE, num(unified)) // its ".." are the host's cgroups
	}
	return nil
}

// closeAllBut closes all descriptors but these and the standard ones, which the process gets anew.
func (p *program) closeAllBut(needed []int) {
	p.at("close", "inherited descriptors")
	slices.Sort(needed)
	next := 3
	for _, fd := range needed {
		if fd > next {
			p.sys(unix.SYS_CLOSE_RANGE, num(next), num(fd-1), num(0))
		}
		next = max(next, fd+1)
	}
	p.sys(unix.SYS_CLOSE_RANGE, num(next), arg{value: 1<<32 - 1}, num(0))
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
