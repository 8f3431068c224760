package engine

import "golang.org/x/sys/unix"

// TypeImage is the type of a mount that shows what an image holds.
const TypeImage = "image"

// volume attaches what is on the host already: a folder or a file of it, or of an image.
func (p *program) volume(root arg, m *Mount, u *UserNamespace, d *descriptors) error {
	open := openSource
	if m.Type == TypeImage {
		open = openImage
	}
	fd, directory, err := open(m, u)
	if err != nil {
		return err
	}
	kind := makeFile
	if directory {
		kind = makeDirectory
	}
	p.attach(num(d.add(fd)), root, m, kind)
	return nil
}

// openImage opens what a mount shows of an image, as a detached mount with its attributes set; u is the pod's user namespace, or nil.
// The overlay has no upper layer, so nobody who has it mounted can make it writable, not even the root of a privileged container.
func openImage(m *Mount, u *UserNamespace) (fd int, directory bool, err error) {
	fd, err = openLayers(&Mount{Type: "overlay", Options: m.Options, Set: m.Set & unix.MOUNT_ATTR_RDONLY}, u)
	if err != nil {
		return -1, false, &Error{"mount image for", quote(m.Target), errno(err)}
	}
	if m.SubPath != "" {
		tree, err := subtree(fd, m.SubPath)
		unix.Close(fd)
		if err != nil {
			return -1, false, &Error{"open " + quote(m.SubPath) + " in the image for", quote(m.Target), errno(err)}
		}
		fd = tree
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		err = setAttributes(fd, m)
	}
	kind := st.Mode & unix.S_IFMT
	if err == nil && kind != unix.S_IFDIR && kind != unix.S_IFREG {
		err = unix.EINVAL // a device or a socket of a stranger
	}
	if err != nil {
		unix.Close(fd)
		return -1, false, &Error{"set attributes of the image for", quote(m.Target), errno(err)}
	}
	return fd, kind == unix.S_IFDIR, nil
}

// How what is at a path in an image is looked up, and then cloned.
const (
	volumeResolve = inRoot | unix.RESOLVE_NO_XDEV
	cloneTree     = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH
)

// subtree returns a detached mount of what is at path in another one. Links lead nowhere but into that.
func subtree(root int, path string) (int, error) {
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: volumeResolve}
	at, err := unix.Openat2(root, path, how)
	for err == unix.EAGAIN || err == unix.EINTR {
		at, err = unix.Openat2(root, path, how)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", cloneTree)
	if err != unix.EINVAL {
		return fd, err
	}
	return subtreeByChild(root, path)
}

// subtreeByChild is subtree before Linux 6.15, where what is mounted nowhere cannot be cloned: a child mounts it, over the host's /proc as it
// alone sees it.
func subtreeByChild(root int, path string) (int, error) {
	return fromChild(func(p *program, out int) {
		at, tree := p.register(), p.register()
		p.sys(unix.SYS_MOVE_MOUNT, num(root), p.text(""), atFDCWD, p.text("/proc"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		p.openHow(num(root), path, unix.O_PATH, volumeResolve).to(at)
		p.sys(unix.SYS_OPEN_TREE, at.arg(), p.text(""), num(cloneTree)).to(tree)
		p.send(tree, out)
	})
}

// MountImage makes target, and mounts what m shows of an image there in the host's mount namespace, for runtimes that expect to find it on the
// host.
func MountImage(m *Mount, target string) error {
	fd, directory, err := openImage(m, nil)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if directory {
		err = unix.Mkdir(target, 0o700)
	} else {
		err = unix.Mknod(target, unix.S_IFREG|0o600, 0)
	}
	if err == nil {
		err = unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	if err != nil {
		return &Error{"mount image at", quote(target), errno(err)}
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
		return &Error{"make private", quote(target), errno(err)}
	}
	return nil
}
