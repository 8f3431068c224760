package cri

import (
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

// Reasons of a container that has exited, when package sandbox knows nothing better.
const (
	reasonCompleted = "Completed"
	reasonError     = "Error"
)

// containerStatus describes a container.
func (s *runtimeService) containerStatus(c sandbox.Container) *runtimeapi.ContainerStatus {
	status := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: c.Config.GetMetadata(), State: containerState(c.State),
		CreatedAt: c.CreatedAt.UnixNano(), StartedAt: nanoseconds(c.StartedAt), FinishedAt: nanoseconds(c.FinishedAt),
		ExitCode: c.ExitCode, Reason: c.Reason, Message: validText(c.Message),
		Image: s.imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID,
		Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
		Mounts: c.Mounts, LogPath: c.LogPath, Resources: s.resources(c), User: c.User, StopSignal: c.StopSignal,
	}
	if status.State == runtimeapi.ContainerState_CONTAINER_EXITED && status.Reason == "" {
		status.Reason = reasonCompleted
		if c.ExitCode != 0 {
			status.Reason = reasonError
		}
	}
	return status
}

// resources are a container's limits: those that the kernel keeps while it runs.
func (s *runtimeService) resources(c sandbox.Container) *runtimeapi.ContainerResources {
	if c.State != sandbox.ContainerRunning {
		return c.Resources
	}
	linux, err := s.limits.Resources(c.ID)
	if err != nil || linux == nil { // it is being removed
		return c.Resources
	}
	return &runtimeapi.ContainerResources{Linux: linux}
}

// imageSpec is a container's image by the name that people know it by: the kubelet writes it into the pod's status, and what it asked
// for is an ID. An image that is gone keeps what was asked for.
func (s *runtimeService) imageSpec(c sandbox.Container) *runtimeapi.ImageSpec {
	asked := c.Config.GetImage()
	name := asked.GetImage()
	if image, err := s.images.Image(c.ImageID); err == nil {
		switch user := asked.GetUserSpecifiedImage(); {
		case len(image.RepoTags) > 0:
			name = bestTag(image.RepoTags, user)
		case len(image.RepoDigests) > 0:
			name = image.RepoDigests[0]
		}
	}
	return &runtimeapi.ImageSpec{
		Image: name, Annotations: asked.GetAnnotations(), UserSpecifiedImage: asked.GetUserSpecifiedImage(),
		RuntimeHandler: asked.GetRuntimeHandler(),
	}
}

// bestTag is the one of an image's tags that its user wrote, perhaps without registry or tag; else the first.
func bestTag(tags []string, user string) string {
	for _, tag := range tags {
		for _, wrote := range []string{user, user + ":latest"} {
			if user != "" && (tag == wrote || strings.HasSuffix(tag, "/"+wrote)) {
				return tag
			}
		}
	}
	return tags[0]
}

// nanoseconds is 0 for a time that has not come.
func nanoseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// validText makes a string that a message can carry: protobuf refuses to send invalid UTF-8.
func validText(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
