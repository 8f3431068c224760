package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/keyfile"
	"github.com/berthd/berth/cri/streaming"
)

// streamingConfig is where clients of Exec, Attach and PortForward are served.
type streamingConfig struct {
	address     netip.Addr
	port        int
	cert, key   string           // both or none
	certificate *tls.Certificate // what stands in them, once they are read; nil: TLS is not spoken
	idleTimeout time.Duration
}

// setStreamingAddress takes an address.
func setStreamingAddress(c *config, address string) (err error) {
	if c.streaming.address, err = netip.ParseAddr(address); err != nil {
		return fmt.Errorf("%q is not an IP address", address)
	}
	return nil
}

// checkStreaming holds the keys of the streaming server against each other, and reads what they name.
func checkStreaming(c *config) error {
	if (c.streaming.cert == "") != (c.streaming.key == "") {
		set := "streaming.tls_cert"
		if c.streaming.cert == "" {
			set = "streaming.tls_key"
		}
		return keyfile.At(set, "of streaming.tls_cert and streaming.tls_key both or none must be set")
	}
	if c.streaming.cert == "" {
		return nil
	}
	return c.streaming.readCertificate()
}

// readCertificate reads the certificate and its key.
func (c *streamingConfig) readCertificate() error {
	cert, certErr := os.ReadFile(c.cert)
	if certErr != nil {
		certErr = keyfile.At("streaming.tls_cert", "read the certificate: %w", certErr)
	}
	key, keyErr := os.ReadFile(c.key)
	if keyErr != nil {
		keyErr = keyfile.At("streaming.tls_key", "read the certificate's key: %w", keyErr)
	}
	if err := errors.Join(certErr, keyErr); err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(cert, key)
	switch {
	case err == nil:
		c.certificate = &pair
		return nil
	case !x509.NewCertPool().AppendCertsFromPEM(cert):
		return keyfile.At("streaming.tls_cert", "use the certificate %s: %w", c.cert, err)
	}
	return keyfile.At("streaming.tls_key", "use %s as the key of %s: %w", c.key, c.cert, err)
}

// listen takes the address.
func (c streamingConfig) listen(ctx context.Context, runtime streaming.Runtime) (*streaming.Server, error) {
	return streaming.Listen(ctx, streaming.Config{
		Runtime: runtime, Address: netip.AddrPortFrom(c.address, uint16(c.port)), IdleTimeout: c.idleTimeout, Certificate: c.certificate,
		Logger: klog.FromContext(ctx),
	})
}
