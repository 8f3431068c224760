package nri

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

const (
	// maxPart is how much goes into one message, in bytes: a connection takes 4 MiB with what is around a request.
	maxPart = 4<<20 - 64<<10
	// itemBytes is at most what is around one object of a request.
	itemBytes = 16
)

// sendInParts tells a plugin that joins of all that there is in as many messages as that takes. The library makes parts by the number of objects:
// with few that are big, such as containers whose variables come from many ConfigMaps, it fails, or panics.
func sendInParts(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, invoke ttrpc.Invoker) error {
	if len(req.GetPayload()) <= maxPart {
		return invoke(ctx, req, resp)
	}
	all := &api.SynchronizeRequest{}
	if err := proto.Unmarshal(req.GetPayload(), all); err != nil {
		return fmt.Errorf("decode what a plugin is told of: %w", err)
	}
	parts, err := partsOf(all)
	if err != nil {
		return err
	}
	for i, part := range parts {
		last := i == len(parts)-1
		part.More = !last || all.GetMore()
		payload, err := proto.Marshal(part)
		if err != nil {
			return fmt.Errorf("encode what a plugin is told of: %w", err)
		}
		one := &ttrpc.Request{Service: req.GetService(), Method: req.GetMethod(), Payload: payload, TimeoutNano: req.GetTimeoutNano(), Metadata: req.GetMetadata()}
		answer := resp
		if !last {
			answer = &ttrpc.Response{}
		}
		if err := invoke(ctx, one, answer); err != nil || last {
			return err
		}
		if err := takesMore(answer); err != nil {
			return err
		}
	}
	return nil
}

// partsOf divides a request. One object is never divided.
func partsOf(all *api.SynchronizeRequest) ([]*api.SynchronizeRequest, error) {
	part := &api.SynchronizeRequest{}
	parts, size := []*api.SynchronizeRequest{part}, 0
	makeRoom := func(what, id string, object proto.Message) error {
		n := proto.Size(object) + itemBytes
		if n > maxPart {
			return fmt.Errorf("tell a plugin of %s %s: it takes %d bytes, and a message has at most %d", what, id, n, maxPart)
		}
		if size+n > maxPart {
			part, size = &api.SynchronizeRequest{}, 0
			parts = append(parts, part)
		}
		size += n
		return nil
	}
	for _, pod := range all.GetPods() {
		if err := makeRoom("sandbox", pod.GetId(), pod); err != nil {
			return nil, err
		}
		part.Pods = append(part.Pods, pod)
	}
	for _, c := range all.GetContainers() {
		if err := makeRoom("container", c.GetId(), c); err != nil {
			return nil, err
		}
		part.Containers = append(part.Containers, c)
	}
	return parts, nil
}

// takesMore is an error when a plugin's answer to a part does not say that it waits for the rest.
func takesMore(answer *ttrpc.Response) error {
	if status := answer.GetStatus(); status.GetCode() != 0 {
		return fmt.Errorf("tell a plugin of a part of what there is: %s", status.GetMessage())
	}
	var said api.SynchronizeResponse
	if err := proto.Unmarshal(answer.GetPayload(), &said); err != nil {
		return fmt.Errorf("tell a plugin of a part of what there is: %w", err)
	}
	if !said.GetMore() || len(said.GetUpdate()) > 0 {
		return errors.New("the plugin does not take what there is in parts")
	}
	return nil
}
