package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Exit statuses.
const (
	exitFailed = 1
	exitUsage  = 2
)

// version is berth's, semantic. The build sets it: -ldflags "-X main.version=...".
var version = "0.1.0-dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the program: it answers with its exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	addCompletion(root)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled) {
		return exitFailed // Ctrl-C needs no words
	}
	fmt.Fprintf(stderr, "berth: %s\n", describe(err))
	if h := hint(err); h != "" {
		fmt.Fprintf(stderr, "hint: %s\n", h)
	}
	if usage := (*usageError)(nil); errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// newRoot makes the command and its sub-commands.
func newRoot() *cobra.Command {
	c := &client{}
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Show what berthd runs, and pull images",
		Long:          "berth shows people what berthd, the Kubernetes CRI runtime, runs on this host, and pulls images.",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", defaultSocket(), "berthd's CRI `path`, or BERTH_SOCKET")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{cmd.CommandPath(), err} })
	root.AddCommand(newStatus(c), newPull(c), newImages(c), newPods(c), newPs(c), newLogs(c))
	return root
}

// addCompletion adds the library's command, of which a wrong command line is as those of others are. It writes to where root does by now.
func addCompletion(root *cobra.Command) {
	root.InitDefaultCompletionCmd()
	completion, _, err := root.Find([]string{"completion"})
	if err != nil {
		return
	}
	completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	for _, cmd := range append(completion.Commands(), completion) {
		cmd.Args = noArgs
	}
}

// usageError is a wrong command line.
type usageError struct {
	command string
	err     error
}

// Error says what is wrong.
func (e *usageError) Error() string { return e.err.Error() }

// Unwrap is the cause.
func (e *usageError) Unwrap() error { return e.err }

// noArgs refuses arguments.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return &usageError{cmd.CommandPath(), fmt.Errorf("unknown argument %q", args[0])}
}

// oneArg asks for one argument of a kind.
func oneArg(kind string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return &usageError{cmd.CommandPath(), fmt.Errorf("want one %s, got %d", kind, len(args))}
	}
}

// describe is an error in words: of a call's error only what the daemon said.
func describe(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) && s.GRPCStatus() != nil {
		return strings.Replace(err.Error(), s.GRPCStatus().Err().Error(), s.GRPCStatus().Message(), 1)
	}
	return err.Error()
}

// hint is what one can do about an error.
func hint(err error) string {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return usage.command + " --help"
	case errors.Is(err, unix.ENOENT) && errors.Is(err, errNoDaemon), errors.Is(err, unix.ECONNREFUSED) && errors.Is(err, errNoDaemon):
		return "is berthd running? Start it, or name its socket with --socket or BERTH_SOCKET"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "only root may talk to berthd: try again with sudo"
	}
	switch status.Code(err) {
	case codes.Unavailable:
		return "berthd closed the connection: is it running, and are you root?"
	case codes.Unauthenticated:
		return "give credentials: berth pull --username NAME --password-stdin IMAGE"
	case codes.PermissionDenied:
		return "the registry knows who asks and does not allow it: other credentials may do"
	case codes.Unimplemented:
		return "this berthd may be older than this berth"
	}
	return ""
}
