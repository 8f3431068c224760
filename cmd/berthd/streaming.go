package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/cri/streaming"
)

// defaultStreamingAddress is one that only this host reaches.
const defaultStreamingAddress = "127.0.0.1"

// streamingConfig is where clients of Exec, Attach and PortForward are served.
type streamingConfig struct {
	address     netip.AddrPort
	cert, key   string // both or none
	idleTimeout time.Duration
}

// parse checks every value and fills in the defaults.
func (f streamingFile) parse() (streamingConfig, error) {
	c := streamingConfig{cert: f.TLSCert, key: f.TLSKey, idleTimeout: streaming.DefaultIdleTimeout}
	setDefault(&f.Address, defaultStreamingAddress)
	ip, err := netip.ParseAddr(f.Address)
	if err != nil {
		return c, fmt.Errorf("key streaming.address: %q is not an IP address", f.Address)
	}
	if f.Port < 0 || f.Port > 65535 {
		return c, fmt.Errorf("key streaming.port: %d is not 0 (any) to 65535", f.Port)
	}
	c.address = netip.AddrPortFrom(ip, uint16(f.Port))
	if (c.cert == "") != (c.key == "") {
		return c, fmt.Errorf("keys streaming.tls_cert and streaming.tls_key: both or none must be set")
	}
	for key, path := range map[string]string{"tls_cert": c.cert, "tls_key": c.key} {
		if path != "" && !filepath.IsAbs(path) {
			return c, fmt.Errorf("key streaming.%s: %q is not an absolute path", key, path)
		}
	}
	if f.IdleTimeout != "" {
		if c.idleTimeout, err = time.ParseDuration(f.IdleTimeout); err != nil || c.idleTimeout < time.Second {
			return c, fmt.Errorf("key streaming.idle_timeout: %q is not a duration of at least 1s, as 4h or 90s", f.IdleTimeout)
		}
	}
	return c, nil
}

// listen takes the address.
func (c streamingConfig) listen(ctx context.Context, runtime streaming.Runtime) (*streaming.Server, error) {
	config := streaming.Config{Runtime: runtime, Address: c.address, IdleTimeout: c.idleTimeout, Logger: klog.FromContext(ctx)}
	if c.cert != "" {
		pair, err := tls.LoadX509KeyPair(c.cert, c.key)
		if err != nil {
			return nil, fmt.Errorf("read the streaming certificate: %w", err)
		}
		config.Certificate = &pair
	}
	return streaming.Listen(ctx, config)
}
