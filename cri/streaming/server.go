package streaming

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox"
)

// Limits of a request, until it has become a session.
const (
	// requestTime is how long a client may take to send its request and to take an answer that is no session.
	requestTime = 10 * time.Second
	// maxRequestBytes bounds a request's head. The kubelet passes on the headers of its own client.
	maxRequestBytes = 64 << 10
	// readerBytes is a session's read buffer.
	readerBytes = 4 << 10
	spdy31      = "SPDY/3.1"
)

// Defaults of a Config.
const (
	// DefaultIdleTimeout is the kubelet's own.
	DefaultIdleTimeout     = 4 * time.Hour
	defaultCreationTimeout = 30 * time.Second
)

// Runtime runs what clients talk to. Its errors are those of package sandbox.
type Runtime interface {
	// Exec runs a command and returns its exit code when it has ended and its output is delivered. When ctx ends, all that it started is
	// killed. A Writer that fails, or stalls, holds up the command alone.
	Exec(ctx context.Context, containerID string, cmd []string, s sandbox.Streams) (exitCode int32, err error)
	// Attach connects to the running container's streams until ctx or the container ends.
	Attach(ctx context.Context, containerID string, s sandbox.Streams) error
	// Dial connects to a TCP port of the pod's loopback.
	Dial(ctx context.Context, sandboxID string, port uint16) (net.Conn, error)
}

// Config is what a Server is made of.
type Config struct {
	Runtime Runtime
	Address netip.AddrPort // to listen on; port 0: any
	// Certificate makes the server speak TLS; nil: it does not.
	Certificate *tls.Certificate
	// IdleTimeout is after how long a session on which no byte moves is ended; 0: DefaultIdleTimeout.
	IdleTimeout time.Duration
	// CreationTimeout is how long a client may take to open its streams; 0: 30 seconds.
	CreationTimeout time.Duration
	Logger          klog.Logger
}

// Server hands out URLs and serves them.
type Server struct {
	runtime                      Runtime
	tokens                       *tokens
	door                         *door
	http                         *http.Server
	base                         url.URL
	certificate                  atomic.Pointer[tls.Certificate]
	idleTimeout, creationTimeout time.Duration
	logger                       klog.Logger
	// ctx ends all sessions.
	ctx    context.Context //nolint:containedctx // the server's life
	cancel context.CancelCauseFunc

	running  sync.WaitGroup // sessions and their watcher
	mu       sync.Mutex
	sessions map[*session]bool
	watching bool
}

// Listen takes the address. Clients wait until Serve.
func Listen(ctx context.Context, c Config) (*Server, error) {
	network := "tcp"
	if c.Address.Addr().Is4() { // else 0.0.0.0 would be IPv6 as well
		network = "tcp4"
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, network, c.Address.String())
	if err != nil {
		return nil, fmt.Errorf("listen for streaming clients: %w", err)
	}
	s := &Server{runtime: c.Runtime, tokens: newTokens(), door: &door{Listener: l, start: time.Now()}, logger: c.Logger,
		idleTimeout: c.IdleTimeout, creationTimeout: c.CreationTimeout, sessions: make(map[*session]bool)}
	if s.idleTimeout == 0 {
		s.idleTimeout = DefaultIdleTimeout
	}
	if s.creationTimeout == 0 {
		s.creationTimeout = defaultCreationTimeout
	}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.base = url.URL{Scheme: "http", Host: reachable(l.Addr().(*net.TCPAddr).AddrPort()).String()}
	one := new(http.Protocols)
	one.SetHTTP1(true) // HTTP/2 has no connections to take over
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: requestTime, ReadTimeout: requestTime, WriteTimeout: requestTime,
		MaxHeaderBytes: maxRequestBytes, ConnContext: withConn, Protocols: one, ErrorLog: log.New(serverLog{c.Logger}, "", 0)}
	s.http.SetKeepAlivesEnabled(false)
	if c.Certificate != nil {
		s.base.Scheme = "https"
		s.certificate.Store(c.Certificate)
		s.http.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate.Load(), nil }}
	}
	return s, nil
}

// reachable is an address at which the kubelet of this host finds a listener.
func reachable(a netip.AddrPort) netip.AddrPort {
	ip := a.Addr().Unmap()
	switch {
	case ip.IsUnspecified() && ip.Is4():
		ip = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case ip.IsUnspecified():
		ip = netip.IPv6Loopback()
	}
	return netip.AddrPortFrom(ip, a.Port())
}

// SetCertificate changes what the next clients are shown. It does nothing when TLS is not spoken.
func (s *Server) SetCertificate(c *tls.Certificate) {
	if c != nil {
		s.certificate.Store(c)
	}
}

// URL is where the server serves, without what a token would add.
func (s *Server) URL() string { return s.base.String() }

// Serve serves clients until Shutdown.
func (s *Server) Serve() error {
	serve := func() error { return s.http.Serve(s.door) }
	if s.http.TLSConfig != nil {
		serve = func() error { return s.http.ServeTLS(s.door, "", "") }
	}
	if err := serve(); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve streaming clients: %w", err)
	}
	return nil
}

