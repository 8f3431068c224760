package engine

import "golang.org/x/sys/unix"

// StepProfile is the step of the AppArmor profile.
const StepProfile = "set the AppArmor profile"

// StepLabel is the step of the SELinux label.
const StepLabel = "set the SELinux label"

// confinement opens what a process gets its AppArmor profile or its SELinux label by: a /proc of the engine's own, attached nowhere, so that no
// path of a container and nothing mounted on the host's /proc is asked (CVE-2019-16884, CVE-2025-52881).
func (p *program) confinement(pr *Process, d *descriptors) error {
	if pr.Labels == (Labels{}) {
		return nil
	}
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return &Error{"open", "a proc file system", errno(err)}
	}
	defer unix.Close(fs)
	err = unix.FsconfigCreate(fs)
	if err == nil {
		p.proc, err = unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	}
	if err != nil {
		return &Error{"mount", "a proc file system", errno(err)}
	}
	d.add(p.proc)
	return nil
}

// confine asks the kernel to execute the program under its AppArmor profile. It does so while the child may still write to any
// file, and the label changes with execve alone. A profile that is not loaded is an error here: no program runs without it. So is a label that the
// policy does not know, or does not let the monitor give.
func (p *program) confine(pr *Process) {
	if pr.SELinux != "" {
		p.at(StepLabel, quote(pr.SELinux))
		p.scope(func() {
			fd := p.register()
			p.openHow(num(p.proc), "thread-self/attr/exec", unix.O_WRONLY, unix.RESOLVE_BENEATH).to(fd)
			p.sys(unix.SYS_WRITE, fd.arg(), p.text(pr.SELinux), num(len(pr.SELinux)))
			p.close(fd)
		})
	}
	if pr.AppArmor == "" {
		return
	}
	p.at(StepProfile, quote(pr.AppArmor))
	command := "exec " + pr.AppArmor
	p.scope(func() {
		fd := p.register()
		var other, opened label
		// Below the process's own folder, not the group's: the kernel lets a task write its own attributes alone.
		p.openHow(num(p.proc), "thread-self/attr/apparmor/exec", unix.O_WRONLY, unix.RESOLVE_BENEATH).to(fd).
			onError(&other, unix.ENOENT).onSuccess(&opened)
		p.here(&other) // before Linux 5.8
		p.openHow(num(p.proc), "thread-self/attr/exec", unix.O_WRONLY, unix.RESOLVE_BENEATH).to(fd)
		p.here(&opened)
		p.sys(unix.SYS_WRITE, fd.arg(), p.text(command), num(len(command)))
		p.close(fd)
	})
}
