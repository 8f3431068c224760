package engine

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Cgroups are descriptors of a process's cgroups. The engine borrows them.
type Cgroups struct {
	// Unified is the folder in the cgroup2 hierarchy, or -1.
	Unified int
	// V1 are the folders in the v1 hierarchies.
	V1 []V1Cgroup
}

// V1Cgroup is a folder of a v1 hierarchy, with the hierarchy's name, such as "memory" or "cpu,cpuacct".
type V1Cgroup struct {
	Name string
	Dir  int
}

// descriptors are closed together.
type descriptors []int

func (d *descriptors) add(fd int) int { *d = append(*d, fd); return fd }

func (d *descriptors) close() {
	for _, fd := range *d {
		unix.Close(fd)
	}
}

// tasks opens the file of each v1 hierarchy that the child writes itself into. A single thread joins by "tasks": it
// takes no lock that waits for an RCU grace period, as cgroup.procs does.
func (g *Cgroups) tasks(d *descriptors) (early, late []int, err error) {
	for _, c := range g.V1 {
		fd, err := unix.Openat(c.Dir, "tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, nil, &Error{"open cgroup", c.Name, errno(err)}
		}
		d.add(fd)
		if c.Name == "memory" {
			late = append(late, fd) // the memory for the mounts is the host's, not the container's
		} else {
			early = append(early, fd)
		}
	}
	return early, late, nil
}

// Start makes the container and executes its process. It returns when execve has succeeded or an Error says why not;
// then nothing is left. The caller owns the child. The plan has no pauses.
func Start(plan *Plan, cgroups Cgroups, io Stdio) (Child, error) {
	return StartAsking(plan, cgroups, io, nil)
}

// StartAsking is Start for a plan that may have pauses: it asks whether the child may go on at each. The child is the engine's still.
func StartAsking(plan *Plan, cgroups Cgroups, io Stdio, ask func(Point, Child) error) (Child, error) {
	var d descriptors
	defer d.close()
	if len(plan.Process.Args) == 0 {
		return Child{}, &Error{StepExec, `""`, unix.ENOENT}
	}
	root, err := openRootfs(&plan.Rootfs, plan.Users)
	if err != nil {
		return Child{}, err
	}
	d.add(root)
	if root, err = shareRoot(root, plan.HostRoot, &d); err != nil {
		return Child{}, err
	}
	early, late, err := cgroups.tasks(&d)
	if err != nil {
		return Child{}, err
	}
	null, err := NullDevice()
	if err != nil {
		return Child{}, err
	}
	pidns := -1
	if !plan.NewPID && plan.PIDNamespace != "" {
		if pidns, err = unix.Open(plan.PIDNamespace, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return Child{}, &Error{"open pid namespace", plan.PIDNamespace, errno(err)}
		}
		d.add(pidns)
	}
	p := newProgram(plan.Users)
	defer p.release()
	if pidns >= 0 && plan.Users == nil {
		p.shared, pidns = pidns, -1
		if err := p.makePipe(); err != nil {
			return Child{}, err
		}
	}
	if err := p.openGate(plan, ask, &d); err != nil {
		return Child{}, err
	}
	if err := p.confinement(&plan.Process, &d); err != nil {
		return Child{}, err
	}
	flags, unified := p.begin(plan, cgroups.Unified, early)
	if plan.NewCgroup {
		p.at("unshare", "the cgroup namespace")
		p.sys(unix.SYS_UNSHARE, num(unix.CLONE_NEWCGROUP))
	}
	if err := p.tree(plan, cgroups, root, &d); err != nil {
		return Child{}, err
	}
	terminal, err := newConsole(&plan.Process, &d)
	if err != nil {
		return Child{}, err
	}
	if terminal != nil {
		p.console(terminal, &plan.Process, num(root), consoleBind)
	} else {
		p.stdio(&plan.Process, io, null)
	}
	p.pause(Created, append(late, root, p.proc)...)
	p.restrict(plan, num(root))
	p.pivot(plan, root)
	for _, fd := range late {
		p.at("join", "the container's memory cgroup")
		p.sys(unix.SYS_WRITE, num(fd), p.text("0"), num(1))
	}
	p.confine(&plan.Process)
	p.appear(root)
	p.become(&plan.Process, num(root))
	return p.startWith(terminal, flags, unified, pidns)
}

// begin gets the child into its namespaces and cgroups, and returns how it is to be cloned.
func (p *program) begin(plan *Plan, unified int, tasks []int) (flags uint64, cgroup int) {
	flags = unix.CLONE_NEWNS
	if plan.NewPID {
		flags |= unix.CLONE_NEWPID
	}
	p.early(&plan.Process)
	if p.users == nil {
		p.settle(tasks)
		p.keyring()
		p.openPlace(plan)
		p.shareNamespace()
		return flags, unified
	}
	p.joinUsers(p.users, &plan.Process)
	if plan.NewPID {
		// The first child does not join the cgroups: two processes may be more than the container may have.
		p.birth(flags, unified)
		unified = -1
	} else {
		p.at("unshare", "the mount namespace")
		p.sys(unix.SYS_UNSHARE, num(flags))
	}
	p.settle(tasks)
	p.openPlace(plan) // as the host's root still, whose folders it is in
	p.becomeRoot()
	p.keyring()
	return 0, unified
}

