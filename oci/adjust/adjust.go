package adjust

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is a container that is being created. All but Spec is for reading only.
type Container struct {
	ID, SandboxID string
	// Handler is the runtime handler that the pod asked for; "" is the default one.
	Handler string
	Pod     *runtimeapi.PodSandboxConfig
	Config  *runtimeapi.ContainerConfig
	Image   Image
	// Spec is the specification, which adjusters change in place.
	Spec *specs.Spec

	// Sandbox and Status are what plugins see besides.
	Sandbox *Sandbox
	Status  Status
	// Resources is set by an adjuster that changed the limits that a request can set: they are these now, and are put into Spec afterwards.
	Resources *runtimeapi.LinuxContainerResources
	// Updates are of other containers, to be done before this one is created.
	Updates []Update
}

// Image is what a container is made of. Digests are "ALGORITHM:HEX", or "" where they are not known.
type Image struct {
	Name         string // as it was asked for
	Digest       string // of its manifest
	ConfigDigest string
}
