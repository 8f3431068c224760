package engine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// console is the parent's side of a terminal: the child opens the master in the container's devpts and sends it here.
type console struct{ parent, child int }

// Whether the terminal appears as /dev/console: a container's does, an exec's does not.
const (
	consoleBind = iota
	consoleHidden
)

// scmRights is a control message with one descriptor, as sendmsg(2) takes it.
type scmRights struct {
	length uint64
	level  int32
	kind   int32
	fd     int32
	_      int32
}

// newConsole makes what the terminal's master comes by; it is nil when no terminal is asked for.
func newConsole(pr *Process, d *descriptors) (*console, error) {
	if !pr.Terminal {
		return nil, nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, &Error{"make", "the terminal's socket", errno(err)}
	}
	return &console{parent: d.add(pair[0]), child: d.add(pair[1])}, nil
}

// console gives the process its terminal.
func (p *program) console(t *console, pr *Process, root arg, mode int) {
	p.at("open", "the terminal")
	p.scope(func() {
		master, slave := p.register(), p.register()
		p.open(root, "/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY).to(master)
		unlock := new(int32)
		p.sys(unix.SYS_IOCTL, master.arg(), num(unix.TIOCSPTLCK), memory(p, unlock))
		// The peer comes from the master itself: no path can be swapped (CVE-2025-52565).
		p.sys(unix.SYS_IOCTL, master.arg(), num(unix.TIOCGPTPEER), num(unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)).to(slave)
		if pr.Columns|pr.Lines != 0 {
			size := &unix.Winsize{Row: uint16(pr.Lines), Col: uint16(pr.Columns)}
			p.sys(unix.SYS_IOCTL, master.arg(), num(unix.TIOCSWINSZ), memory(p, size))
		}
		p.sys(unix.SYS_FCHOWN, slave.arg(), num(pr.UID), arg{value: uintptr(0xffffffff)}).any()
		p.send(master, t.child)
		for i := range 3 {
			p.sys(unix.SYS_DUP3, slave.arg(), num(i), num(0))
		}
		if mode == consoleBind {
			p.bindConsole(root, slave)
		}
		p.close(master)
		p.close(slave)
	})
}

// bindConsole mounts the terminal on /dev/console.
func (p *program) bindConsole(root arg, slave reg) {
	p.at("mount at", "/dev/console")
	p.scope(func() {
		target, source := p.register(), p.register()
		p.ensure(root, "/dev/console", makeFile, inRoot|unix.RESOLVE_NO_SYMLINKS, target)
		p.sys(unix.SYS_OPEN_TREE, slave.arg(), p.text(""), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)).to(source)
		p.moveMount(source.arg(), target)
		p.close(target)
		p.close(source)
	})
}

// send sends a descriptor to who has the other end of socket.
func (p *program) send(fd reg, socket int) {
	rights := &scmRights{length: 20, level: unix.SOL_SOCKET, kind: unix.SCM_RIGHTS}
	p.store(fd, &rights.fd)
	body := []byte{0}
	data := &unix.Iovec{Base: &body[0], Len: 1}
	p.keep = append(p.keep, body, rights)
	message := &unix.Msghdr{Iov: data, Iovlen: 1, Control: (*byte)(unsafe.Pointer(rights)), Controllen: uint64(unsafe.Sizeof(*rights))}
	p.keep = append(p.keep, data)
	p.sys(unix.SYS_SENDMSG, num(socket), memory(p, message), num(0))
}

// startWith starts the program and takes the terminal's master.
func (p *program) startWith(t *console, flags uint64, cgroup, pidns int) (Child, error) {
	c, err := p.start(flags, cgroup, pidns)
	if err != nil {
		return c, err
	}
	c.Master = -1
	if t == nil {
		return c, nil
	}
	if c.Master, err = receive(t.parent); err != nil {
		c.discard()
		return Child{}, &Error{"receive", "the terminal", errno(err)}
	}
	return c, nil
}

// receive takes the descriptor that a child has sent.
func receive(socket int) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), control, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		return -1, err
	}
	if len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, unix.EPROTO
}
