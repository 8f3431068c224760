package cri

import (
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pieceBytes is how much of a list goes into one message of a stream: well below what a client takes.
const pieceBytes = 1 << 20

// inPieces sends a list in messages of at least one item. Nothing is sent of an empty list; the end of the stream says that it is.
func inPieces[T proto.Message](all []T, send func([]T) error) error {
	for len(all) > 0 {
		n, size := 1, proto.Size(all[0])
		for n < len(all) && size+proto.Size(all[n]) <= pieceBytes {
			size += proto.Size(all[n])
			n++
		}
		if err := send(all[:n]); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}

// StreamPodSandboxes is ListPodSandbox in pieces.
func (s *runtimeService) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, stream runtimeapi.RuntimeService_StreamPodSandboxesServer) error {
	list, err := s.ListPodSandbox(stream.Context(), &runtimeapi.ListPodSandboxRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inPieces(list.Items, func(some []*runtimeapi.PodSandbox) error {
		return stream.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: some})
	})
}

// StreamContainers is ListContainers in pieces.
func (s *runtimeService) StreamContainers(r *runtimeapi.StreamContainersRequest, stream runtimeapi.RuntimeService_StreamContainersServer) error {
	list, err := s.ListContainers(stream.Context(), &runtimeapi.ListContainersRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inPieces(list.Containers, func(some []*runtimeapi.Container) error {
		return stream.Send(&runtimeapi.StreamContainersResponse{Containers: some})
	})
}

// StreamContainerStats is ListContainerStats in pieces.
func (s *runtimeService) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, stream runtimeapi.RuntimeService_StreamContainerStatsServer) error {
	list, err := s.ListContainerStats(stream.Context(), &runtimeapi.ListContainerStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inPieces(list.Stats, func(some []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: some})
	})
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s *runtimeService) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxStatsServer) error {
	list, err := s.ListPodSandboxStats(stream.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inPieces(list.Stats, func(some []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: some})
	})
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s *runtimeService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream runtimeapi.RuntimeService_StreamPodSandboxMetricsServer) error {
	list, err := s.ListPodSandboxMetrics(stream.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		return err
	}
	return inPieces(list.PodMetrics, func(some []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: some})
	})
}

// StreamImages is ListImages in pieces.
func (s *imageServer) StreamImages(r *runtimeapi.StreamImagesRequest, stream runtimeapi.ImageService_StreamImagesServer) error {
	list, err := s.ListImages(stream.Context(), &runtimeapi.ListImagesRequest{Filter: r.GetFilter()})
	if err != nil {
		return err
	}
	return inPieces(list.Images, func(some []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: some})
	})
}
