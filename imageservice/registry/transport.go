package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"time"
)

// transports are the two ways to speak for an endpoint: own, with its client certificates and exceptions, to its scheme,
// host and port; foreign to anybody that it redirects to: with its CAs, since storage often stands beside a private
// registry, but nothing else of it.
type transports struct {
	own, foreign *http.Transport
}

func newTransports(spec hostSpec, dialTimeout time.Duration) (transports, error) {
	roots, err := rootCAs(spec.ca)
	if err != nil {
		return transports{}, err
	}
	ownTLS := &tls.Config{RootCAs: roots, InsecureSkipVerify: spec.skipVerify, MinVersion: tls.VersionTLS12}
	for _, pair := range spec.client {
		cert, err := keyPair(pair)
		if err != nil {
			return transports{}, err
		}
		ownTLS.Certificates = append(ownTLS.Certificates, cert)
	}
	if spec.dialTimeout > 0 {
		dialTimeout = spec.dialTimeout
	}
	return transports{
		own:     newTransport(ownTLS, dialTimeout),
		foreign: newTransport(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, dialTimeout),
	}, nil
}

// newTransport speaks HTTP/1.1 alone: over HTTP/2 all layers and all chunks would share one connection, its window and its losses.
func newTransport(config *tls.Config, dialTimeout time.Duration) *http.Transport {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    max(dialTimeout, time.Second),
		DisableCompression:     true, // a blob is what was sent, not what it may unpack to
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        30 * time.Second,
		ReadBufferSize:         64 << 10,
	}
}

func (t transports) close() {
	t.own.CloseIdleConnections()
	t.foreign.CloseIdleConnections()
}

// errMalformed stands for what net/http quotes of an answer.
var errMalformed = errors.New("no valid answer")

// send sends a request. Its errors have nothing of the answer.
func send(t *http.Transport, req *http.Request) (*http.Response, error) {
	connected := false
	trace := &httptrace.ClientTrace{GetConn: func(string) { connected = false }, GotConn: func(httptrace.GotConnInfo) { connected = true }}
	resp, err := t.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
	if err != nil && connected && req.Context().Err() == nil {
		err = unquoted(err)
	}
	return resp, err
}

// unquoted keeps of the errors of a connection those of the connection. net/http quotes what it cannot read of an answer, which may repeat what was
// sent, or be of a service that only this machine can reach.
func unquoted(err error) error {
	var connection net.Error
	if errors.As(err, &connection) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return errMalformed
}

// rootCAs is nil, the system's, without files.
func rootCAs(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a host without any is no reason to refuse the operator's
	}
	for _, file := range files {
		raw, err := readSmall(file)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfig, err)
		}
		if !roots.AppendCertsFromPEM(raw) {
			return nil, fmt.Errorf("%w: %s has no certificate in PEM form", ErrConfig, file)
		}
	}
	return roots, nil
}

func keyPair(pair [2]string) (tls.Certificate, error) {
	certPEM, err := readSmall(pair[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	keyPEM := certPEM
	if pair[1] != "" {
		if keyPEM, err = readSmall(pair[1]); err != nil {
			return tls.Certificate{}, fmt.Errorf("%w: %w", ErrConfig, err)
		}
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("%w: read client certificate %s: %w", ErrConfig, pair[0], err)
	}
	return cert, nil
}
