package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerRow is a container for programs.
type containerRow struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Attempt   uint32            `json:"attempt"`
	Pod       string            `json:"pod"`
	Namespace string            `json:"namespace"`
	PodID     string            `json:"podId"`
	Image     string            `json:"image"`
	ImageID   string            `json:"imageId"`
	State     string            `json:"state"`
	Reason    string            `json:"reason,omitempty"`
	ExitCode  *int32            `json:"exitCode,omitempty"`
	Created   *time.Time        `json:"created"`
	Started   *time.Time        `json:"started,omitempty"`
	Finished  *time.Time        `json:"finished,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// newPs makes berth ps.
func newPs(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use: "ps", Aliases: []string{"containers"}, Short: "List containers", Args: noArgs,
		Long:    "List the containers that run, the newest first; with -a also those that do not.",
		Example: "  berth ps\n  berth ps -a\n  berth ps -a -o json",
	}
	out := addOutput(cmd)
	all := cmd.Flags().BoolP("all", "a", false, "also containers that do not run")
	cmd.RunE = c.connected(func(cmd *cobra.Command, _ []string, conn *conn) error {
		filter := &runtimeapi.ContainerFilter{}
		if !*all {
			filter.State = &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
		}
		rows, err := containerRows(cmd.Context(), conn, filter)
		if err != nil {
			return err
		}
		if *out == outputJSON {
			return printJSON(cmd.OutOrStdout(), rows)
		}
		table := make([][]string, 0, len(rows))
		for _, r := range rows {
			table = append(table, []string{short(r.ID), r.Name, r.Pod, r.Namespace, shortImage(r.Image), r.describeState(), fmt.Sprint(r.Attempt), since(r.Created.UnixNano())})
		}
		return printTable(cmd.OutOrStdout(), []string{"CONTAINER ID", "NAME", "POD", "NAMESPACE", "IMAGE", "STATE", "ATTEMPT", "AGE"}, table)
	})
	return cmd
}

// containerRows are the containers that pass a filter. One that goes away meanwhile is left out.
func containerRows(ctx context.Context, c *conn, filter *runtimeapi.ContainerFilter) ([]containerRow, error) {
	pods, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	names := make(map[string]*runtimeapi.PodSandboxMetadata, len(pods.GetItems()))
	for _, p := range pods.GetItems() {
		names[p.GetId()] = p.GetMetadata()
	}
	answer, err := c.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: filter})
	if err != nil {
		return nil, err
	}
	rows := make([]containerRow, 0, len(answer.GetContainers()))
	for _, k := range answer.GetContainers() {
		answer, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: k.GetId()})
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s, pod := answer.GetStatus(), names[k.GetPodSandboxId()]
		row := containerRow{
			ID: k.GetId(), Name: s.GetMetadata().GetName(), Attempt: s.GetMetadata().GetAttempt(),
			Pod: pod.GetName(), Namespace: pod.GetNamespace(), PodID: k.GetPodSandboxId(),
			Image: s.GetImage().GetImage(), ImageID: s.GetImageId(), State: containerState(s.GetState()), Reason: s.GetReason(),
			Created: timestamp(s.GetCreatedAt()), Started: timestamp(s.GetStartedAt()), Finished: timestamp(s.GetFinishedAt()),
			Labels: s.GetLabels(),
		}
		if s.GetState() == runtimeapi.ContainerState_CONTAINER_EXITED {
			code := s.GetExitCode()
			row.ExitCode = &code
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// describeState is a state with what people want to know about it.
func (r containerRow) describeState() string {
	if r.ExitCode == nil {
		return r.State
	}
	if r.Reason == "" || r.Reason == "Completed" || r.Reason == "Error" {
		return fmt.Sprintf("%s (%d)", r.State, *r.ExitCode)
	}
	return fmt.Sprintf("%s (%d, %s)", r.State, *r.ExitCode, r.Reason)
}

// containerState is a state for people.
func containerState(s runtimeapi.ContainerState) string {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "Created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "Running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return "Exited"
	}
	return "Unknown"
}

// shortImage is an image's name, or the start of its ID when it has none.
func shortImage(image string) string {
	if strings.HasPrefix(image, "sha256:") {
		return short(image)
	}
	return image
}

// isGone says that an object went away between two calls.
func isGone(err error) bool { return status.Code(err) == codes.NotFound }
