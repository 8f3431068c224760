package streamclient

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"strings"
	"sync"

	"github.com/gorilla/websocket"
)

// dial makes a WebSocket.
func dial(ctx context.Context, url, protocol string) (*websocket.Conn, net.Conn, error) {
	var tcp net.Conn
	// A write of io.Copy must be one frame: the kubelet takes each frame for a message.
	d := websocket.Dialer{WriteBufferSize: 64 << 10, Subprotocols: []string{protocol}, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // a test's own server
		NetDialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			tcp, err = (&net.Dialer{}).DialContext(ctx, network, address)
			return tcp, err
		}}
	ws, resp, err := d.DialContext(ctx, "ws"+strings.TrimPrefix(url, "http"), nil)
	if err != nil && resp != nil {
		text, _ := io.ReadAll(resp.Body)
		return nil, nil, &RefusedError{Code: resp.StatusCode, Text: string(text), Header: resp.Header}
	}
	return ws, tcp, err
}

// channels are the streams of a WebSocket.
type channels struct {
	ws     *websocket.Conn
	base64 bool
	mu     sync.Mutex // of writing
	in     [5]*io.PipeWriter
}

func openWebSocket(ctx context.Context, url string, t Transport, p Process) (*Session, error) {
	protocol, _, _ := strings.Cut(string(t), " ")
	ws, tcp, err := dial(ctx, url, protocol)
	if err != nil {
		return nil, err
	}
	c := &channels{ws: ws, base64: t == Base64}
	s := &Session{conn: tcp, ws: ws, close: func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
		return ws.Close()
	}}
	out := func(number int) io.Reader {
		r, w := io.Pipe()
		c.in[number] = w
		return r
	}
	if p.Stdin {
		s.Stdin = channel{c, 0, t == WebSocket}
	}
	if p.Stdout {
		s.Stdout = out(1)
	}
	if p.Stderr {
		s.Stderr = out(2)
	}
	s.Errors = out(3)
	s.resize = channel{c, 4, false}
	go c.serve()
	return s, nil
}

// serve reads messages until the end.
func (c *channels) serve() {
	for {
		_, message, err := c.ws.ReadMessage()
		if err != nil {
			var closed *websocket.CloseError
			if errors.As(err, &closed) && closed.Code == websocket.CloseNormalClosure {
				err = io.EOF
			}
			for _, w := range c.in {
				if w != nil {
					w.CloseWithError(err)
				}
			}
			return
		}
		if len(message) == 0 {
			continue
		}
		number := message[0]
		if c.base64 {
			number -= '0'
			if message, err = base64.StdEncoding.DecodeString(string(message[1:])); err != nil {
				continue
			}
		} else {
			message = message[1:]
		}
		if int(number) < len(c.in) && c.in[number] != nil && len(message) > 0 {
			c.in[number].Write(message)
		}
	}
}

// channel sends on one of them.
type channel struct {
	*channels
	number byte
	ends   bool
}

func (c channel) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.base64 {
		return len(p), c.ws.WriteMessage(websocket.TextMessage, []byte(string('0'+c.number)+base64.StdEncoding.EncodeToString(p)))
	}
	return len(p), c.ws.WriteMessage(websocket.BinaryMessage, append([]byte{c.number}, p...))
}

// Close tells the end, if the protocol can.
func (c channel) Close() error {
	if !c.ends {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws.WriteMessage(websocket.BinaryMessage, []byte{255, c.number})
}

// tunnel carries SPDY in messages.
type tunnel struct {
	net.Conn // deadlines and addresses
	ws       *websocket.Conn
	message  io.Reader
}

func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			var err error
			if _, t.message, err = t.ws.NextReader(); err != nil {
				return 0, io.EOF
			}
		}
		n, err := t.message.Read(p)
		if err == io.EOF {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

func (t *tunnel) Write(p []byte) (int, error) {
	return len(p), t.ws.WriteMessage(websocket.BinaryMessage, p)
}

func forwardTunnel(ctx context.Context, url string) (*Forwarder, error) {
	ws, tcp, err := dial(ctx, url, "SPDY/3.1+portforward.k8s.io")
	if err != nil {
		return nil, err
	}
	c, err := spdyConn(&tunnel{Conn: tcp, ws: ws})
	if err != nil {
		return nil, err
	}
	return &Forwarder{conn: c, tcp: tcp}, nil
}

// ForwardChannels connects to ports with the channels of older clients, two for each port of the request.
func ForwardChannels(ctx context.Context, url string) (*websocket.Conn, error) {
	ws, _, err := dial(ctx, url, "v4.channel.k8s.io")
	return ws, err
}
