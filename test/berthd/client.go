package berthd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client speaks to the CRI runtime at one socket, berth or another. A call waits for a runtime that is just being started.
type Client struct {
	Runtime runtimeapi.RuntimeServiceClient
	Images  runtimeapi.ImageServiceClient

	conn *grpc.ClientConn
}

// Dial returns a client, and connects at the first call. Close ends it.
func Dial(socket string) (*Client, error) {
	const most = 64 << 20 // bytes of a message: ExecSync answers with 32 MiB
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: time.Second,
			Backoff: backoff.Config{BaseDelay: 2 * time.Millisecond, Multiplier: 1.2, MaxDelay: 20 * time.Millisecond}}),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(most)))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", socket, err)
	}
	return &Client{Runtime: runtimeapi.NewRuntimeServiceClient(conn), Images: runtimeapi.NewImageServiceClient(conn), conn: conn}, nil
}

// Close ends the client. The runtime is left as it is.
func (c *Client) Close() error { return c.conn.Close() }

// RemovePods stops and removes every pod that the runtime lists.
func (c *Client) RemovePods(ctx context.Context) error {
	return c.removePods(ctx, nil)
}

// RemoveLives stops and removes the pods that Up made, and no others.
func (c *Client) RemoveLives(ctx context.Context) error {
	return c.removePods(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{lifeLabel: "1"}})
}

func (c *Client) removePods(ctx context.Context, filter *runtimeapi.PodSandboxFilter) error {
	pods, err := c.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, pod := range pods.Items {
		if _, err := c.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			errs = append(errs, fmt.Errorf("stop pod %s: %w", pod.Id, err))
		}
		if _, err := c.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.Id}); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s: %w", pod.Id, err))
		}
	}
	return errors.Join(errs...)
}
