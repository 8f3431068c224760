package streamclient

import (
	"context"
	"errors"
	"io"
	"net"
)

// Dial connects to one port in a session of its own, which ends with the connection. The read that finds the end tells what went wrong.
func Dial(ctx context.Context, url string, t Transport, port uint16) (net.Conn, error) {
	f, err := Forward(ctx, url, t)
	if err != nil {
		return nil, err
	}
	c, err := f.Connect(port)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return forwarded{c, f}, nil
}

// forwarded is a connection of which the session is part.
type forwarded struct {
	*Forwarded
	f *Forwarder
}

func (c forwarded) CloseWrite() error { return c.Forwarded.Close() }
func (c forwarded) Close() error      { return c.f.Close() }

func (c forwarded) Read(p []byte) (int, error) {
	n, err := c.Forwarded.Read(p)
	if errors.Is(err, io.EOF) {
		if text, readErr := io.ReadAll(c.Errors); readErr != nil || len(text) > 0 {
			return n, errors.Join(readErr, errors.New(string(text)))
		}
	}
	return n, err
}
