package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// podRow is a pod for programs.
type podRow struct {
	ID        string            `json:"id"`
	Name      string            `json:"name"`
	Namespace string            `json:"namespace"`
	UID       string            `json:"uid"`
	Attempt   uint32            `json:"attempt"`
	State     string            `json:"state"`
	Handler   string            `json:"handler"`
	IPs       []string          `json:"ips"`
	Created   *time.Time        `json:"created"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// newPods makes berth pods.
func newPods(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use: "pods", Aliases: []string{"pod"}, Short: "List pods", Args: noArgs,
		Long:    "List the pod sandboxes that berthd has, the newest first, with their addresses.",
		Example: "  berth pods\n  berth pods -o json",
	}
	out := addOutput(cmd)
	cmd.RunE = c.connected(func(cmd *cobra.Command, _ []string, conn *conn) error {
		rows, err := podRows(cmd.Context(), conn)
		if err != nil {
			return err
		}
		if *out == outputJSON {
			return printJSON(cmd.OutOrStdout(), rows)
		}
		table := make([][]string, 0, len(rows))
		for _, r := range rows {
			table = append(table, []string{short(r.ID), r.Name, r.Namespace, r.State, strings.Join(r.IPs, ","), fmt.Sprint(r.Attempt), since(r.Created.UnixNano())})
		}
		return printTable(cmd.OutOrStdout(), []string{"POD ID", "NAME", "NAMESPACE", "STATE", "IP", "ATTEMPT", "AGE"}, table)
	})
	return cmd
}

// podRows are the pods with their addresses. A pod that goes away meanwhile is left out.
func podRows(ctx context.Context, c *conn) ([]podRow, error) {
	answer, err := c.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	rows := make([]podRow, 0, len(answer.GetItems()))
	for _, p := range answer.GetItems() {
		status, err := c.runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.GetId()})
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ips := []string{}
		if n := status.GetStatus().GetNetwork(); n.GetIp() != "" {
			ips = append(ips, n.GetIp())
			for _, ip := range n.GetAdditionalIps() {
				ips = append(ips, ip.GetIp())
			}
		}
		m := p.GetMetadata()
		rows = append(rows, podRow{
			ID: p.GetId(), Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt(),
			State: podState(status.GetStatus().GetState()), Handler: p.GetRuntimeHandler(), IPs: ips, Created: timestamp(p.GetCreatedAt()),
			Labels: p.GetLabels(),
		})
	}
	return rows, nil
}

// podState is a state for people.
func podState(s runtimeapi.PodSandboxState) string {
	if s == runtimeapi.PodSandboxState_SANDBOX_READY {
		return "Ready"
	}
	return "NotReady"
}