// Shutdown forgets all tokens, ends all sessions, and returns when nothing is left of them. Clients are told, if they listen.
func (s *Server) Shutdown(ctx context.Context) error {
	s.tokens.close()
	err := s.http.Close()
	s.mu.Lock()
	s.cancel(errEnding)
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.running.Wait()
	}()
	timer := time.NewTimer(2 * endingTime)
	defer timer.Stop()
	select {
	case <-ended:
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	for _, sess := range s.list() {
		sess.end(errEnding)
	}
	select {
	case <-ended:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("wait for the end of sessions: %w", ctx.Err()))
	}
}

// Exec makes a URL at which a command can be run, once, within a minute.
func (s *Server) Exec(p Process) (string, error) {
	return s.url(request{kind: kindExec, process: p})
}

// Attach makes a URL at which one can attach to a container, once, within a minute.
func (s *Server) Attach(p Process) (string, error) {
	return s.url(request{kind: kindAttach, process: p})
}

// PortForward makes a URL at which ports of a pod can be connected to, by one client that comes within a minute. Clients name ports
// themselves, but for those that speak channels over WebSocket: for them they are named here.
func (s *Server) PortForward(sandboxID string, ports []uint16) (string, error) {
	return s.url(request{kind: kindPortForward, sandbox: sandboxID, ports: ports})
}

func (s *Server) url(r request) (string, error) {
	token, err := s.tokens.issue(r)
	if err != nil {
		return "", err
	}
	return s.base.JoinPath(string(r.kind), token).String(), nil
}

// ServeHTTP serves one client. Who has no token learns nothing: the answer is always the same.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what, token, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c := connOf(r)
	if c == nil || r.Method != http.MethodGet && r.Method != http.MethodPost {
		http.NotFound(w, r)
		return
	}
	q, ok := s.tokens.take(token, kind(what))
	if !ok {
		http.NotFound(w, r)
		return
	}
	if !isWebSocket(r) && !isSPDY(r) {
		refuse(w, http.StatusBadRequest, "an upgrade to "+spdy31+" or WebSocket is needed")
		return
	}
	logger := s.logger.WithValues(q.logValues()...)
	sess, err := s.begin(c, logger)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err.Error())
		return
	}
	defer s.forget(sess)
	defer recovered(sess.ctx)
	start := time.Now()
	logger.V(4).Info("Began a streaming session", "webSocket", isWebSocket(r))
	if q.kind == kindPortForward {
		err = s.serveForward(sess, w, r, q)
	} else {
		err = s.serveProcess(sess, w, r, q)
	}
	logger.V(4).Info("Ended a streaming session", "duration", time.Since(start), "err", err)
}

// logValues name a request's object. A command may hold secrets.
func (r request) logValues() []any {
	if r.kind == kindPortForward {
		return []any{"session", string(r.kind), "podSandboxID", r.sandbox}
	}
	return []any{"session", string(r.kind), "containerID", r.process.ContainerID}
}

// refuse answers a client that has a token, and cannot be served. The answer is on its way before the session ends.
func refuse(w http.ResponseWriter, code int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(text)+1))
	w.WriteHeader(code)
	fmt.Fprintln(w, text)
	http.NewResponseController(w).Flush() //nolint:errcheck // who has gone has gone
}

func isWebSocket(r *http.Request) bool { return websocket.IsWebSocketUpgrade(r) }

func isSPDY(r *http.Request) bool {
	return contains(headerValues(r, "Connection"), "upgrade") && contains(headerValues(r, "Upgrade"), spdy31)
}

func contains(values []string, want string) bool {
	return slices.ContainsFunc(values, func(v string) bool { return strings.EqualFold(v, want) })
}

// headerValues are the words of a header.
func headerValues(r *http.Request, name string) []string {
	var all []string
	for _, line := range r.Header.Values(name) {
		for _, word := range strings.Split(line, ",") {
			if word = strings.TrimSpace(word); word != "" {
				all = append(all, word)
			}
		}
	}
	return all
}

// negotiate chooses the first of a client's protocols that is among ours, or tells it which those are.
func negotiate(w http.ResponseWriter, theirs, ours []string) (string, error) {
	for _, p := range theirs {
		if slices.Contains(ours, p) {
			return p, nil
		}
	}
	for _, p := range ours {
		if p != "" {
			w.Header().Add("X-Accepted-Stream-Protocol-Versions", p)
		}
	}
	refuse(w, http.StatusForbidden, "none of the client's protocols is known")
	return "", errors.New("none of the client's protocols is known")
}

// serverLog takes what net/http says of clients that do not speak HTTP or TLS. Everybody on the host can make it say so.
type serverLog struct{ klog.Logger }

// Write logs a line.
func (l serverLog) Write(p []byte) (int, error) {
	l.V(5).Info("Could not serve a streaming client", "err", strings.TrimSpace(string(p)))
	return len(p), nil
}
