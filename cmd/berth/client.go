package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxMessageBytes is the limit of berthd's answers.
	maxMessageBytes = 16 << 20
	// dialTimeout bounds how long the socket is tried.
	dialTimeout = 5 * time.Second
)

// errNoDaemon means that there is no connection to be had by the socket: nobody answers there, or not to everybody.
var errNoDaemon = errors.New("berthd cannot be reached")

// client is the connection to berthd. Its zero value is of use once socket is set.
type client struct {
	socket string
}

// conn is an open connection.
type conn struct {
	grpc    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	image   runtimeapi.ImageServiceClient
}

// defaultSocket is the socket without --socket.
func defaultSocket() string {
	if s := os.Getenv("BERTH_SOCKET"); s != "" {
		return s
	}
	return "/run/berth/berth.sock"
}

// connect opens a connection, and finds out at once whether somebody is there: gRPC would try again for long.
func (c *client) connect(ctx context.Context) (*conn, error) {
	path := strings.TrimPrefix(c.socket, "unix://")
	dial := func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}
	probe, err := dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w: %w", path, errNoDaemon, cause(err))
	}
	probe.Close()
	g, err := grpc.NewClient("passthrough:berthd",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessageBytes), grpc.MaxCallSendMsgSize(maxMessageBytes)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &conn{grpc: g, runtime: runtimeapi.NewRuntimeServiceClient(g), image: runtimeapi.NewImageServiceClient(g)}, nil
}

// connected is a command that runs with a connection.
func (c *client) connected(run func(cmd *cobra.Command, args []string, conn *conn) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		conn, err := c.connect(cmd.Context())
		if err != nil {
			return err
		}
		defer conn.Close()
		return run(cmd, args, conn)
	}
}

// cause is the error of the system call below net's.
func cause(err error) error {
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		return sys.Err
	}
	return err
}

// Close ends the connection.
func (c *conn) Close() { c.grpc.Close() }
