package classes

import (
	"github.com/berthd/berth/oci/adjust"
)

// kind names the annotations of a kind of class, as containerd and CRI-O have them.
type kind struct{ container, pod, prefix string }

// BlockIOAnnotation is a container's own annotation that names its class of block I/O.
const BlockIOAnnotation = "io.kubernetes.cri.blockio-class"

var (
	blockIOKind = kind{BlockIOAnnotation, "blockio.resources.beta.kubernetes.io/pod", "blockio.resources.beta.kubernetes.io/container."}
	serviceKind = kind{"io.kubernetes.cri.rdt-class", "rdt.resources.beta.kubernetes.io/pod", "rdt.resources.beta.kubernetes.io/container."}
)

// class finds a container's class and the annotation that names it; without one both are empty.
func (k kind) class(c *adjust.Container) (name, field string) {
	pod := c.Pod.GetAnnotations()
	own := k.prefix + c.Config.GetMetadata().GetName()
	for _, a := range []struct {
		in         string
		key        string
		annotation map[string]string
	}{{"config", k.container, c.Config.GetAnnotations()}, {"pod", own, pod}, {"pod", k.pod, pod}} {
		if class := a.annotation[a.key]; class != "" {
			return class, a.in + ".annotations[" + a.key + "]"
		}
	}
	return "", ""
}
