package cri

import (
	"context"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

// watch subscribes, and returns once nothing can be missed.
func watch(t *testing.T, w *world) runtimeapi.RuntimeService_GetContainerEventsClient {
	t.Helper()
	stream, err := w.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestContainerEvents(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.events = make(chan sandbox.Event)
	stream := watch(t, w)
	pod := sandbox.Pod{ID: "p1", Config: podConfig(), State: sandbox.PodReady}
	containers := []sandbox.Container{
		{ID: "c1", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerExited, ExitCode: 3, CreatedAt: time.Unix(1, 0)},
		{ID: "c2", SandboxID: "p1", Config: containerConfig("r/x:1"), State: sandbox.ContainerRunning, CreatedAt: time.Unix(2, 0)},
	}
	for i, tc := range []struct {
		sent sandbox.EventType
		want runtimeapi.ContainerEventType
	}{
		{sandbox.EventCreated, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT},
		{sandbox.EventStarted, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT},
		{sandbox.EventStopped, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT},
		{sandbox.EventDeleted, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT},
	} {
		w.sandboxes.events <- sandbox.Event{Type: tc.sent, ID: "c1", At: time.Unix(int64(10+i), 5), Pod: pod, Containers: containers}
		got, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		s := got.GetContainersStatuses()
		if got.ContainerId != "c1" || got.ContainerEventType != tc.want || got.CreatedAt != int64(10+i)*1e9+5 || got.GetPodSandboxStatus().GetId() != "p1" ||
			got.PodSandboxStatus.GetMetadata().GetUid() != "u" || len(s) != 2 || s[0].GetId() != "c2" || s[1].GetExitCode() != 3 {
			t.Errorf("event = %v", got)
		}
	}
	if containers[0].ID != "c1" {
		t.Error("what others may have too is sorted")
	}
	w.sandboxes.fail["Events"] = sandbox.ErrLagged
	close(w.sandboxes.events)
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a stream that lags ends with %v, want ResourceExhausted", err)
	}
}

// TestEventStreamsEndWithTheServer: a stream that goes on for ever does not hold up the daemon's end, and its client knows why.
func TestEventStreamsEndWithTheServer(t *testing.T) {
	w := newWorld(t)
	stream := watch(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	w.server.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("the server waited for the stream")
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || err == io.EOF {
		t.Errorf("the stream ends with %v, want Unavailable", err)
	}
}
