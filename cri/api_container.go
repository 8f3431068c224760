package cri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox"
)

// Bounds of /etc/passwd and /etc/group of an image, which are hostile (threat B11).
const (
	maxUserFileBytes = 10 << 20
	// bigUserFileBytes is more than any host has. Images with more wait for each other, so that many at once do not take much memory.
	bigUserFileBytes = 256 << 10
)

// bigUserFiles is the turn of the one container that is created with a file of more than bigUserFileBytes.
var bigUserFiles = make(chan struct{}, 1)

// CreateContainer composes an image with a sandbox. With the metadata and configuration of one that is created it answers with that
// one's ID.
func (s *runtimeService) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if err := checkContainerConfig(r.GetConfig()); err != nil {
		return nil, err
	}
	pod, err := s.pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	image, err := s.images.Image(r.GetConfig().GetImage().GetImage())
	if err != nil {
		return nil, err
	}
	if image.ArtifactType != "" {
		return nil, fmt.Errorf("config.image.image: %w: %q is an OCI artifact, of type %q: it can be mounted, and not be run",
			imageservice.ErrInvalidImage, bounded(imageservice.RedactReference(r.GetConfig().GetImage().GetImage())), image.ArtifactType)
	}
	config, err := s.findVolumes(ctx, r.GetConfig())
	if err != nil {
		return nil, err
	}
	hostile, done, err := s.specImage(ctx, image)
	if err != nil {
		return nil, err
	}
	defer done()
	containerID, err := s.containers.CreateContainer(ctx, sandbox.CreateRequest{
		SandboxID: pod.ID, Config: config, SandboxConfig: r.GetSandboxConfig(),
		ImageID: image.ID, ImageRef: image.ID, ImageDigest: image.Manifest.Digest.String(), Image: hostile,
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: containerID}, nil
}

// specImage is what an image says about how it wants to be run, with the files that its users are looked up in. The caller calls done when
// it needs them no more.
func (s *runtimeService) specImage(ctx context.Context, image imageservice.Image) (hostile spec.Image, done func(), err error) {
	done = func() {}
	passwd, group, err := s.userFiles(ctx, image.ID, bigUserFileBytes)
	if err != nil { // one is big, or cannot be read at all
		select {
		case bigUserFiles <- struct{}{}:
			done = func() { <-bigUserFiles }
		case <-ctx.Done():
			return spec.Image{}, nil, context.Cause(ctx)
		}
		if passwd, group, err = s.userFiles(ctx, image.ID, maxUserFileBytes); err != nil {
			done()
			return spec.Image{}, nil, err
		}
	}
	c := image.Config
	return spec.Image{
		User: c.User, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal,
		// The image service may hand the same slices to every container of the image (threat B13).
		Env: slices.Clone(c.Env), Entrypoint: slices.Clone(c.Entrypoint), Cmd: slices.Clone(c.Cmd), Volumes: slices.Clone(c.Volumes),
		Passwd: passwd, Group: group,
	}, done, nil
}

// userFiles reads the files that an image's users are looked up in, of at most max bytes each. It need not have them.
func (s *runtimeService) userFiles(ctx context.Context, imageID string, max int64) (passwd, group []byte, err error) {
	if passwd, err = s.images.ReadFile(ctx, imageID, "etc/passwd", max); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	if group, err = s.images.ReadFile(ctx, imageID, "etc/group", max); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	return passwd, group, nil
}

// StartContainer starts a created container.
func (s *runtimeService) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.containers.StartContainer(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer ends a container, after its grace period by force. One that has ended or is unknown is stopped.
func (s *runtimeService) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	if err := s.containers.StopContainer(ctx, r.GetContainerId(), timeout); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, by force when it runs. One that is unknown is removed.
func (s *runtimeService) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.containers.RemoveContainer(ctx, r.GetContainerId()); err != nil && !errors.Is(err, sandbox.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ReopenContainerLog makes a container's log file anew after it was renamed.
func (s *runtimeService) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := s.containers.ReopenLog(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ListContainers lists the containers that match every part of the filter, the newest first.
func (s *runtimeService) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	all := s.sortedContainers()
	answer := &runtimeapi.ListContainersResponse{Containers: make([]*runtimeapi.Container, 0, len(all))}
	for _, c := range all {
		if matchContainer(r.GetFilter(), c) {
			answer.Containers = append(answer.Containers, &runtimeapi.Container{
				Id: c.ID, PodSandboxId: c.SandboxID, Metadata: c.Config.GetMetadata(), Image: c.Config.GetImage(),
				ImageRef: c.ImageRef, ImageId: c.ImageID, State: containerState(c.State), CreatedAt: c.CreatedAt.UnixNano(),
				Labels: c.Config.GetLabels(), Annotations: c.Config.GetAnnotations(),
			})
		}
	}
	return answer, nil
}

// ContainerStatus describes one container.
func (s *runtimeService) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	c, err := s.containers.Container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	answer := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(c)}
	if r.GetVerbose() {
		text, err := marshal(containerInfo(c))
		if err != nil {
			return nil, err
		}
		answer.Info = map[string]string{"info": text}
	}
	return answer, nil
}

// sortedContainers are all containers, the newest first.
func (s *runtimeService) sortedContainers() []sandbox.Container {
	all := s.containers.Containers()
	slices.SortFunc(all, newestContainer)
	return all
}

// newestContainer puts the newest first.
func newestContainer(a, b sandbox.Container) int {
	return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(a.ID, b.ID))
}

// matchContainer says whether a container passes a filter. IDs in a filter may be the start of one.
func matchContainer(f *runtimeapi.ContainerFilter, c sandbox.Container) bool {
	return strings.HasPrefix(c.ID, f.GetId()) &&
		strings.HasPrefix(c.SandboxID, f.GetPodSandboxId()) &&
		(f.GetState() == nil || f.GetState().GetState() == containerState(c.State)) &&
		matchLabels(f.GetLabelSelector(), c.Config.GetLabels())
}

// containerState maps the state that package sandbox keeps.
func containerState(state sandbox.ContainerState) runtimeapi.ContainerState {
	switch state {
	case sandbox.ContainerCreating, sandbox.ContainerCreated:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case sandbox.ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case sandbox.ContainerExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// containerFacts is what a verbose status says about a container, as JSON.
type containerFacts struct {
	PID       int                         `json:"pid"`
	SandboxID string                      `json:"sandboxID"`
	Config    *runtimeapi.ContainerConfig `json:"config"`
}

// containerInfo collects them. The values of the environment stay out: they are secrets, and this is pasted into reports.
func containerInfo(c sandbox.Container) containerFacts {
	config := proto.CloneOf(c.Config)
	for _, e := range config.GetEnvs() {
		e.Value = nil
	}
	return containerFacts{PID: c.PID, SandboxID: c.SandboxID, Config: config}
}
