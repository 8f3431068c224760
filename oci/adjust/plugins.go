package adjust

import (
	"context"
	"net/netip"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Event is what plugins are told.
type Event int

// What happens to a sandbox.
const (
	RunPod     Event = iota // all of it is there but its being ready; an error undoes it
	StopPod                 // its containers have ended, the rest of it is still there
	RemovePod               // it is gone
	UpdatePod               // it is about to be updated; an error refuses that
	UpdatedPod              // it is
)

// What happens to a container. How it is created, an Adjuster sees; how it is updated, Plugins.Update.
const (
	CreatedContainer Event = iota + 100
	StartContainer         // it is about to be; an error makes the start fail
	StartedContainer
	UpdatedContainer
	StopContainer // it has exited, by itself or not
	RemoveContainer
)

// Sandbox is a sandbox as plugins see it. It is for reading only.
type Sandbox struct {
	ID, Handler string
	Config      *runtimeapi.PodSandboxConfig
	IPs         []netip.Addr
	PID         int    // of the process that is in its namespaces
	NetNS       string // path; "" with the host's network
	Cgroup      string // of its containers' parent
}

// States of a container, as plugins see it.
const (
	Creating = "Creating"
	Created  = "Created"
	Running  = "Running"
	Exited   = "Exited"
)

// Status is where a container is in its life. Times are nanoseconds since 1970; 0 is not yet.
type Status struct {
	State                            string // "" is Creating
	PID                              int
	CreatedAt, StartedAt, FinishedAt int64
	ExitCode                         int32
	Reason, Message                  string
}

// Update is what a plugin asks for another container than the one that it was told of.
type Update struct {
	ContainerID string
	Resources   *runtimeapi.LinuxContainerResources // what is set changes
	// MayFail says that what the plugin was told of goes on when the update cannot be done.
	MayFail bool
	// Evict says that the container is to be stopped, for this Reason; Resources is nil.
	Evict  bool
	Reason string
}

// Runtime is what plugins see of the daemon, and may ask for by themselves.
type Runtime interface {
	// Present lists what plugins are to know when they come: sandboxes that are ready, with their containers that have not exited.
	Present() ([]*Sandbox, []*Container)
	// Change does what a plugin asks for.
	Change(ctx context.Context, u Update) error
}
