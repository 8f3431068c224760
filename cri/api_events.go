package cri

import (
	"context"
	"errors"
	"slices"

	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

// Events tells what happens to sandboxes and containers. Its errors are those of package sandbox.
type Events interface {
	// Events calls back first ready, once nothing can be missed, and then each for every event, until ctx ends or a callback returns an error.
	Events(ctx context.Context, ready func() error, each func(sandbox.Event) error) error
}

// GetContainerEvents sends what happens to sandboxes and containers from now on. The answer's header says that nothing is missed any more.
// A client that does not keep up gets ResourceExhausted, and lists anew.
func (s *runtimeService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream runtimeapi.RuntimeService_GetContainerEventsServer) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(s.ending, func() { cancel(sandbox.ErrClosing) })()
	err := s.events.Events(ctx,
		func() error { return stream.SendHeader(metadata.MD{}) },
		func(e sandbox.Event) error { return stream.Send(s.eventMessage(e)) })
	if cause := context.Cause(ctx); errors.Is(cause, sandbox.ErrClosing) {
		return cause
	}
	return err
}

// eventMessage describes an event.
func (s *runtimeService) eventMessage(e sandbox.Event) *runtimeapi.ContainerEventResponse {
	m := &runtimeapi.ContainerEventResponse{ContainerId: e.ID, ContainerEventType: eventType(e.Type), CreatedAt: e.At.UnixNano(), PodSandboxStatus: sandboxStatus(e.Pod)}
	containers := slices.Clone(e.Containers) // others may have the same event
	slices.SortFunc(containers, newestContainer)
	for _, c := range containers {
		m.ContainersStatuses = append(m.ContainersStatuses, s.containerStatus(c))
	}
	return m
}

func eventType(t sandbox.EventType) runtimeapi.ContainerEventType {
	switch t {
	case sandbox.EventStarted:
		return runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	case sandbox.EventStopped:
		return runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	case sandbox.EventDeleted:
		return runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	}
	return runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
}
