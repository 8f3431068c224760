package runtime

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/seccomp"
)

// Mount is one mount that a root file system is made of, as an image store gives it.
type Mount struct {
	Type, Source string
	Options      []string
}

// Trees are what a container has of images: its root, and the images that mounts of TypeImage show, by ID.
type Trees struct {
	Root   []Mount
	Images map[string][]Mount
}

// UnsupportedError is a part of a specification that the engine does not have.
type UnsupportedError struct {
	Field, Value string
}

// Error names the field and the value.
func (e *UnsupportedError) Error() string {
	if e.Value == "" {
		return e.Field + " is not supported by the native engine"
	}
	return fmt.Sprintf("%s: %q is not supported by the native engine", e.Field, e.Value)
}

// Compile makes the plan of the container that s specifies, on the trees of its images. The plan shares no memory with s.
func Compile(s *specs.Spec, trees Trees) (*engine.Plan, error) {
	if s.Process == nil || s.Root == nil || s.Linux == nil {
		return nil, &UnsupportedError{"process, root, linux", "absent"}
	}
	if err := Check(s); err != nil {
		return nil, err
	}
	root, err := CompileRootfs(trees.Root)
	if err != nil {
		return nil, err
	}
	p := &engine.Plan{
		Rootfs:     root,
		Root:       engine.Root{RootReadonly: s.Root.Readonly},
		CgroupPath: s.Linux.CgroupsPath,
		Masked:     slices.Clone(s.Linux.MaskedPaths),
		Readonly:   slices.Clone(s.Linux.ReadonlyPaths),
		Links: []engine.Link{{Path: "/dev/fd", Target: "/proc/self/fd"}, {Path: "/dev/stdin", Target: "/proc/self/fd/0"},
			{Path: "/dev/stdout", Target: "/proc/self/fd/1"}, {Path: "/dev/stderr", Target: "/proc/self/fd/2"},
			{Path: "/dev/ptmx", Target: "pts/ptmx"}, {Path: "/dev/core", Target: "/proc/kcore"}},
	}
	if v := s.Linux.RootfsPropagation; v != "" {
		if p.RootPropagation = propagation[v]; p.RootPropagation == 0 {
			return nil, &UnsupportedError{"linux.rootfsPropagation", v}
		}
	}
	for _, m := range s.Mounts {
		compile := compileMount
		if m.Type == TypeImage {
			compile = trees.CompileImage
		}
		mount, err := compile(mapOwners(m, s.Linux))
		if err != nil {
			return nil, err
		}
		p.Mounts = append(p.Mounts, mount)
	}
	Label(&p.Rootfs, s.Linux.MountLabel)
	for i := range p.Mounts {
		Label(&p.Mounts[i], s.Linux.MountLabel)
	}
	if err := compileNamespaces(p, s.Linux); err != nil {
		return nil, err
	}
	if err := compileDevices(p, s.Linux.Devices); err != nil {
		return nil, err
	}
	if cwd := path.Clean("/" + s.Process.Cwd); cwd != "/" {
		p.Directories = append(p.Directories, cwd)
	}
	process, err := compileProcess(s, s.Process)
	if err != nil {
		return nil, err
	}
	p.Process = *process
	return p, nil
}

// CompileRootfs makes the mount of a root file system.
func CompileRootfs(rootfs []Mount) (engine.Mount, error) {
	if len(rootfs) != 1 {
		return engine.Mount{}, &UnsupportedError{"rootfs", fmt.Sprintf("%d mounts", len(rootfs))}
	}
	return compileMount(specs.Mount{Destination: "/", Type: rootfs[0].Type, Source: rootfs[0].Source, Options: rootfs[0].Options})
}

// CompileExec makes the process of an exec in the container that s specifies.
func CompileExec(s *specs.Spec, process *specs.Process) (*engine.Process, error) {
	return compileProcess(s, process)
}

func compileNamespaces(p *engine.Plan, linux *specs.Linux) error {
	users := false
	for _, n := range linux.Namespaces {
		switch {
		case n.Type == specs.MountNamespace && n.Path == "": // every container has its own
		case n.Type == specs.PIDNamespace:
			p.NewPID, p.PIDNamespace = n.Path == "", n.Path
		case n.Type == specs.CgroupNamespace && n.Path == "":
			p.NewCgroup = true
		case n.Type == specs.UserNamespace && n.Path == "": // the pod's
			users = true
		default:
			return &UnsupportedError{"linux.namespaces", string(n.Type) + " " + n.Path}
		}
	}
	uids, gids := IDMaps(linux.UIDMappings), IDMaps(linux.GIDMappings)
	if users != (len(uids) > 0) || users != (len(gids) > 0) {
		return &UnsupportedError{"linux.uidMappings", fmt.Sprintf("%d of them, %d linux.gidMappings", len(uids), len(gids))}
	}
	if users {
		p.Users = &engine.UserNamespace{UIDs: uids, GIDs: gids, Descriptor: -1}
	}
	return nil
}

