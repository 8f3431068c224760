package cri

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
)

func TestUpdateResources(t *testing.T) {
	w := newWorld(t)
	linux := &runtimeapi.LinuxContainerResources{CpuShares: 5}
	if _, err := w.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1", Linux: linux}); err != nil {
		t.Error(err)
	}
	if _, err := w.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "p1", Resources: linux}); err != nil {
		t.Error(err)
	}
	if u := w.sandboxes.updates; len(u) != 3 || u[0].GetCpuShares() != 5 || u[1] != nil || u[2].GetCpuShares() != 5 {
		t.Errorf("updates = %v", u)
	}
	for _, tc := range []struct {
		request *runtimeapi.UpdateContainerResourcesRequest
		err     error
		want    codes.Code
	}{
		{&runtimeapi.UpdateContainerResourcesRequest{}, nil, codes.InvalidArgument},
		{&runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1", Windows: &runtimeapi.WindowsContainerResources{}}, nil, codes.Unimplemented},
		{&runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1"}, fmt.Errorf("10 bytes in use: %w", sandbox.ErrState), codes.FailedPrecondition},
		{&runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1"}, sandbox.ErrNotFound, codes.NotFound},
		{&runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1"}, sandbox.ErrInvalid, codes.InvalidArgument},
		{&runtimeapi.UpdateContainerResourcesRequest{ContainerId: "c1"}, errors.New("trouble"), codes.Internal},
	} {
		w.sandboxes.fail["UpdateContainer"] = tc.err
		if _, err := w.runtime.UpdateContainerResources(t.Context(), tc.request); status.Code(err) != tc.want {
			t.Errorf("%v, %v: %v, want %v", tc.request, tc.err, err, tc.want)
		}
	}
	if _, err := w.runtime.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no ID: %v", err)
	}
}
