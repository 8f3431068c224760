package engine

import "github.com/berthd/berth/oci/runtime/engine/codec"

// Plan is a container as the engine needs it: no names are looked up and no policy is left to decide.
type Plan struct {
	// Rootfs is the root file system, attached in the container's mount namespace only.
	Rootfs Mount
	Root
	// Mounts are attached in order.
	Mounts []Mount
	// Directories are made in the root when they are missing, mode 0755, owner root.
	Directories []string
	// Devices are made below /dev; none is made when a volume is mounted there.
	Devices []Device
	// Links are pairs of a path and what the symbolic link there says.
	Links []Link
	// Masked and Readonly are paths that are hidden and made read-only where they exist.
	Masked, Readonly []string
	// NewPID and NewCgroup ask for namespaces of the container's own; the mount namespace always is.
	NewPID, NewCgroup bool
	// PIDNamespace is the path of a namespace to join, when not empty.
	PIDNamespace string
	// CgroupPath is the container's path below each hierarchy; it tells the hierarchies' names.
	CgroupPath string
	Process    Process
	// Users is the pod's user namespace, in which all of the container is; nil is the host's.
	Users *UserNamespace
	// Pauses are the points at which the child waits until it is told to go on, for hooks.
	Pauses Point
}

// Root is how the root file system is attached.
type Root struct {
	// RootReadonly makes the root read-only once all mountpoints are there (runtime-spec config.md#root).
	RootReadonly bool
	// RootPropagation is MS_SHARED, MS_SLAVE or MS_PRIVATE for the whole tree, or 0 for slave.
	RootPropagation uint64
	// HostRoot is a folder of the host, when not empty. The root file system is attached there as well, before anything is mounted in it, and in the
	// container's mount namespace it is there with all its mounts until the root changes. Hooks find it there.
	HostRoot string
}

// Point is where a child can wait; several are a set.
type Point uint32

// The points.
const (
	Created  Point = 1 << iota // all is mounted; the root is still the host's
	Starting                   // all is done but execve
)

// Mount is one mount of a container.
type Mount struct {
	// Type is a file system's name, "bind", "cgroup" for the container's view of its cgroups, or TypeImage.
	Type string
	// Source is the path of a bind mount on the host, else a label.
	Source string
	// Target is an absolute path in the container.
	Target string
	// Options are the file system's own: "key=value" or "flag". Those of an image are an overlay's.
	Options []string
	// Set and Clear are MOUNT_ATTR_* bits.
	Set, Clear uint64
	// Propagation is MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE or 0, which is MS_SLAVE for a bind mount.
	Propagation uint64
	// Recursive binds what is mounted below the source too.
	Recursive bool
	// RecursiveAttributes applies Set and Clear to what is mounted below as well (rro).
	RecursiveAttributes bool
	// NoSymlinks refuses a target with a symbolic link in it: /proc, /sys and /dev (CVE-2019-19921).
	NoSymlinks bool
	// UIDs and GIDs map the owners of a bind mount's files: Inside on disk is Outside for who looks from the host, and so
	// Inside again in a user namespace with the same mapping. Both are empty, or neither is.
	UIDs, GIDs []IDMap
	// SubPath is what of an image is mounted, a folder or a file; empty is all. It is looked up in the image, links too.
	SubPath string
}

// Device is a device node.
type Device struct {
	Path         string
	Mode         uint32 // file type and permission bits
	Major, Minor uint32
	UID, GID     uint32 // the host's, also for a container in a user namespace: root there owns no device of the host
}

// Link is a symbolic link made below /dev.
type Link struct{ Path, Target string }

// Rlimit is one resource limit.
type Rlimit struct{ Resource, Soft, Hard uint64 }

// Capabilities are the five sets as bit masks; bit n is capability n (capabilities(7)).
type Capabilities struct{ Bounding, Effective, Permitted, Inheritable, Ambient uint64 }

// User is whom a process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32
	Umask    uint32
}

// Console is a process's terminal, if it has one.
type Console struct {
	Terminal       bool
	Columns, Lines uint32 // 0 leaves the kernel's
}

// Process is what is executed.
type Process struct {
	// Path is executed with Args; when it is empty, what Args begins with, looked for in the environment's PATH.
	Path      string
	Args, Env []string
	Cwd       string
	Stdin     bool
	User
	Console
	Capabilities Capabilities
	NoNewPrivs   bool
	Rlimits      []Rlimit
	Precedence
	// Seccomp is an array of struct sock_filter; empty means none.
	Seccomp      []byte
	SeccompFlags uint64
	Labels
}

