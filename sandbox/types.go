package sandbox

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/store"
)

// PodState is where a sandbox is in its life.
type PodState string

// States of a sandbox.
const (
	PodCreating PodState = store.Creating
	PodReady    PodState = store.Ready
	PodNotReady PodState = store.NotReady
)

// ContainerState is where a container is in its life.
type ContainerState string

// States of a container.
const (
	ContainerCreating ContainerState = store.Creating
	ContainerCreated  ContainerState = store.Created
	ContainerRunning  ContainerState = store.Running
	ContainerExited   ContainerState = store.Exited
)

// Reasons of a container's end.
const (
	ReasonCompleted   = "Completed"   // exit code 0
	ReasonError       = "Error"       // any other
	ReasonOOMKilled   = "OOMKilled"   // by the kernel, for want of memory
	ReasonStartError  = "StartError"  // it never ran
	ReasonMonitorLost = "MonitorLost" // killed because the pod's monitor ended
	ReasonUnknown     = "Unknown"     // it ended where nobody saw it, as at a reboot
)

// Exit codes that no process gave.
const (
	exitStartError  = 128
	exitKilled      = 137
	exitMonitorLost = 255
)

// Pod is what is known of a sandbox. It is a copy; Config is shared and must not be changed.
type Pod struct {
	ID         string
	Config     *runtimeapi.PodSandboxConfig
	Handler    string
	State      PodState
	CreatedAt  time.Time
	IPs        []netip.Addr    // the primary address first; none with the host's network
	Attachment *cni.Attachment // nil when the network holds nothing for the sandbox; must not be changed
	MonitorPID int             // 0: none
	NetNS      string          // path of the pin; "" with the host's network
	Message    string          // what is wrong with it, for people
}

// Container is what is known of a container. It is a copy; pointers in it are shared and must not be changed.
type Container struct {
	ID, SandboxID                    string
	Config                           *runtimeapi.ContainerConfig
	ImageID, ImageRef                string
	State                            ContainerState
	CreatedAt, StartedAt, FinishedAt time.Time // zero: not yet
	ExitCode                         int32
	Reason, Message                  string
	PID                              int
	LogPath                          string // "" without a log
	Settings
}

// Settings are what a container's status repeats of its configuration, as it was understood.
type Settings struct {
	User       *runtimeapi.ContainerUser
	Resources  *runtimeapi.ContainerResources
	Mounts     []*runtimeapi.Mount
	StopSignal runtimeapi.Signal
}

// CreateRequest asks for a container.
type CreateRequest struct {
	SandboxID     string
	Config        *runtimeapi.ContainerConfig
	SandboxConfig *runtimeapi.PodSandboxConfig // not used: the sandbox's own counts
	ImageID       string
	ImageRef      string
	ImageDigest   string // of the manifest
	Image         spec.Image
}

// ExecResult is what a command gave. Each stream is cut at 16 MiB.
type ExecResult struct {
	Stdout, Stderr Output
	ExitCode       int32
}

// Close frees the disk that the output takes.
func (r ExecResult) Close() {
	r.Stdout.Close()
	r.Stderr.Close()
}

// describePod makes the copy that callers get. Preconditions: Manager.mu held.
func describePod(p *pod) Pod {
	out := Pod{ID: p.id, Config: p.shown(), Handler: p.rec.Handler, State: PodState(p.rec.State), CreatedAt: time.Unix(0, p.rec.CreatedAt),
		IPs: p.rec.IPs, Attachment: p.attachment, NetNS: p.rec.NetNS, Message: p.message}
	if p.link != nil {
		out.MonitorPID = p.link.process.PID
	}
	return out
}

// describeContainer makes the copy that callers get. Preconditions: Manager.mu held.
func describeContainer(c *container) Container {
	r := &c.rec
	out := Container{ID: c.id, SandboxID: c.pod.id, Config: c.config, ImageID: r.ImageID, ImageRef: r.ImageRef, State: ContainerState(r.State),
		CreatedAt: at(r.CreatedAt), StartedAt: at(r.StartedAt), FinishedAt: at(r.FinishedAt), ExitCode: r.ExitCode, Reason: r.Reason,
		Message: r.Message, LogPath: r.LogPath,
		Settings: Settings{User: c.user, Mounts: c.config.GetMounts(), StopSignal: c.stopSignal()}}
	if r.State == store.Running {
		out.PID = r.PID
	}
	if res := c.asked(); res != nil {
		out.Resources = &runtimeapi.ContainerResources{Linux: res}
	}
	return out
}

func at(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

// stopSignal is that of the request, by the name that it has there, else that of the image. Preconditions: Manager.mu held.
func (c *container) stopSignal() runtimeapi.Signal {
	if asked := c.config.GetStopSignal(); asked != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return asked
	}
	return criSignal(unix.Signal(c.rec.StopSignal))
}

// criSignal names a signal as the CRI does.
func criSignal(s unix.Signal) runtimeapi.Signal {
	const firstRealTime, lastRealTime = 34, 64
	name := unix.SignalName(s)
	switch {
	case s == firstRealTime:
		name = "SIGRTMIN"
	case s == lastRealTime:
		name = "SIGRTMAX"
	case s > firstRealTime && s < firstRealTime+16:
		name = fmt.Sprintf("SIGRTMINPLUS%d", int(s)-firstRealTime)
	case s >= firstRealTime+16 && s < lastRealTime:
		name = fmt.Sprintf("SIGRTMAXMINUS%d", lastRealTime-int(s))
	}
	return runtimeapi.Signal(runtimeapi.Signal_value["SIGNAL_"+name])
}
