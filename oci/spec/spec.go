package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Image is what an image says about itself. All of it is hostile.
type Image struct {
	User, WorkingDir, StopSignal string
	Env, Entrypoint, Cmd         []string
	// Passwd and Group are the image's /etc/passwd and /etc/group, nil when it has none.
	Passwd, Group []byte
	Volumes       []string
}

// Host is what the daemon knows about the host and about itself. Package host gathers it.
type Host struct {
	// Capabilities are those that the daemon holds in its effective and its bounding set, as CAP_ names.
	Capabilities []string
	// OOMScoreAdj is the daemon's own. Without CAP_SYS_RESOURCE nothing lower can be given.
	OOMScoreAdj int
	// RlimitHard maps RLIMIT_ names to the daemon's own hard limits. Without CAP_SYS_RESOURCE nothing higher can be given.
	RlimitHard map[string]uint64
	// Rlimits are the operator's defaults for containers; RLIMIT_NOFILE is 1024:524288 when they leave it out.
	Rlimits []specs.POSIXRlimit
	// PidsLimit is the operator's default, in tasks; 0 sets none.
	PidsLimit int64
	Cgroups
	// Devices are all device nodes below the host's /dev, for privileged containers; they change while the daemon runs.
	Devices []specs.LinuxDevice
	DevicePolicy
	// Hostname is the HOSTNAME of containers whose pod has no name of its own.
	Hostname string
	// Arch is the host's architecture, as GOARCH, and Kernel its version: seccomp profiles may depend on them.
	Arch   string
	Kernel [2]uint64
	// Seccomp tells that the kernel filters system calls.
	Seccomp bool
	// AppArmor tells which profiles are loaded.
	AppArmor AppArmor
	// SELinux is what labels are made of. Where it is not enabled, a request's options mean nothing.
	SELinux SELinux
}

// Cgroups are what the mounted cgroup hierarchies can do.
type Cgroups struct {
	// CgroupV2 tells that the unified hierarchy has the controllers.
	CgroupV2 bool
	// Controllers are those that can be used; nil means that all can.
	Controllers []string
	// NoDeviceRules tells that no cgroup can keep a container from a device node that it has. Then it gets none: CAP_MKNOD is
	// withheld, and its root file system is to be mounted nodev.
	NoDeviceRules bool
	// SwapLimit tells that swap can be limited (memory.swap.max or memory.memsw.limit_in_bytes).
	SwapLimit bool
}

// DevicePolicy is what the operator wants of devices.
type DevicePolicy struct {
	// NoHostDevices keeps the host's devices from privileged containers.
	NoHostDevices bool
	// OwnedByUser gives the devices of a request to the user and the group that it names.
	OwnedByUser bool
	// ForAll are devices that all containers get. They have passed CheckDevice.
	ForAll []*runtimeapi.Device
}

// AppArmor is the state of AppArmor on the host.
type AppArmor struct {
	Enabled bool
	Default string   // the profile for containers that name none; empty when none is loaded
	Missing string   // why none is
	Loaded  []string // profiles that a container may name
}

// SELinux is the state of SELinux as it matters to containers.
type SELinux struct {
	Enabled bool
	// Process and File are the labels that the host's policy has for containers; empty ones are container_t's and container_file_t's.
	Process, File string
}

// Pod is the sandbox that a container runs in.
type Pod struct {
	Config *runtimeapi.PodSandboxConfig
	// Level is the pod's own SELinux level, for containers whose request names none.
	Level string
	// HostsPath, ResolvPath and HostnamePath are the pod's files on the host; an empty path mounts nothing.
	HostsPath, ResolvPath, HostnamePath string
	// ShmPath is the pod's /dev/shm on the host. A pod in the host's ipc namespace uses the host's.
	ShmPath string
	// PIDPath is the pod's shared pid namespace, empty when its containers have their own.
	PIDPath string
}

// Input is all that a specification is made of.
type Input struct {
	Pod         Pod
	Container   *runtimeapi.ContainerConfig
	Image       Image
	Host        Host
	ContainerID string
	// CgroupPath is the container's cgroup below each hierarchy's root.
	CgroupPath string
	// TargetPIDNS is the pid namespace of the container that namespace_options.target_id names.
	TargetPIDNS string
	// SeccompProfile is the content of the file that LocalhostSeccomp names.
	SeccompProfile []byte
	// Devices maps each host_path of the request's devices to what is there: one device, or all below a folder, with
	// their paths on the host.
	Devices map[string][]specs.LinuxDevice
}

// builder makes one specification.
type builder struct {
	in         Input
	security   *runtimeapi.LinuxContainerSecurityContext
	privileged bool
	users      UserMappings // of the pod's user namespace
	spec       *specs.Spec
	notes      []Note
}

// Container makes the container's specification. The root is at "rootfs", relative to a bundle. The errors are *InvalidError.
func Container(in Input) (*specs.Spec, []Note, error) {
	if err := ValidateContainer(in.Container); err != nil {
		return nil, nil, err
	}
	b := &builder{in: in, security: in.Container.GetLinux().GetSecurityContext()}
	b.privileged = b.security.GetPrivileged()
	if b.privileged && !in.Pod.Config.GetLinux().GetSecurityContext().GetPrivileged() {
		return nil, nil, invalid(fieldSecurity+"privileged", "true", "must not be set in a pod that is not privileged")
	}
	b.spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: b.security.GetReadonlyRootfs()},
		Process: &specs.Process{NoNewPrivileges: b.security.GetNoNewPrivs(), Terminal: in.Container.GetTty()},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
	for _, part := range []func() error{
		b.setUsers,
		b.process, b.capabilities, b.limits, // the process
		b.namespaces, b.cgroup, b.mounts, b.devices, b.resources, // what it finds
		b.paths, b.seccomp, b.appArmor, b.seLinux, // what it must not do
	} {
		if err := part(); err != nil {
			return nil, nil, err
		}
	}
	return b.spec, b.notes, nil
}

