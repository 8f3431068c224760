package engine

import "golang.org/x/sys/unix"

// A process that joins a pid namespace is seen there by others, and whoever of them has CAP_SYS_PTRACE gets all that it has: its root, its descriptors, its
// memory. A container's first process is made out of the host's, so its child appears in a namespace that it shares only when nothing of the host is left.
// For a namespace of its own, where nobody is, and for one of a user namespace, which has no power over the child, it need not wait.

// shareNamespace has the child's own child be born in p.shared.
func (p *program) shareNamespace() {
	if p.shared == 0 {
		return
	}
	p.at("join", "the shared pid namespace")
	p.sys(unix.SYS_SETNS, num(p.shared), num(unix.CLONE_NEWPID))
}

// appear goes on in a child that is in p.shared, with no descriptors but the standard ones, those of the reports and the root's.
func (p *program) appear(root int) {
	if p.shared == 0 {
		return
	}
	p.closeAllBut([]int{root, p.pipe[1], p.gate.pipe[0]})
	p.birth(0, -1)
	p.sys(unix.SYS_SETSID).any()
}

// openProc makes the proc file system of a shared pid namespace as a detached mount.
func openProc(m *Mount, pidns int) (int, error) {
	fd, err := procOf(m, pidns)
	if err == unix.EINVAL { // before Linux 6.17 a proc file system is of the namespace of who makes it
		fd, err = procByChild(m, pidns)
	}
	return fd, err
}

func procOf(m *Mount, pidns int) (int, error) {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err = unix.FsconfigSetFd(fs, "pidns", pidns); err != nil {
		return -1, err
	}
	if err = setOptions(fs, m.Options); err == nil {
		err = unix.FsconfigCreate(fs)
	}
	if err != nil {
		return -1, stepError(err, "make file system "+m.Type+" for", quote(m.Target))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(m.Set))
}

// procByChild has a child make it that goes into the namespace with an empty root and without descriptors.
func procByChild(m *Mount, pidns int) (int, error) {
	return fromChild(func(p *program, out int) {
		p.emptyRoot()
		p.closeAllBut([]int{out, p.pipe[1], pidns})
		p.sys(unix.SYS_SETNS, num(pidns), num(unix.CLONE_NEWPID))
		p.sys(unix.SYS_CLOSE, num(pidns))
		p.birth(0, -1)
		proc := p.register()
		p.newFilesystem(m, proc)
		p.send(proc, out)
	})
}