// openPlace opens where the root goes, if not to the top. It is in the child's own mount namespace.
func (p *program) openPlace(plan *Plan) {
	if plan.HostRoot == "" {
		return
	}
	p.at("open", "the root's place on the host")
	p.place = p.register()
	p.sys(unix.SYS_OPENAT, atFDCWD, p.text(plan.HostRoot), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).to(p.place)
}

// tree attaches the root and all mounts, and fills /dev.
func (p *program) tree(plan *Plan, cgroups Cgroups, root int, d *descriptors) error {
	p.detach(plan)
	p.openStage(plan)
	p.at("attach", "the root file system")
	if p.place != 0 {
		p.moveMount(num(root), p.place)
		p.close(p.place)
	} else {
		p.sys(unix.SYS_MOVE_MOUNT, num(root), p.text(""), atFDCWD, p.text("/"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
	}
	rootArg := num(root)
	hasDev := false
	for i := range plan.Mounts {
		m := &plan.Mounts[i]
		var err error
		isDev := m.Target == "/dev" // also where the image has a link there: its end is the volume
		if !m.NoSymlinks {
			if m.Target, err = resolve(root, m.Target, plan.Mounts[:i]); err != nil {
				return err
			}
		}
		if (m.Type == "bind" || m.Type == TypeImage) && (isDev || m.Target == "/dev") {
			hasDev = true
		}
		switch m.Type {
		case "bind", TypeImage:
			if m.Type == "bind" && p.stage != 0 && m.follows(plan.Users) {
				p.bind(rootArg, m)
				continue
			}
			if err := p.volume(rootArg, m, plan.Users, d); err != nil {
				return err
			}
		case "tmpfs":
			if plan.Users != nil && m.Target == "/dev" {
				fd, err := devFolder(m, plan.Devices, plan.Users)
				if err != nil {
					return stepError(err, "make file system tmpfs for", "/dev")
				}
				p.attach(num(d.add(fd)), rootArg, m, makeDirectory)
				continue
			}
			p.fresh(rootArg, m)
		case "cgroup":
			if err := p.cgroupMount(plan, m, cgroups, rootArg, d); err != nil {
				return err
			}
		case "proc":
			if p.shared == 0 {
				p.fresh(rootArg, m)
				continue
			}
			fd, err := openProc(m, p.shared)
			if err != nil {
				return stepError(err, "make file system proc for", quote(m.Target))
			}
			p.attach(num(d.add(fd)), rootArg, m, makeDirectory)
		default:
			p.fresh(rootArg, m)
		}
	}
	p.closeStage(plan)
	if !hasDev {
		p.devices(plan, rootArg)
	}
	for _, dir := range plan.Directories {
		dir, err := resolve(root, dir, plan.Mounts)
		if err != nil {
			return err
		}
		p.at("make directory", quote(dir))
		p.scope(func() {
			fd := p.register()
			p.ensure(rootArg, dir, makeDirectory, inRoot, fd)
			p.close(fd)
		})
	}
	return nil
}

// fresh mounts a new file system.
func (p *program) fresh(root arg, m *Mount) {
	p.scope(func() {
		fs := p.register()
		p.newFilesystem(m, fs)
		p.attach(fs.arg(), root, m, makeDirectory)
		p.close(fs)
	})
}

// cgroupMount shows the container its own cgroups: cgroup2 where the unified hierarchy is the only one, else a tmpfs with
// one bind mount a hierarchy (runtime-spec config-linux.md#cgroups-path, as runc does on v1).
func (p *program) cgroupMount(plan *Plan, m *Mount, cgroups Cgroups, root arg, d *descriptors) error {
	if len(cgroups.V1) == 0 {
		v2 := *m
		v2.Type, v2.Source, v2.Options = "cgroup2", "cgroup", nil
		p.fresh(root, &v2)
		return nil
	}
	tmpfs := Mount{Type: "tmpfs", Source: "cgroup", Target: m.Target, Options: []string{"mode=755"}, Set: m.Set &^ unix.MOUNT_ATTR_RDONLY}
	p.fresh(root, &tmpfs)
	folders := cgroups.V1
	if cgroups.Unified >= 0 {
		folders = append(folders[:len(folders):len(folders)], V1Cgroup{"unified", cgroups.Unified})
	}
	for _, c := range folders {
		fd, err := unix.OpenTree(c.Dir, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		if err != nil {
			return &Error{"open cgroup", c.Name, errno(err)}
		}
		d.add(fd)
		bind := Mount{Target: m.Target + "/" + c.Name, Set: m.Set, Propagation: unix.MS_PRIVATE}
		if err := setAttributes(fd, &bind); err != nil {
			return &Error{"set attributes of cgroup", c.Name, errno(err)}
		}
		p.attach(num(fd), root, &bind, makeDirectory)
		for _, controller := range strings.Split(c.Name, ",") {
			if controller != c.Name {
				p.symlink(root, m.Target+"/"+controller, c.Name)
			}
		}
	}
	if m.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		p.at("make read-only", quote(m.Target))
		p.scope(func() {
			fd := p.register()
			p.open(root, m.Target, unix.O_PATH).to(fd)
			p.setattr(fd.arg(), unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
			p.close(fd)
		})
	}
	return nil
}

// devices makes the nodes and links of /dev. In a user namespace the nodes are there.
func (p *program) devices(plan *Plan, root arg) {
	for i := range plan.Devices {
		v := &plan.Devices[i]
		if plan.Users != nil {
			break
		}
		p.at("make device", quote(v.Path))
		p.parents(root, v.Path, inRoot)
		p.scope(func() {
			dir := p.register()
			parent, name := split(v.Path)
			p.open(root, parent, unix.O_PATH|unix.O_DIRECTORY).to(dir)
			p.sys(unix.SYS_MKNODAT, dir.arg(), p.text(name), num(v.Mode), num(unix.Mkdev(v.Major, v.Minor))).onErrorNext(p, unix.EEXIST)
			p.sys(unix.SYS_FCHOWNAT, dir.arg(), p.text(name), num(v.UID), num(v.GID), num(unix.AT_SYMLINK_NOFOLLOW))
			p.close(dir)
		})
	}
	for _, l := range plan.Links {
		p.symlink(root, l.Path, l.Target)
	}
}

func (p *program) symlink(root arg, path, target string) {
	p.at("make link", quote(path))
	p.scope(func() {
		dir := p.register()
		parent, name := split(path)
		p.open(root, parent, unix.O_PATH|unix.O_DIRECTORY).to(dir)
		p.sys(unix.SYS_SYMLINKAT, p.text(target), dir.arg(), p.text(name)).onErrorNext(p, unix.EEXIST)
		p.close(dir)
	})
}

// restrict hides and protects paths.
func (p *program) restrict(plan *Plan, root arg) {
	for _, path := range plan.Readonly {
		p.readonly(root, path)
	}
	if len(plan.Masked) == 0 {
		return
	}
	p.scope(func() {
		shared := p.register()
		// The one tmpfs of all masked folders is attached over the host's /proc of the child's own mount namespace, which
		// goes away at pivot_root: a detached mount cannot be cloned before Linux 6.15.
		p.newFilesystem(&Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"size=0k", "nr_inodes=2"}, Set: unix.MOUNT_ATTR_RDONLY}, shared)
		p.at("attach", "the empty folder for masked paths")
		p.sys(unix.SYS_MOVE_MOUNT, shared.arg(), p.text(""), atFDCWD, p.text("/proc"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		for _, path := range plan.Masked {
			p.mask(root, path, shared)
		}
		p.close(shared)
	})
}

// pivot makes the container's root the child's, and lets go of the host's mounts (pivot_root(2), NOTES).
func (p *program) pivot(plan *Plan, root int) {
	if plan.RootReadonly {
		p.at("make read-only", "the root file system")
		p.setattr(num(root), unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	p.at("change to", "the root file system")
	dot := p.text(".")
	p.scope(func() {
		old := p.register()
		if plan.shares() {
			p.sys(unix.SYS_OPENAT, atFDCWD, p.text("/"), num(unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)).to(old)
		}
		p.sys(unix.SYS_FCHDIR, num(root))
		p.sys(unix.SYS_PIVOT_ROOT, dot, dot)
		if plan.shares() { // else the host's mounts would go with the child's
			p.sys(unix.SYS_FCHDIR, old.arg())
			p.sys(unix.SYS_MOUNT, num(0), dot, num(0), num(unix.MS_REC|unix.MS_SLAVE), num(0))
		}
	})
	if p.stage != 0 { // it is upon the host's root, and goes first
		p.sys(unix.SYS_UMOUNT2, dot, num(unix.MNT_DETACH))
	}
	p.sys(unix.SYS_UMOUNT2, dot, num(unix.MNT_DETACH))
	p.sys(unix.SYS_CHDIR, p.text("/"))
	if plan.RootPropagation != 0 {
		p.at("set propagation of", "the root file system")
		p.sys(unix.SYS_MOUNT, num(0), p.text("/"), num(0), num(plan.RootPropagation), num(0))
	}
}
