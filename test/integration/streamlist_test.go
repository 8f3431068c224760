package integration_test

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// namesOf takes a stream to its end and names what came; no message may be empty.
func namesOf[M, T any](t *testing.T, stream grpc.ServerStreamingClient[M], err error, items func(*M) []T, name func(T) string) (names []string) {
	t.Helper()
	for err == nil {
		var m *M
		if m, err = stream.Recv(); err != nil {
			break
		}
		some := items(m)
		if len(some) == 0 {
			t.Error("a message is empty")
		}
		for _, one := range some {
			names = append(names, name(one))
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v, want its end", err)
	}
	slices.Sort(names)
	return names
}

// TestStreamedLists holds the six streams against what there is: each object once, and the end.
func TestStreamedLists(t *testing.T) {
	d := harness.Start(t)
	ctx, r := d.Context(), d.Runtime
	noPods, err := r.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	if got := namesOf(t, noPods, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId); len(got) != 0 {
		t.Errorf("sandboxes of a daemon without any: %q", got)
	}
	var pods, containers []string
	for i := range 8 {
		pod := d.RunPod(d.Pod(fmt.Sprintf("p%d", i)))
		pods = append(pods, pod.ID)
		for j := range 2 {
			containers = append(containers, pod.Run(d.Sleeper(fmt.Sprintf("c%d", j))).ID)
		}
	}
	slices.Sort(pods)
	slices.Sort(containers)
	check := func(what string, got, want []string) {
		t.Helper()
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	podStream, err := r.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{})
	check("sandboxes", namesOf(t, podStream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId), pods)
	podStream, err = r.StreamPodSandboxes(ctx, &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: pods[3]}})
	check("one sandbox", namesOf(t, podStream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId), pods[3:4])
	containerStream, err := r.StreamContainers(ctx, &runtimeapi.StreamContainersRequest{})
	check("containers", namesOf(t, containerStream, err, (*runtimeapi.StreamContainersResponse).GetContainers, (*runtimeapi.Container).GetId), containers)
	statsStream, err := r.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{})
	check("container statistics", namesOf(t, statsStream, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats,
		func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() }), containers)
	podStatsStream, err := r.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{})
	check("sandbox statistics", namesOf(t, podStatsStream, err, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats,
		func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() }), pods)
	metricsStream, err := r.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	check("metrics", namesOf(t, metricsStream, err, (*runtimeapi.StreamPodSandboxMetricsResponse).GetPodSandboxMetrics,
		(*runtimeapi.PodSandboxMetrics).GetPodSandboxId), pods)
	list, err := d.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var images []string
	for _, i := range list.Images {
		images = append(images, i.Id)
	}
	slices.Sort(images)
	imageStream, err := d.Images.StreamImages(ctx, &runtimeapi.StreamImagesRequest{})
	if check("images", namesOf(t, imageStream, err, (*runtimeapi.StreamImagesResponse).GetImages, (*runtimeapi.Image).GetId), images); len(images) == 0 {
		t.Error("there are no images")
	}
	d.Check()
}
