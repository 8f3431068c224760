package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// errNotReady means that pods cannot be run.
var errNotReady = errors.New("berthd is not ready")

// condition is a condition for programs.
type condition struct {
	Type    string `json:"type"`
	Status  bool   `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// daemonStatus is the daemon's status for programs.
type daemonStatus struct {
	Runtime      string            `json:"runtime"`
	Version      string            `json:"version"`
	API          string            `json:"api"`
	Ready        bool              `json:"ready"`
	Conditions   []condition       `json:"conditions"`
	Handlers     []string          `json:"handlers"`
	CgroupDriver string            `json:"cgroupDriver"`
	Pods         int               `json:"pods"`
	Containers   int               `json:"containers"`
	Running      int               `json:"running"`
	Images       int               `json:"images"`
	Pulls        []pullProgress    `json:"pulls,omitempty"`
	Config       map[string]string `json:"config,omitempty"`
}

// newStatus makes berth status.
func newStatus(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show whether berthd can run pods, and what it has", Args: noArgs,
		Long:    "Show berthd's version and conditions, and how many pods, containers and images it has. The exit status is 1 when it cannot run pods.",
		Example: "  berth status\n  berth status -o json",
	}
	out := addOutput(cmd)
	cmd.RunE = c.connected(func(cmd *cobra.Command, _ []string, conn *conn) error {
		s, err := conn.status(cmd)
		if err != nil {
			return err
		}
		if *out == outputJSON {
			err = printJSON(cmd.OutOrStdout(), s)
		} else {
			err = s.print(cmd.OutOrStdout(), c.socket)
		}
		if err == nil && !s.Ready {
			return errNotReady
		}
		return err
	})
	return cmd
}

// status asks for all that the command shows.
func (c *conn) status(cmd *cobra.Command) (daemonStatus, error) {
	ctx := cmd.Context()
	version, err := c.runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return daemonStatus{}, err
	}
	status, err := c.runtime.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return daemonStatus{}, err
	}
	config, err := c.runtime.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})
	if err != nil {
		return daemonStatus{}, err
	}
	s := daemonStatus{
		Runtime: version.GetRuntimeName(), Version: version.GetRuntimeVersion(), API: version.GetRuntimeApiVersion(), Ready: true,
		CgroupDriver: config.GetLinux().GetCgroupDriver().String(),
	}
	for _, c := range status.GetStatus().GetConditions() {
		s.Conditions = append(s.Conditions, condition{c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage()})
		s.Ready = s.Ready && c.GetStatus()
	}
	for _, h := range status.GetRuntimeHandlers() {
		if h.GetName() != "" {
			s.Handlers = append(s.Handlers, h.GetName())
		}
	}
	if text := status.GetInfo()["config"]; text != "" {
		if err := json.Unmarshal([]byte(text), &s.Config); err != nil {
			return daemonStatus{}, fmt.Errorf("read berthd's configuration: %w", err)
		}
	}
	if text := status.GetInfo()["pulls"]; text != "" {
		if err := json.Unmarshal([]byte(text), &s.Pulls); err != nil {
			return daemonStatus{}, fmt.Errorf("read berthd's pulls: %w", err)
		}
	}
	return s, c.count(cmd, &s)
}

// count fills in how much there is.
func (c *conn) count(cmd *cobra.Command, s *daemonStatus) error {
	pods, err := c.runtime.ListPodSandbox(cmd.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := c.runtime.ListContainers(cmd.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	images, err := c.image.ListImages(cmd.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	s.Pods, s.Containers, s.Images = len(pods.GetItems()), len(containers.GetContainers()), len(images.GetImages())
	for _, k := range containers.GetContainers() {
		if k.GetState() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			s.Running++
		}
	}
	return nil
}

// print shows the status to people.
func (s daemonStatus) print(w io.Writer, socket string) error {
	rows := [][]string{{"Version", s.Version}, {"CRI", s.API}, {"Socket", socket}}
	for _, f := range [][2]string{{"Root", "root"}, {"State", "state"}, {"Network", "network"}} {
		if s.Config[f[1]] != "" {
			rows = append(rows, []string{f[0], s.Config[f[1]]})
		}
	}
	for _, c := range s.Conditions {
		text := "yes"
		if !c.Status {
			text = "no: " + c.Reason + ": " + c.Message
		} else if c.Message != "" {
			text = "yes: " + c.Message
		}
		rows = append(rows, []string{c.Type, text})
	}
	for _, h := range s.Handlers {
		rows = append(rows, []string{"Handler", h})
	}
	rows = append(rows,
		[]string{"Cgroup driver", s.CgroupDriver},
		[]string{"Pods", fmt.Sprint(s.Pods)},
		[]string{"Containers", fmt.Sprintf("%d, %d running", s.Containers, s.Running)},
		[]string{"Images", fmt.Sprint(s.Images)},
	)
	for _, p := range s.Pulls {
		total := p.total()
		rows = append(rows, []string{"Pull", fmt.Sprintf("%s, %s, %s of %s", plain(p.Ref), plain(p.State), size(total.Bytes), size(total.Size))})
	}
	return printTable(w, []string{"Runtime", s.Runtime}, rows)
}
