package cri

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
)

// drain takes a stream to its end: what names gives for each message, which must be of one item at least.
func drain[T any](t *testing.T, stream grpc.ServerStreamingClient[T], err error, names func(*T) []string) (all []string, messages int) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; messages++ {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all, messages
		}
		if err != nil {
			t.Fatal(err)
		}
		some := names(m)
		if len(some) == 0 {
			t.Errorf("message %d is empty", messages)
		}
		all = append(all, some...)
	}
}

// A node with 10,000 containers has a list that fits into no message.
func TestStreamedListsOfTenThousand(t *testing.T) {
	const many = 10_000
	w := newWorld(t)
	label := map[string]string{"big": strings.Repeat("x", 2<<10)}
	pod, container := podConfig(), containerConfig("r/x:1")
	pod.Annotations, container.Annotations = label, label
	for i := range many {
		w.sandboxes.pods = append(w.sandboxes.pods, sandbox.Pod{ID: fmt.Sprintf("p%04d", i), Config: pod, State: sandbox.PodReady})
		w.sandboxes.containers = append(w.sandboxes.containers, sandbox.Container{ID: fmt.Sprintf("c%04d", i), SandboxID: "p0000", Config: container, State: sandbox.ContainerRunning})
	}
	if _, err := w.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("ListContainers = %v, want ResourceExhausted: the test is too small", err)
	}
	check := func(prefix string, got []string, messages int) {
		t.Helper()
		seen := map[string]int{}
		for _, id := range got {
			seen[id]++
		}
		for i := range many {
			if id := fmt.Sprintf("%s%04d", prefix, i); seen[id] != 1 {
				t.Errorf("%s came %d times", id, seen[id])
			}
		}
		if len(got) != many || messages < 20 || messages > 100 {
			t.Errorf("%d items in %d messages", len(got), messages)
		}
	}
	containers, err := w.runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	got, n := drain(t, containers, err, func(m *runtimeapi.StreamContainersResponse) (ids []string) {
		if size := proto.Size(m); size > 2*pieceBytes {
			t.Errorf("a message has %d bytes", size)
		}
		for _, c := range m.Containers {
			ids = append(ids, c.Id)
		}
		return ids
	})
	check("c", got, n)
	pods, err := w.runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{})
	got, n = drain(t, pods, err, func(m *runtimeapi.StreamPodSandboxesResponse) (ids []string) {
		for _, p := range m.PodSandboxes {
			ids = append(ids, p.Id)
		}
		return ids
	})
	check("p", got, n)
}

func TestStreamedLists(t *testing.T) {
	w := newWorld(t)
	big := strings.Repeat("x", 300<<10) // three fit into a piece
	var pods, containers, images []string
	for i := range 10 {
		pod, container := podConfig(), containerConfig("r/x:1")
		pod.Annotations, container.Annotations = map[string]string{"big": big}, map[string]string{"big": big}
		container.Labels = map[string]string{"odd": fmt.Sprint(i % 2)}
		pods, containers, images = append(pods, fmt.Sprintf("p%d", i)), append(containers, fmt.Sprintf("c%d", i)), append(images, fmt.Sprintf("sha256:%d", i))
		w.sandboxes.pods = append(w.sandboxes.pods, sandbox.Pod{ID: pods[i], Config: pod, State: sandbox.PodReady})
		w.sandboxes.containers = append(w.sandboxes.containers, sandbox.Container{ID: containers[i], SandboxID: pods[i], Config: container, State: sandbox.ContainerRunning})
		w.images.images = append(w.images.images, imageservice.Image{ID: images[i], RepoTags: []string{big}})
	}
	ctx := t.Context()
	check := func(name string, want, got []string, messages int) {
		t.Helper()
		slices.Sort(got)
		if !slices.Equal(want, got) || messages < 2 || messages >= len(want) {
			t.Errorf("%s: %v in %d messages, want %v", name, got, messages, want)
		}
	}
	podStream, err := w.runtime.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	got, n := drain(t, podStream, err, func(m *runtimeapi.StreamPodSandboxesResponse) (ids []string) {
		for _, p := range m.PodSandboxes {
			ids = append(ids, p.Id)
		}
		return ids
	})
	check("sandboxes", pods, got, n)
	containerIDs := func(m *runtimeapi.StreamContainersResponse) (ids []string) {
		for _, c := range m.Containers {
			ids = append(ids, c.Id)
		}
		return ids
	}
	containerStream, err := w.runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	got, n = drain(t, containerStream, err, containerIDs)
	check("containers", containers, got, n)
	containerStream, err = w.runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"odd": "1"}}})
	if got, _ = drain(t, containerStream, err, containerIDs); len(got) != 5 {
		t.Errorf("containers with a label: %v", got)
	}
	containerStream, err = w.runtime.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: "none"}})
	if got, n = drain(t, containerStream, err, containerIDs); n != 0 {
		t.Errorf("no containers: %v in %d messages", got, n)
	}
	statsStream, err := w.runtime.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
	got, n = drain(t, statsStream, err, func(m *runtimeapi.StreamContainerStatsResponse) (ids []string) {
		for _, s := range m.ContainerStats {
			ids = append(ids, s.GetAttributes().GetId())
		}
		return ids
	})
	check("container stats", containers, got, n)
	podStatsStream, err := w.runtime.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
	got, n = drain(t, podStatsStream, err, func(m *runtimeapi.StreamPodSandboxStatsResponse) (ids []string) {
		for _, s := range m.PodSandboxStats {
			ids = append(ids, s.GetAttributes().GetId())
		}
		return ids
	})
	if slices.Sort(got); !slices.Equal(got, pods) || n != 10 { // each has its container, too
		t.Errorf("sandbox stats: %v in %d messages", got, n)
	}
	metricsStream, err := w.runtime.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	got, n = drain(t, metricsStream, err, func(m *runtimeapi.StreamPodSandboxMetricsResponse) (ids []string) {
		for _, p := range m.PodSandboxMetrics {
			ids = append(ids, p.PodSandboxId)
		}
		return ids
	})
	if slices.Sort(got); !slices.Equal(got, pods) || n != 1 {
		t.Errorf("metrics: %v in %d messages", got, n)
	}
	imageStream, err := w.image.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	got, n = drain(t, imageStream, err, func(m *runtimeapi.StreamImagesResponse) (ids []string) {
		for _, i := range m.Images {
			ids = append(ids, i.Id)
		}
		return ids
	})
	check("images", images, got, n)

	w.images.fail["Image"] = errors.New("trouble")
	imageStream, err = w.image.StreamImages(ctx, &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "x"}}})
	if err == nil {
		_, err = imageStream.Recv()
	}
	if status.Code(err) != codes.Internal {
		t.Errorf("a list that fails: %v", err)
	}
}