// IDMaps are mappings as the engine has them.
func IDMaps(list []specs.LinuxIDMapping) []engine.IDMap {
	var out []engine.IDMap
	for _, m := range list {
		out = append(out, engine.IDMap{Inside: m.ContainerID, Outside: m.HostID, Length: m.Size})
	}
	return out
}

// deviceTypes maps the specification's letters to file types (runtime-spec config-linux.md#devices).
var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

func compileDevices(p *engine.Plan, list []specs.LinuxDevice) error {
	have := map[string]bool{}
	for _, d := range list {
		kind, ok := deviceTypes[d.Type]
		if !ok || d.Major < 0 || d.Minor < 0 {
			return &UnsupportedError{"linux.devices", d.Path + " " + d.Type}
		}
		device := engine.Device{Path: path.Clean("/" + d.Path), Mode: kind | 0o666, Major: uint32(d.Major), Minor: uint32(d.Minor)}
		if d.FileMode != nil {
			device.Mode = kind | uint32(*d.FileMode)&0o7777
		}
		if d.UID != nil {
			device.UID = *d.UID
		}
		if d.GID != nil {
			device.GID = *d.GID
		}
		have[device.Path] = true
		p.Devices = append(p.Devices, device)
	}
	// runtime-spec config-linux.md#default-devices
	for _, d := range defaultDevices {
		if !have[d.Path] {
			if p.Users != nil {
				d.UID, d.GID = p.Users.Root()
			}
			p.Devices = append(p.Devices, d)
		}
	}
	return nil
}

var defaultDevices = []engine.Device{
	{Path: "/dev/null", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3},
	{Path: "/dev/zero", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 5},
	{Path: "/dev/full", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 7},
	{Path: "/dev/random", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 8},
	{Path: "/dev/urandom", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 9},
	{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Major: 5, Minor: 0},
}

const defaultUmask = 0o22

func compileProcess(s *specs.Spec, sp *specs.Process) (*engine.Process, error) {
	p := &engine.Process{
		Args: slices.Clone(sp.Args), Env: slices.Clone(sp.Env), Cwd: path.Clean("/" + sp.Cwd), NoNewPrivs: sp.NoNewPrivileges,
		User:    engine.User{UID: sp.User.UID, GID: sp.User.GID, Groups: slices.Clone(sp.User.AdditionalGids), Umask: defaultUmask},
		Console: engine.Console{Terminal: sp.Terminal},
	}
	if sp.ApparmorProfile != "unconfined" {
		p.AppArmor = sp.ApparmorProfile
	}
	p.SELinux = sp.SelinuxLabel
	if sp.User.Umask != nil {
		p.Umask = *sp.User.Umask
	}
	if sp.ConsoleSize != nil {
		p.Columns, p.Lines = uint32(sp.ConsoleSize.Width), uint32(sp.ConsoleSize.Height)
	}
	if sp.OOMScoreAdj != nil {
		p.OOMScoreAdj, p.OOMScoreSet = *sp.OOMScoreAdj, true
	}
	var err error
	if p.Scheduling, err = compileScheduling(sp); err != nil {
		return nil, err
	}
	if c := sp.Capabilities; c != nil {
		for _, set := range []struct {
			names []string
			mask  *uint64
		}{
			{c.Bounding, &p.Capabilities.Bounding}, {c.Effective, &p.Capabilities.Effective}, {c.Permitted, &p.Capabilities.Permitted},
			{c.Inheritable, &p.Capabilities.Inheritable}, {c.Ambient, &p.Capabilities.Ambient},
		} {
			for _, name := range set.names {
				n := slices.Index(capabilityNames, strings.TrimPrefix(name, "CAP_"))
				if n < 0 {
					return nil, &UnsupportedError{"process.capabilities", name}
				}
				*set.mask |= 1 << n
			}
		}
	}
	for _, l := range sp.Rlimits {
		n := slices.Index(rlimitNames, strings.TrimPrefix(l.Type, "RLIMIT_"))
		if n < 0 {
			return nil, &UnsupportedError{"process.rlimits", l.Type}
		}
		p.Rlimits = append(p.Rlimits, engine.Rlimit{Resource: uint64(n), Soft: l.Soft, Hard: l.Hard})
	}
	if s.Linux.Seccomp != nil {
		filter, err := seccomp.Compile(s.Linux.Seccomp)
		if err != nil {
			return nil, fmt.Errorf("compile seccomp profile: %w", err)
		}
		p.Seccomp = filter
		if p.SeccompFlags, err = seccomp.Flags(s.Linux.Seccomp); err != nil {
			return nil, fmt.Errorf("compile seccomp profile: %w", err)
		}
	}
	return p, nil
}

// capabilityNames are the kernel's, by number (linux/capability.h).
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT",
	"SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE",
	"AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
	"PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// rlimitNames are the kernel's, by number (asm-generic/resource.h).
var rlimitNames = []string{
	"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE",
	"RTPRIO", "RTTIME",
}
