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
	// Spec is the specification, which adjusters change in place.
	Spec *specs.Spec
}
