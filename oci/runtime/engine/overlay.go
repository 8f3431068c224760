package engine

import (
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// appendsLayers tells whether overlayfs takes its layers one by one, as lowerdir+ (Linux 6.7). The kernel is asked once.
var appendsLayers = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return true // there is no overlayfs: the mount itself says so
	}
	defer unix.Close(fs)
	if unix.FsconfigSetString(fs, "lowerdir+", "/") != nil {
		return false
	}
	// Before Linux 6.5 overlayfs hears of its parameters only when it is created, and until then any is taken.
	return unix.FsconfigSetFlag(fs, "no-such-parameter") != nil
})

// mountOptionsMax is what mount(2) reads of its options on every machine, with the end.
const mountOptionsMax = 4096

// The names in a scratch folder. Those of layers are numbers, in small letters.
const (
	scratchTree  = "TREE"
	scratchUpper = "UPPER"
	scratchWork  = "WORK"
)

// mountLayers makes an overlay for kernels without lowerdir+: by mount(2), whose options have one page for all layers, where
// fsconfig(2) has 256 bytes. So the layers get short names: a child with a mount namespace of its own makes links in a tmpfs
// and the overlay upon them, and sends back a detached clone. Nothing is left of the namespace but that.
func mountLayers(m *Mount) (int, error) {
	links, options := nameLayers(m.Options)
	return mountScratch(m, options, func(p *program) {
		for _, l := range links {
			p.sys(unix.SYS_SYMLINKAT, p.text(l.Target), atFDCWD, p.text(l.Path))
		}
	})
}

// mountScratch mounts m by mount(2) in a folder of a child's own, whose other content is fill's, and returns a detached clone.
func mountScratch(m *Mount, options string, fill func(*program)) (int, error) {
	if len(options) >= mountOptionsMax {
		return -1, unix.E2BIG
	}
	fd, err := fromChild(func(p *program, out int) {
		place, tree := p.register(), p.register()
		// Over the host's /proc, as this child alone sees it: no layer is in there.
		p.newFilesystem(&Mount{Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=700"}}, place)
		p.sys(unix.SYS_MOVE_MOUNT, place.arg(), p.text(""), atFDCWD, p.text("/proc"), num(unix.MOVE_MOUNT_F_EMPTY_PATH))
		p.sys(unix.SYS_FCHDIR, place.arg())
		p.sys(unix.SYS_MKDIRAT, atFDCWD, p.text(scratchTree), num(0o700))
		fill(p)
		p.sys(unix.SYS_MOUNT, p.text(m.Type), p.text(scratchTree), p.text(m.Type), num(0), p.text(options))
		p.sys(unix.SYS_OPEN_TREE, atFDCWD, p.text(scratchTree), num(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)).to(tree)
		p.send(tree, out)
	})
	if err != nil {
		return -1, err
	}
	if m.Set != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: m.Set}); err != nil {
			unix.Close(fd)
			return -1, err
		}
	}
	return fd, nil
}

// fromChild returns the descriptor that a child sends by the socket out. The child runs what work writes down, in a mount namespace of its
// own that the host sees nothing of.
func fromChild(work func(p *program, out int)) (int, error) {
	var d descriptors
	defer d.close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	d.add(pair[0])
	d.add(pair[1])
	p := &program{}
	if err := p.makePipe(); err != nil {
		return -1, err
	}
	p.sys(unix.SYS_MOUNT, num(0), p.text("/"), num(0), num(unix.MS_REC|unix.MS_PRIVATE), num(0))
	p.scope(func() { work(p, pair[1]) })
	p.sys(unix.SYS_EXIT_GROUP, num(0))
	c, err := p.start(unix.CLONE_NEWNS, -1, -1)
	if err != nil {
		return -1, err
	}
	c.discard() // it ends by itself: this waits
	return receive(pair[0])
}

// mountOption is an option in the form of mount(2)'s string: a label has commas.
func mountOption(o string) string {
	if label, found := strings.CutPrefix(o, "context="); found {
		return `context="` + label + `"`
	}
	return o
}

// nameLayers turns an overlay's options into mount(2)'s string, and its folders into links with names that need no escapes.
func nameLayers(options []string) (links []Link, joined string) {
	var lower, rest []string
	for _, o := range options {
		key, folder, _ := strings.Cut(o, "=")
		switch key {
		case "lowerdir+":
			name := strconv.FormatInt(int64(len(lower)), 36)
			lower = append(lower, name)
			links = append(links, Link{name, folder})
		case "upperdir":
			links = append(links, Link{scratchUpper, folder})
			rest = append(rest, key+"="+scratchUpper)
		case "workdir":
			links = append(links, Link{scratchWork, folder})
			rest = append(rest, key+"="+scratchWork)
		default:
			rest = append(rest, mountOption(o))
		}
	}
	return links, strings.Join(append([]string{"lowerdir=" + strings.Join(lower, ":")}, rest...), ",")
}
