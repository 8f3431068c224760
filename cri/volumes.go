package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/oci/spec"
)

// findVolumes is lookUpVolumes, with errors as the kubelet counts them.
func (s *runtimeService) findVolumes(ctx context.Context, config *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	out, err := s.lookUpVolumes(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", crierrors.ErrImageVolumeMountFailed, err)
	}
	return out, nil
}

// lookUpVolumes finds the images that a container mounts, and what of them, and returns the configuration with their IDs in image_ref, which the
// container's status tells. A configuration without such mounts is returned as it is; else it is a copy.
func (s *runtimeService) lookUpVolumes(ctx context.Context, config *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	out := config
	for i, m := range config.GetMounts() {
		if m.GetImage().GetImage() == "" {
			continue
		}
		if out == config {
			out = proto.CloneOf(config)
		}
		field := "config.mounts[" + strconv.Itoa(i) + "]."
		image, err := s.images.Image(m.GetImage().GetImage())
		if err != nil {
			return nil, fmt.Errorf("%simage: %w", field, err)
		}
		out.Mounts[i].Image.ImageRef = image.ID
		if err := spec.ValidateMount(field, out.Mounts[i]); err != nil {
			return nil, err
		}
		sub := m.GetImageSubPath()
		if sub == "" {
			continue
		}
		err = s.images.CheckVolume(ctx, image.ID, sub)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, invalid(field+"image_sub_path", sub, "is not in image "+m.GetImage().GetImage())
		case errors.Is(err, imageservice.ErrNotVolume):
			return nil, invalid(field+"image_sub_path", sub, "is neither a folder nor a regular file of image "+m.GetImage().GetImage())
		case err != nil:
			return nil, fmt.Errorf("%simage_sub_path: %w", field, err)
		}
	}
	return out, nil
}
