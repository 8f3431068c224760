package engine

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// IDMap maps Length IDs of a user namespace, from Inside on, to those of the host from Outside on (user_namespaces(7)).
type IDMap struct{ Inside, Outside, Length uint32 }

// UserNamespace is the user namespace of a pod. It maps ID 0.
type UserNamespace struct {
	UIDs, GIDs []IDMap
	// Descriptor refers to the namespace. It does not travel with a plan: who starts the container has it.
	Descriptor int
}

// outside returns the host's ID of one in a user namespace.
func outside(list []IDMap, id uint32) (uint32, bool) {
	for _, m := range list {
		if id >= m.Inside && id-m.Inside < m.Length {
			return m.Outside + (id - m.Inside), true
		}
	}
	return 0, false
}

// owner is whom a file of the host must belong to, to belong to uid and gid in u; without u it is uid and gid.
func (u *UserNamespace) owner(uid, gid uint32) (hostUID, hostGID int, ok bool) {
	if u == nil {
		return int(uid), int(gid), true
	}
	hu, uidOK := outside(u.UIDs, uid)
	hg, gidOK := outside(u.GIDs, gid)
	return int(hu), int(hg), uidOK && gidOK
}

// Root returns the host's IDs of the namespace's root.
func (u *UserNamespace) Root() (uid, gid uint32) {
	uid, _ = outside(u.UIDs, 0)
	gid, _ = outside(u.GIDs, 0)
	return uid, gid
}

// text is the mapping as /proc/PID/uid_map takes it.
func text(list []IDMap) string {
	var b strings.Builder
	for _, m := range list {
		for _, n := range [3]uint32{m.Inside, m.Outside, m.Length} {
			b.WriteString(strconv.FormatUint(uint64(n), 10))
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// kinds are the flags of the namespaces that NewNamespaces makes, by their names in /proc/PID/ns.
var kinds = map[string]uint64{"net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS}

// NewNamespaces makes a user namespace with these mappings and one namespace that it owns of each kind: "net", "ipc", "uts".
// It returns their descriptors, the user namespace's first. Nothing but the descriptors holds them.
func NewNamespaces(uids, gids []IDMap, names ...string) ([]int, error) {
	var flags uint64
	for _, name := range names {
		flags |= kinds[name]
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, &Error{"make", "the user namespace's pipe", errno(err)}
	}
	pipes := descriptors(pipe[:])
	defer pipes.close()
	// A child that becomes root when the mappings are there, makes the other namespaces as such, and waits: it is what they are
	// looked up by.
	p := &program{}
	word := memory(p, new(byte))
	p.sys(unix.SYS_CLOSE, num(pipe[1]))
	p.at("wait for", "the user namespace's mappings")
	p.sys(unix.SYS_READ, num(pipe[0]), word, num(1))
	p.becomeRoot()
	p.at("unshare", "the pod's namespaces")
	p.sys(unix.SYS_UNSHARE, num(flags))
	p.at("close", "inherited descriptors")
	p.sys(unix.SYS_CLOSE_RANGE, num(0), num(pipe[0]-1), num(0))
	p.sys(unix.SYS_CLOSE_RANGE, num(pipe[0]+1), arg{value: 1<<32 - 1}, num(0))
	p.sys(unix.SYS_READ, num(pipe[0]), word, num(1)) // it ends with the pipe, should the parent be killed
	p.help = func(pid int) error {
		for _, f := range []struct {
			name string
			ids  []IDMap
		}{{"uid_map", uids}, {"gid_map", gids}} {
			if err := writeFile("/proc/"+strconv.Itoa(pid)+"/"+f.name, text(f.ids)); err != nil {
				return &Error{"write", "the user namespace's " + f.name, errno(err)}
			}
		}
		_, err := unix.Write(pipe[1], []byte{0})
		return err
	}
	child, err := p.start(unix.CLONE_NEWUSER, -1, -1)
	if err != nil {
		return nil, err
	}
	defer child.discard()
	proc := "/proc/" + strconv.Itoa(child.PID)
	var d descriptors
	for _, name := range append([]string{"user"}, names...) {
		fd, err := unix.Open(proc+"/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			d.close()
			return nil, &Error{"open", "the " + name + " namespace", errno(err)}
		}
		d.add(fd)
	}
	return d, nil
}

func writeFile(path, content string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(content)) // at once: the kernel takes a mapping in one write
	return err
}

// joinUsers puts the child into the user namespace. What only the host's root may do comes before.
func (p *program) joinUsers(u *UserNamespace, pr *Process) {
	p.raiseLimits(pr)
	p.at("join", "the pod's user namespace")
	p.sys(unix.SYS_SETNS, num(u.Descriptor), num(unix.CLONE_NEWUSER))
}

// becomeRoot makes the child root of the user namespace that it has joined: the host's root is nobody there, and can
// own no file. The child's memory stays closed to the namespace until execve: it is a copy of the monitor's, which is not
// dumpable, and belongs to the host's user namespace (ptrace(2), Ptrace access mode checking).
func (p *program) becomeRoot() {
	p.at("become", "root of the user namespace")
	p.sys(unix.SYS_SETGROUPS, num(0), num(0))
	p.sys(unix.SYS_SETRESGID, num(0), num(0), num(0))
	p.sys(unix.SYS_SETRESUID, num(0), num(0), num(0))
	p.sys(unix.SYS_PRCTL, num(unix.PR_SET_DUMPABLE), num(0)) // a change of user sets it to fs.suid_dumpable
}

// raiseLimits raises hard limits that are above the monitor's own: the host's root may, root of a user namespace may not.
func (p *program) raiseLimits(pr *Process) {
	for _, l := range pr.Rlimits {
		var own unix.Rlimit
		if unix.Prlimit(0, int(l.Resource), nil, &own) != nil || l.Hard <= own.Max {
			continue
		}
		p.at("raise rlimit", strconv.Itoa(int(l.Resource)))
		p.sys(unix.SYS_PRLIMIT64, num(0), num(l.Resource), slice(p, []uint64{own.Cur, l.Hard}), num(0))
	}
}

// birth goes on in a child of its own, which is the first process of a new pid namespace. That is a sibling, not a child, of
// the process that ran the program up to here, and that one ends. A pid namespace belongs to the user namespace of whoever
// clones into it, so a process has to be in that first.
func (p *program) birth(flags uint64, cgroup int) {
	args := &cloneArgs{flags: flags | unix.CLONE_PARENT}
	if cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	p.at("clone", "the process")
	o := p.sys(unix.SYS_CLONE3, memory(p, args), num(cloneArgsSize))
	o.kind = opBirth
}

// wait is the end of a program: the child sleeps until it is killed.
func (p *program) wait() {
	var again label
	p.sys(unix.SYS_GETPID)
	loop := p.len
	p.sys(unix.SYS_PPOLL, num(0), num(0), num(0), num(0), num(0)).any().onSuccess(&again)
	p.sys(unix.SYS_GETPID).onSuccess(&again)
	for _, to := range again.from {
		*to = int32(loop)
	}
}
