package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// newLogs makes berth logs.
func newLogs(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use: "logs CONTAINER", Aliases: []string{"log"}, Short: "Print a container's log", Args: oneArg("container"),
		Long: "Print what a container wrote to stdout and stderr, each to where it belongs.\n\n" +
			"CONTAINER is a name, POD/NAME, or an ID or its start. Of several attempts of one container the last is meant.",
		Example: "  berth logs web\n  berth logs -f --tail 10 shop/web",
	}
	p := &logPrinter{}
	follow := cmd.Flags().BoolP("follow", "f", false, "go on until the container ends")
	cmd.Flags().IntVarP(&p.tail, "tail", "n", -1, "only the last `N` lines (-1: all)")
	cmd.Flags().BoolVarP(&p.timestamps, "timestamps", "t", false, "begin each line with its time")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return c.containerNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	}
	cmd.RunE = c.connected(func(cmd *cobra.Command, args []string, conn *conn) error {
		found, err := findContainer(cmd.Context(), conn, args[0])
		if err != nil {
			return err
		}
		answer, err := conn.runtime.ContainerStatus(cmd.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: found.ID})
		if err != nil {
			return err
		}
		path := answer.GetStatus().GetLogPath()
		if path == "" {
			return fmt.Errorf("container %s has no log: it was created without a log path", found.Name)
		}
		p.stdout, p.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
		ended := func(context.Context) (bool, error) { return true, nil }
		if *follow {
			ended = func(ctx context.Context) (bool, error) { return conn.ended(ctx, found.ID) }
		}
		err = p.print(cmd.Context(), path, ended)
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("container %s has not written a log yet: %w", found.Name, err)
		}
		return err
	})
	return cmd
}

// ended says whether a container will write no more.
func (c *conn) ended(ctx context.Context, containerID string) (bool, error) {
	answer, err := c.runtime.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: containerID})
	if isGone(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	state := answer.GetStatus().GetState()
	return state == runtimeapi.ContainerState_CONTAINER_EXITED || state == runtimeapi.ContainerState_CONTAINER_UNKNOWN, nil
}

// findContainer finds the container that somebody means: by ID, or by the start of one, by name, or by pod and name. The newest attempt
// in a pod wins; the same name in two pods is an error that shows both.
func findContainer(ctx context.Context, c *conn, wanted string) (containerRow, error) {
	rows, err := containerRows(ctx, c, nil)
	if err != nil {
		return containerRow{}, err
	}
	byName := slices.DeleteFunc(slices.Clone(rows), func(r containerRow) bool {
		return r.Name != wanted && r.Pod+"/"+r.Name != wanted && r.Namespace+"/"+r.Pod+"/"+r.Name != wanted
	})
	byID := slices.DeleteFunc(slices.Clone(rows), func(r containerRow) bool { return wanted == "" || !strings.HasPrefix(r.ID, wanted) })
	switch {
	case len(byName) == 0 && len(byID) == 0:
		return containerRow{}, fmt.Errorf("no container %q; berth ps -a lists them", wanted)
	case len(byName) == 0 && len(byID) > 1:
		return containerRow{}, ambiguous(wanted, byID)
	case len(byName) == 0:
		return byID[0], nil
	}
	for _, r := range byName {
		if r.PodID != byName[0].PodID && (r.Pod != byName[0].Pod || r.Namespace != byName[0].Namespace) {
			return containerRow{}, ambiguous(wanted, byName)
		}
	}
	return byName[0], nil // the newest, because berthd lists it first
}

// ambiguous names what could be meant.
func ambiguous(wanted string, rows []containerRow) error {
	var all []string
	for _, r := range rows {
		all = append(all, fmt.Sprintf("%s/%s/%s (%s)", r.Namespace, r.Pod, r.Name, short(r.ID)))
	}
	return fmt.Errorf("%q could be any of %s", wanted, strings.Join(all, ", "))
}

// containerNames are what a shell offers as arguments.
func (c *client) containerNames(ctx context.Context) []string {
	if ctx == nil {
		ctx = context.Background()
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil
	}
	defer conn.Close()
	answer, err := conn.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil
	}
	var names []string
	for _, k := range answer.GetContainers() {
		names = append(names, k.GetMetadata().GetName())
	}
	slices.Sort(names)
	return slices.Compact(names)
}