func (b *builder) note(field, value, rule string) {
	b.notes = append(b.notes, Note{Field: field, Value: value, Rule: rule})
}

// holds tells whether the daemon has a capability.
func (b *builder) holds(capability string) bool {
	return slices.Contains(b.in.Host.Capabilities, capability)
}

// process sets what is executed, as whom, where, and with which environment.
func (b *builder) process() error {
	p := b.spec.Process
	user, err := ContainerUser(b.in.Container, b.in.Image)
	if err != nil {
		return err
	}
	if err := b.checkMapped(user); err != nil {
		return err
	}
	p.User = specs.User{UID: user.UID, GID: user.GID, AdditionalGids: user.Groups}
	if p.Args, err = arguments(b.in.Container, b.in.Image); err != nil {
		return err
	}
	if p.Cwd, err = workingDir(b.in.Container, b.in.Image); err != nil {
		return err
	}
	hostname := b.in.Pod.Config.GetHostname()
	if hostname == "" {
		hostname = b.in.Host.Hostname
	}
	p.Env, err = environment(b.in.Container, b.in.Image, hostname, user.Home)
	return err
}

// limits sets resource limits and the out-of-memory score. The score is always set: the container would inherit the
// monitor's, which is not for it.
func (b *builder) limits() error {
	const ownNofileSoft, ownNofileHard = 1024, 524288 // systemd's: select(2) breaks above 1024, programs that know raise it
	rlimits := slices.Clone(b.in.Host.Rlimits)
	if !slices.ContainsFunc(rlimits, func(r specs.POSIXRlimit) bool { return r.Type == "RLIMIT_NOFILE" }) {
		hard := uint64(ownNofileHard)
		if most, ok := b.in.Host.RlimitHard["RLIMIT_NOFILE"]; ok && !b.holds("CAP_SYS_RESOURCE") {
			hard = min(hard, most)
		}
		rlimits = append(rlimits, specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: min(ownNofileSoft, hard), Hard: hard})
	}
	for i := range rlimits {
		r := &rlimits[i]
		most, ok := b.in.Host.RlimitHard[r.Type]
		if ok && !b.holds("CAP_SYS_RESOURCE") && r.Hard > most {
			b.note("rlimits", r.Type, "clamped to the daemon's own hard limit: it lacks CAP_SYS_RESOURCE")
			r.Hard = most
		}
		r.Soft = min(r.Soft, r.Hard)
	}
	b.spec.Process.Rlimits = rlimits

	asked := b.in.Container.GetLinux().GetResources()
	score := oomScore(asked, b.in.Host)
	if asked.GetOomScoreAdj() != 0 && score != int(asked.GetOomScoreAdj()) {
		b.note(fieldResources+"oom_score_adj", i64toa(asked.GetOomScoreAdj()), "clamped to the daemon's own, "+itoa(score)+": it lacks CAP_SYS_RESOURCE")
	}
	b.spec.Process.OOMScoreAdj = &score
	return nil
}

// paths sets what of /proc and /sys is hidden or read-only. A privileged container sees all of it. A request in a pod with a
// user namespace means what it says, also when it names nothing: there procMount Unmasked is allowed, and what the kernel
// lets root of a user namespace do is all that such a container can do.
func (b *builder) paths() error {
	if b.privileged {
		return nil
	}
	b.spec.Linux.MaskedPaths = slices.Clone(b.security.GetMaskedPaths())
	b.spec.Linux.ReadonlyPaths = slices.Clone(b.security.GetReadonlyPaths())
	if b.users.own() {
		return nil
	}
	if len(b.spec.Linux.MaskedPaths) == 0 {
		b.spec.Linux.MaskedPaths = []string{
			"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
			"/sys/devices/virtual/powercap", // power readings leak what neighbours compute (GHSA-7ww5-4wqc-m92c)
		}
	}
	if len(b.spec.Linux.ReadonlyPaths) == 0 {
		b.spec.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	return nil
}

// MakeDirs returns the folders that the engine makes in the container's root, mode 0755, owner root, where they are missing:
// the image's volumes, which live in the writable layer as with CRI-O's default. All are clean and absolute, and none is
// where the kernel's file systems are mounted. Mounts have their mountpoints made anyway.
func MakeDirs(img Image) ([]string, error) {
	var out []string
	for _, v := range img.Volumes {
		if strings.ContainsRune(v, 0) || len(v) > maxPath {
			return nil, invalid("image config Volumes", v, "must be paths of at most %d bytes without NUL", maxPath)
		}
		if p := cleanPath(v); p != "/" && !slices.Contains(out, p) && !below(p, "/proc") && !below(p, "/sys") && !below(p, "/dev") {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out, nil
}

// StopSignal returns the signal that asks the container to end: the request's, else the image's, else SIGTERM.
func StopSignal(cfg *runtimeapi.ContainerConfig, img Image) (unix.Signal, error) {
	if s := cfg.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return criSignal(s)
	}
	if img.StopSignal != "" {
		return imageSignal(img.StopSignal)
	}
	return unix.SIGTERM, nil
}
