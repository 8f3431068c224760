package harness

import (
	"context"
	"net"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
)

// ExecURL asks for the URL of a command.
func (d *Daemon) ExecURL(ctx context.Context, containerID string, command []string, p streamclient.Process) (string, error) {
	r, err := d.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: containerID, Cmd: command, Tty: p.Terminal,
		Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr})
	return r.GetUrl(), err
}

// AttachURL asks for the URL of a container's streams.
func (d *Daemon) AttachURL(ctx context.Context, containerID string, p streamclient.Process) (string, error) {
	r, err := d.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: containerID, Tty: p.Terminal,
		Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr})
	return r.GetUrl(), err
}

// ForwardURL asks for the URL of a pod's ports.
func (d *Daemon) ForwardURL(ctx context.Context, sandboxID string, ports ...int32) (string, error) {
	r, err := d.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: sandboxID, Port: ports})
	return r.GetUrl(), err
}

// Streaming is a daemon as streaming.Runtime: each call goes through a URL.
type Streaming struct {
	*Daemon
	Transport streamclient.Transport
}

func wants(s sandbox.Streams) streamclient.Process {
	return streamclient.Process{Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil, Terminal: s.Terminal}
}

// Exec implements streaming.Runtime.
func (r Streaming) Exec(ctx context.Context, containerID string, cmd []string, s sandbox.Streams) (int32, error) {
	url, err := r.ExecURL(ctx, containerID, cmd, wants(s))
	if err != nil {
		return 0, err
	}
	return streamclient.Run(ctx, url, r.Transport, s)
}

// Attach implements streaming.Runtime.
func (r Streaming) Attach(ctx context.Context, containerID string, s sandbox.Streams) error {
	url, err := r.AttachURL(ctx, containerID, wants(s))
	if err != nil {
		return err
	}
	_, err = streamclient.Run(ctx, url, r.Transport, s)
	return err
}

// Dial implements streaming.Runtime.
func (r Streaming) Dial(ctx context.Context, sandboxID string, port uint16) (net.Conn, error) {
	url, err := r.ForwardURL(ctx, sandboxID)
	if err != nil {
		return nil, err
	}
	return streamclient.Dial(ctx, url, r.Transport, port)
}
