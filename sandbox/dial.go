package sandbox

import (
	"context"
	"fmt"
	"net"
)

// Dial connects to a TCP port of a sandbox: of the loopback (127.0.0.1, then ::1) in its network namespace, which for a pod with the host's
// network is the host's. Errors: ErrNotFound, ErrState (the sandbox is not Ready), ErrInvalid (port 0), an errno such as ECONNREFUSED, ctx's.
func (m *Manager) Dial(ctx context.Context, sandboxID string, port uint16) (net.Conn, error) {
	p, err := m.findPod(sandboxID)
	if err != nil {
		return nil, err
	}
	if port == 0 {
		return nil, fmt.Errorf("connect to port 0 of sandbox %s: %w", p.id, ErrInvalid)
	}
	if err := p.awaitRecovery(ctx); err != nil {
		return nil, err
	}
	if err := m.mustBeReady(p); err != nil {
		return nil, err
	}
	client, err := m.monitorOf(p)
	if err != nil {
		return nil, err
	}
	socket, err := client.Dial(ctx, port)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", p.id, classify(err))
	}
	defer socket.Close() // the connection has its own
	conn, err := net.FileConn(socket)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: take over the connection to port %d: %w", p.id, port, err)
	}
	return conn, nil
}
