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
	null, err := NullDevice()
	if err != nil {
		return Child{}, err
	}
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
