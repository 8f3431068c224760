package store

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
)

// States of a record. A sandbox is Creating, Ready or NotReady; a container Creating, Created, Starting, Running or Exited.
const (
	Creating = "Creating"
	Ready    = "Ready"
	NotReady = "NotReady"
	Created  = "Created"
	Starting = "Starting"
	Running  = "Running"
	Exited   = "Exited"
)

// Process names a process for good: a pid alone is given to another one later.
type Process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // field 22 of /proc/PID/stat, in clock ticks since boot
}

// Pod is the record of a sandbox. What it names may exist on the host; what no record names is removed at the next start.
type Pod struct {
	ID         string `json:"id"`
	State      string `json:"state"`
	CreatedAt  int64  `json:"createdAt"` // nanoseconds since 1970
	Handler    string `json:"handler,omitempty"`
	ConfigHash string `json:"configHash"`
	Config     []byte `json:"config"` // PodSandboxConfig of the CRI, as protobuf
	Network
	Cgroup    string        `json:"cgroup"`              // parent of the containers' cgroups
	Ancestors []string      `json:"ancestors,omitempty"` // cgroups, outermost first, that berth makes above the containers'
	Monitor   Process       `json:"monitor"`
	BootID    string        `json:"bootID"`
	Runtime   *Runtime      `json:"runtime,omitempty"` // what its handler meant when it was made; absent: the native engine
	Resources *PodResources `json:"resources,omitempty"`
	LogFolder string        `json:"logFolder,omitempty"` // where its log_directory was when it was made, by no symbolic link; empty: not there
	// SELinuxLevel is the one that no other pod has; empty when the pod asked for one, or SELinux is off.
	SELinuxLevel string `json:"selinuxLevel,omitempty"`
}

// Network is what the network gave a pod.
type Network struct {
	NetNS      string          `json:"netns,omitempty"`      // path of the pin; empty with the host's network
	Attachment json.RawMessage `json:"attachment,omitempty"` // cni.Attachment, while the network holds anything for the pod
	IPs        []netip.Addr    `json:"ips,omitempty"`        // the pod's addresses, kept when the attachment is given back
}

// PodResources are what an update has changed of a sandbox's configuration: LinuxContainerResources of the CRI, as protobuf; absent: not changed.
type PodResources struct {
	Overhead  []byte `json:"overhead,omitempty"`
	Resources []byte `json:"resources,omitempty"`
}

// Runtime is another OCI runtime, as it is executed.
type Runtime struct {
	Path    string   `json:"path"`
	Root    string   `json:"root"` // its own state
	Options []string `json:"options,omitempty"`
}

// Container is the record of a container.
type Container struct {
	ID         string `json:"id"`
	SandboxID  string `json:"sandboxID"`
	State      string `json:"state"`
	CreatedAt  int64  `json:"createdAt"`           // nanoseconds since 1970, as the others
	StartedAt  int64  `json:"startedAt,omitempty"` // 0: never
	PID        int    `json:"pid,omitempty"`
	ConfigHash string `json:"configHash"`
	Config     []byte `json:"config"` // ContainerConfig of the CRI, as protobuf
	ImageID    string `json:"imageID"`
	ImageRef   string `json:"imageRef"`
	// ImageDigest is that of the manifest that the image was pulled by; absent in records of older daemons.
	ImageDigest string `json:"imageDigest,omitempty"`
	Place
	Limits
	End
}

// Limits are those of updates. Both are LinuxContainerResources of the CRI, as protobuf.
type Limits struct {
	Resources []byte `json:"resources,omitempty"` // in the place of Config's; absent: never updated
	Changing  []byte `json:"changing,omitempty"`  // what an update is about to apply, or has applied in part
}

// Place is what a container has on the host, and how it is run there.
type Place struct {
	SnapshotKey string          `json:"snapshotKey"`
	Cgroup      string          `json:"cgroup"`
	LogPath     string          `json:"logPath,omitempty"`
	StopSignal  int             `json:"stopSignal,omitempty"`
	User        json.RawMessage `json:"user,omitempty"`     // spec.User
	MakeDirs    []string        `json:"makeDirs,omitempty"` // folders that the engine makes in the root
}

// End is how a container ended.
type End struct {
	FinishedAt int64  `json:"finishedAt,omitempty"` // 0: not yet
	ExitCode   int32  `json:"exitCode,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`
}

// validate refuses a record that is whole, but is not the one that its place says.
func (p *Pod) validate(sandboxID string) error {
	switch {
	case p.ID != sandboxID:
		return fmt.Errorf("pod record names sandbox %q: %w", p.ID, ErrDamaged)
	case p.State != Creating && p.State != Ready && p.State != NotReady:
		return fmt.Errorf("pod record has state %q: %w", p.State, ErrDamaged)
	case !strings.HasPrefix(p.Cgroup, "/"):
		return fmt.Errorf("pod record has cgroup %q: %w", p.Cgroup, ErrDamaged)
	}
	return nil
}

func (c *Container) validate(sandboxID, containerID string) error {
	switch {
	case c.ID != containerID || c.SandboxID != sandboxID:
		return fmt.Errorf("container record names container %q of sandbox %q: %w", c.ID, c.SandboxID, ErrDamaged)
	case !strings.HasPrefix(c.Cgroup, "/"):
		return fmt.Errorf("container record has cgroup %q: %w", c.Cgroup, ErrDamaged)
	}
	switch c.State {
	case Creating, Created, Starting, Running, Exited:
		return nil
	}
	return fmt.Errorf("container record has state %q: %w", c.State, ErrDamaged)
}

// ValidID tells whether id has the form of a sandbox or container ID: 64 lower-case hex digits.
func ValidID(id string) bool {
	return len(id) == 64 && strings.Trim(id, "0123456789abcdef") == ""
}
