package streamclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/moby/spdystream"
)

// replyTime is how long the server may take to accept a stream.
const replyTime = 30 * time.Second

// queueTime is how long an answer may lie in the client's own queues when the connection has ended.
const queueTime = 500 * time.Millisecond

// upgrade makes a connection and speaks HTTP until the server speaks another protocol.
func upgrade(ctx context.Context, address, protocol string) (net.Conn, net.Conn, *bufio.Reader, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, nil, nil, err
	}
	tcp, err := (&net.Dialer{}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, nil, nil, err
	}
	conn := tcp
	if u.Scheme == "https" {
		conn = tls.Client(tcp, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // a test's own server
	}
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	defer stop()
	request := "POST " + u.RequestURI() + " HTTP/1.1\r\nHost: " + u.Host + "\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n" +
		"X-Stream-Protocol-Version: " + protocol + "\r\nContent-Length: 0\r\n\r\n"
	if _, err := io.WriteString(conn, request); err != nil {
		tcp.Close()
		return nil, nil, nil, err
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
	if err != nil {
		tcp.Close()
		return nil, nil, nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
		tcp.Close()
		return nil, nil, nil, &RefusedError{Code: resp.StatusCode, Text: string(text), Header: resp.Header}
	}
	return conn, tcp, r, nil
}

// RefusedError is an answer that is no session.
type RefusedError struct {
	Code   int
	Text   string
	Header http.Header
}

func (e *RefusedError) Error() string { return fmt.Sprintf("HTTP %d: %s", e.Code, e.Text) }

// buffered is a connection of which something was read already.
type buffered struct {
	net.Conn
	r io.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

// spdyConn speaks SPDY over a connection.
func spdyConn(conn net.Conn) (*spdystream.Connection, error) {
	c, err := spdystream.NewConnection(conn, false)
	if err != nil {
		return nil, err
	}
	go c.Serve(spdystream.NoOpStreamHandler)
	return c, nil
}

// openStream opens a stream and waits until it is accepted.
func openStream(c *spdystream.Connection, headers map[string]string) (*spdystream.Stream, error) {
	h := http.Header{}
	for k, v := range headers {
		h.Set(k, v)
	}
	s, err := c.CreateStream(h, nil, false)
	if err != nil {
		return nil, err
	}
	answer := make(chan error, 1)
	go func() { answer <- s.WaitTimeout(replyTime) }() // which does not notice a connection's end
	select {
	case err = <-answer:
	case <-c.CloseChan(): // the answer may have come before, and wait in a queue
		select {
		case err = <-answer:
		case <-time.After(queueTime):
			err = net.ErrClosed
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open stream %v: %w", headers, err)
	}
	return s, nil
}

func openSPDY(ctx context.Context, url string, p Process) (*Session, error) {
	conn, tcp, r, err := upgrade(ctx, url, "v4.channel.k8s.io")
	if err != nil {
		return nil, err
	}
	c, err := spdyConn(buffered{conn, r})
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { tcp.Close() })
	defer stop()
	s := &Session{conn: tcp, close: func() error {
		c.Close()
		return tcp.Close()
	}}
	for _, want := range []struct {
		name string
		want bool
		set  func(*spdystream.Stream)
	}{
		{"error", true, func(st *spdystream.Stream) { s.Errors = st }},
		{"stdin", p.Stdin, func(st *spdystream.Stream) { s.Stdin = st }},
		{"stdout", p.Stdout, func(st *spdystream.Stream) { s.Stdout = st }},
		{"stderr", p.Stderr, func(st *spdystream.Stream) { s.Stderr = st }},
		{"resize", p.Terminal, func(st *spdystream.Stream) { s.resize = st }},
	} {
		if !want.want {
			continue
		}
		st, err := openStream(c, map[string]string{"streamType": want.name})
		if err != nil {
			tcp.Close()
			return nil, err
		}
		want.set(st)
	}
	return s, nil
}

// Forwarder is a client that connects to ports.
type Forwarder struct {
	conn *spdystream.Connection
	tcp  net.Conn
	next atomic.Int64
}

// Forward opens a session of forwarded ports: SPDY, or SPDY inside WebSocket.
func Forward(ctx context.Context, url string, t Transport) (*Forwarder, error) {
	if t != SPDY {
		return forwardTunnel(ctx, url)
	}
	conn, tcp, r, err := upgrade(ctx, url, "portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	c, err := spdyConn(buffered{conn, r})
	if err != nil {
		return nil, err
	}
	return &Forwarder{conn: c, tcp: tcp}, nil
}

// Forwarded is one connection to a port. Close tells the end of what is sent; Reset breaks the connection off.
type Forwarded struct {
	*spdystream.Stream
	// Errors is what went wrong, once the connection has ended.
	Errors io.Reader
}

// Connect connects to a port.
func (f *Forwarder) Connect(port uint16) (*Forwarded, error) {
	id, number := fmt.Sprint(f.next.Add(1)), fmt.Sprint(port)
	errs, err := openStream(f.conn, map[string]string{"streamType": "error", "port": number, "requestID": id})
	if err != nil {
		return nil, err
	}
	errs.Close()
	data, err := openStream(f.conn, map[string]string{"streamType": "data", "port": number, "requestID": id})
	if err != nil {
		return nil, err
	}
	return &Forwarded{Stream: data, Errors: errs}, nil
}

// Stream opens a stream with any headers.
func (f *Forwarder) Stream(headers map[string]string) (*spdystream.Stream, error) {
	return openStream(f.conn, headers)
}

// Close leaves as a good client does.
func (f *Forwarder) Close() error {
	f.conn.Close()
	return f.tcp.Close()
}

// Abort resets the connection.
func (f *Forwarder) Abort() error {
	f.tcp.(*net.TCPConn).SetLinger(0)
	return f.tcp.Close()
}
