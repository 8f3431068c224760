package streaming_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
)

// serve starts a server of a test's own.
func serve(t testing.TB, c streaming.Config) *streaming.Server {
	t.Helper()
	c.Address, c.Logger = netip.MustParseAddrPort("127.0.0.1:0"), klog.Background()
	if c.Runtime == nil {
		c.Runtime = streamingtest.NewFake()
	}
	s, err := streaming.Listen(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), streamingtest.Limit)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
	})
	return s
}

// remote is a streaming.Runtime at the other end of a server.
type remote struct {
	*streaming.Server
	transport streamclient.Transport
}

func process(id string, cmd []string, s sandbox.Streams) streaming.Process {
	return streaming.Process{ContainerID: id, Cmd: cmd, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil, Terminal: s.Terminal}
}

func (r remote) Exec(ctx context.Context, id string, cmd []string, s sandbox.Streams) (int32, error) {
	url, err := r.Server.Exec(process(id, cmd, s))
	if err != nil {
		return 0, err
	}
	return streamclient.Run(ctx, url, r.transport, s)
}

func (r remote) Attach(ctx context.Context, id string, s sandbox.Streams) error {
	url, err := r.Server.Attach(process(id, nil, s))
	if err != nil {
		return err
	}
	_, err = streamclient.Run(ctx, url, r.transport, s)
	return err
}

func (r remote) Dial(ctx context.Context, id string, port uint16) (net.Conn, error) {
	url, err := r.Server.PortForward(id, nil)
	if err != nil {
		return nil, err
	}
	return streamclient.Dial(ctx, url, r.transport, port)
}

func TestFakePassesTheSuite(t *testing.T) {
	streamingtest.Suite(t, streamingtest.Target{Runtime: streamingtest.NewFake(), ContainerID: "c", SandboxID: "s", InputEnds: true})
}

func TestSuiteThroughServer(t *testing.T) {
	for name, transport := range map[string]streamclient.Transport{"SPDY": streamclient.SPDY, "WebSocket v5": streamclient.WebSocket,
		"WebSocket v4": streamclient.V4, "WebSocket base64": streamclient.Base64} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, streaming.Config{})
			streamingtest.Suite(t, streamingtest.Target{Runtime: remote{s, transport}, ContainerID: "c", SandboxID: "s",
				InputEnds: transport == streamclient.SPDY || transport == streamclient.WebSocket})
		})
	}
}
