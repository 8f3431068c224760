package cri

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
)

// ListImages lists the images, or the one that the filter names.
func (s *imageServer) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	if reference := r.GetFilter().GetImage().GetImage(); reference != "" {
		image, err := s.images.Image(reference)
		switch {
		case errors.Is(err, imageservice.ErrNotFound):
			return &runtimeapi.ListImagesResponse{}, nil
		case err != nil:
			return nil, err
		}
		return &runtimeapi.ListImagesResponse{Images: []*runtimeapi.Image{imageMessage(image)}}, nil
	}
	all := s.images.Images()
	answer := &runtimeapi.ListImagesResponse{Images: make([]*runtimeapi.Image, 0, len(all))}
	for _, image := range all {
		answer.Images = append(answer.Images, imageMessage(image))
	}
	return answer, nil
}

// ImageStatus describes one image; of one that is not there it says nothing. When it is asked to be verbose it shows the image's
// configuration, how far its pull is, or how its last one went and whom it asked.
func (s *imageServer) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := checkReference(r.GetImage()); err != nil {
		return nil, err
	}
	answer := &runtimeapi.ImageStatusResponse{}
	image, err := s.images.Image(r.GetImage().GetImage())
	switch {
	case errors.Is(err, imageservice.ErrNotFound):
	case err != nil:
		return nil, err
	default:
		answer.Image = imageMessage(image)
	}
	if !r.GetVerbose() {
		return answer, nil
	}
	answer.Info = map[string]string{}
	if answer.Image != nil {
		if answer.Info["info"], err = imageInfo(image); err != nil {
			return nil, err
		}
	}
	for _, pull := range s.images.Pulls(r.GetImage().GetImage()) {
		key := "pull"
		if pull.Ended != nil {
			key = "lastPull"
		}
		if answer.Info[key], err = marshal(pull); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// PullImage pulls an image and answers with its ID.
func (s *imageServer) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := checkReference(r.GetImage()); err != nil {
		return nil, err
	}
	if err := s.handlers.check(r.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	auth := imageservice.Auth{
		Username: r.GetAuth().GetUsername(), Password: r.GetAuth().GetPassword(), Auth: r.GetAuth().GetAuth(),
		ServerAddress: r.GetAuth().GetServerAddress(), IdentityToken: r.GetAuth().GetIdentityToken(),
		RegistryToken: r.GetAuth().GetRegistryToken(),
	}
	imageID, err := s.images.Pull(ctx, r.GetImage().GetImage(), auth, nil)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: imageID}, nil
}

// RemoveImage removes an image with all its tags. One that is not there is removed.
func (s *imageServer) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := checkReference(r.GetImage()); err != nil {
		return nil, err
	}
	if err := s.images.Remove(ctx, r.GetImage().GetImage()); err != nil && !errors.Is(err, imageservice.ErrNotFound) {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo says how much disk images and containers use.
func (s *imageServer) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, containers, err := s.images.FsUsage(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{fsUsage(images, now)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{fsUsage(containers, now)},
	}, nil
}

// fsUsage is one filesystem's usage at a time in nanoseconds.
func fsUsage(u imageservice.FsUsage, now int64) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp: now, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes: &runtimeapi.UInt64Value{Value: u.Bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}

// imageMessage describes an image.
func imageMessage(image imageservice.Image) *runtimeapi.Image {
	m := &runtimeapi.Image{
		Id: image.ID, RepoTags: image.RepoTags, RepoDigests: image.RepoDigests, Size: image.Size, Pinned: image.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: image.ID},
	}
	if uid, name := imageUser(image.Config.User); name != "" {
		m.Username = name
	} else if uid >= 0 {
		m.Uid = &runtimeapi.Int64Value{Value: uid}
	}
	return m
}

// imageUser is the user part of an image's user, which is hostile: a number, or a name; uid is -1 and the name empty when it has
// none. What is not plain digits within range is a name, so that the kubelet, which enforces runAsNonRoot by the number, refuses it (threat B10).
func imageUser(user string) (uid int64, name string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return -1, ""
	}
	if strings.Trim(user, "0123456789") == "" {
		if n, err := strconv.ParseInt(user, 10, 64); err == nil {
			return n, ""
		}
	}
	return -1, validText(bounded(user))
}

// imageInfo is what a verbose status says about an image, as JSON with the keys that containerd uses.
func imageInfo(image imageservice.Image) (string, error) {
	facts := struct {
		ChainID string          `json:"chainID"`
		Config  json.RawMessage `json:"imageSpec,omitempty"`
	}{ChainID: chainID(image.DiffIDs).String()}
	if json.Valid(image.RawConfig) {
		facts.Config = image.RawConfig
	}
	return marshal(facts)
}