// Precedence is what the kernel goes by when processes are in each other's way.
type Precedence struct {
	// OOMScoreAdj is written when OOMScoreSet.
	OOMScoreAdj int
	OOMScoreSet bool
	Scheduling
}

// Scheduling is what the schedulers of processors and of block devices go by; the zero value leaves the monitor's.
type Scheduling struct {
	// Scheduler is a struct sched_attr (sched_setattr(2)); empty is none.
	Scheduler []byte
	// IOPriority is as ioprio_set(2) has it; 0 is none.
	IOPriority uint32
}

// Labels are what security modules know a process by. At most one is set.
type Labels struct {
	// AppArmor names the profile that the program is executed under; empty leaves the monitor's own.
	AppArmor string
	// SELinux is the program's label; empty leaves the kernel to choose.
	SELinux string
}

// Code writes or reads p.
func (p *Plan) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		p.Rootfs.code(c)
		c.Bool(&p.RootReadonly)
		c.Uint64(&p.RootPropagation)
		codec.List(c, &p.Mounts, func(c *codec.Codec, m *Mount) { m.code(c) })
		c.Strings(&p.Directories)
		codec.List(c, &p.Devices, func(c *codec.Codec, d *Device) { d.code(c) })
		codec.List(c, &p.Links, func(c *codec.Codec, l *Link) { c.String(&l.Path); c.String(&l.Target) })
		c.Strings(&p.Masked)
		c.Strings(&p.Readonly)
		c.Bool(&p.NewPID)
		c.Bool(&p.NewCgroup)
		c.String(&p.PIDNamespace)
		c.String(&p.CgroupPath)
		p.Process.Code(c)
		users := p.Users != nil
		if c.Bool(&users); users {
			if p.Users == nil {
				p.Users = &UserNamespace{Descriptor: -1}
			}
			CodeIDMaps(c, &p.Users.UIDs)
			CodeIDMaps(c, &p.Users.GIDs)
		}
		c.String(&p.HostRoot)
		c.Uint32((*uint32)(&p.Pauses))
	})
}

// CodeIDMaps writes or reads a mapping.
func CodeIDMaps(c *codec.Codec, list *[]IDMap) {
	codec.List(c, list, func(c *codec.Codec, m *IDMap) { c.Uint32(&m.Inside); c.Uint32(&m.Outside); c.Uint32(&m.Length) })
}

func (m *Mount) code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.String(&m.Type)
		c.String(&m.Source)
		c.String(&m.Target)
		c.Strings(&m.Options)
		c.Uint64(&m.Set)
		c.Uint64(&m.Clear)
		c.Uint64(&m.Propagation)
		c.Bool(&m.Recursive)
		c.Bool(&m.RecursiveAttributes)
		c.Bool(&m.NoSymlinks)
		CodeIDMaps(c, &m.UIDs)
		CodeIDMaps(c, &m.GIDs)
		c.String(&m.SubPath)
	})
}

func (d *Device) code(c *codec.Codec) {
	c.String(&d.Path)
	c.Uint32(&d.Mode)
	c.Uint32(&d.Major)
	c.Uint32(&d.Minor)
	c.Uint32(&d.UID)
	c.Uint32(&d.GID)
}

// Code writes or reads p.
func (p *Process) Code(c *codec.Codec) {
	c.Struct(func(c *codec.Codec) {
		c.Strings(&p.Args)
		c.Strings(&p.Env)
		c.String(&p.Cwd)
		c.Bool(&p.Terminal)
		c.Uint32(&p.Columns)
		c.Uint32(&p.Lines)
		c.Bool(&p.Stdin)
		c.Uint32(&p.UID)
		c.Uint32(&p.GID)
		c.Uint32s(&p.Groups)
		c.Uint32(&p.Umask)
		k := &p.Capabilities
		for _, set := range []*uint64{&k.Bounding, &k.Effective, &k.Permitted, &k.Inheritable, &k.Ambient} {
			c.Uint64(set)
		}
		c.Bool(&p.NoNewPrivs)
		codec.List(c, &p.Rlimits, func(c *codec.Codec, l *Rlimit) {
			c.Uint64(&l.Resource)
			c.Uint64(&l.Soft)
			c.Uint64(&l.Hard)
		})
		c.Int(&p.OOMScoreAdj)
		c.Bool(&p.OOMScoreSet)
		c.ByteSlice(&p.Seccomp)
		c.Uint64(&p.SeccompFlags)
		c.String(&p.AppArmor)
		c.String(&p.Path)
		c.String(&p.SELinux)
		c.ByteSlice(&p.Scheduler)
		c.Uint32(&p.IOPriority)
	})
}
