package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/keyfile"
	"github.com/berthd/berth/cri/streaming"
)

// streamingConfig is where clients of Exec, Attach and PortForward are served.
type streamingConfig struct {
	address     netip.Addr
	port        int
	cert, key   string // both or none
	idleTimeout time.Duration
}

// setStreamingAddress takes an address.
func setStreamingAddress(c *config, address string) (err error) {
	if c.streaming.address, err = netip.ParseAddr(address); err != nil {
		return fmt.Errorf("%q is not an IP address", address)
	}
	return nil
}

// checkStreaming holds the keys of the streaming server against each other.
func checkStreaming(c *config) error {
	if (c.streaming.cert == "") != (c.streaming.key == "") {
		set := "streaming.tls_cert"
		if c.streaming.cert == "" {
			set = "streaming.tls_key"
		}
		return keyfile.At(set, "of streaming.tls_cert and streaming.tls_key both or none must be set")
	}
	return nil
}

// listen takes the address.
func (c streamingConfig) listen(ctx context.Context, runtime streaming.Runtime) (*streaming.Server, error) {
	certificate, err := c.certificate()
	if err != nil {
		return nil, err
	}
	return streaming.Listen(ctx, streaming.Config{
		Runtime: runtime, Address: netip.AddrPortFrom(c.address, uint16(c.port)), IdleTimeout: c.idleTimeout, Certificate: certificate,
		Logger: klog.FromContext(ctx),
	})
}

// certificate reads the certificate and its key; nil when there is to be none.
func (c streamingConfig) certificate() (*tls.Certificate, error) {
	if c.cert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.cert, c.key)
	if err != nil {
		return nil, fmt.Errorf("read the streaming certificate: %w", err)
	}
	return &pair, nil
}
