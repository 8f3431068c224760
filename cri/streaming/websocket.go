package streaming

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Protocols over WebSocket. In those of channels the first byte of a message is the channel's number, in base64 ones a digit, and the
// rest is base64.
const (
	wsChannels       = "channel.k8s.io"
	wsBase64Channels = "base64.channel.k8s.io"
	wsV4             = "v4.channel.k8s.io"
	wsV4Base64       = "v4.base64.channel.k8s.io"
	wsV5             = "v5.channel.k8s.io" // with a message that ends a channel
	wsTunnel         = "SPDY/3.1+" + protocolPortForward
)

// wsEnd is the channel of v5 on which the end of another one is told.
const wsEnd = 255

// byeTime is how long the last message may take.
const byeTime = time.Second

// upgrader makes a WebSocket of a request. Origins are not looked at: the token is what lets a client in, no page can know it, and the
// kubelet passes on the header of whoever talks to the API server from a browser.
var upgrader = websocket.Upgrader{
	HandshakeTimeout: requestTime,
	CheckOrigin:      func(*http.Request) bool { return true },
	Error:            func(w http.ResponseWriter, _ *http.Request, code int, cause error) { refuse(w, code, cause.Error()) },
}

// upgradeWebSocket speaks WebSocket with a client in the first of its protocols that is among ours. Whom it cannot do that with is told why.
func upgradeWebSocket(w http.ResponseWriter, r *http.Request, ours []string) (*websocket.Conn, string, error) {
	theirs := websocket.Subprotocols(r)
	if len(theirs) == 0 {
		theirs = []string{""}
	}
	protocol, err := negotiate(w, theirs, ours)
	if err != nil {
		return nil, "", err
	}
	u := upgrader
	if protocol != "" {
		u.Subprotocols = []string{protocol}
	}
	ws, err := u.Upgrade(w, r, nil)
	if err != nil {
		return nil, "", fmt.Errorf("speak WebSocket: %w", err)
	}
	return ws, protocol, nil
}

// wsClient is a client whose channels are numbered streams over WebSocket. They are open from the start.
type wsClient struct {
	ws      *websocket.Conn
	text    bool // base64
	ends    bool // a channel's end can be told
	streams []*stream
	first   uint32 // the first channel that there is to read from
	sending sync.Mutex
}

// newWebSocket makes a stream for each sink; a stream's number is that of its sink.
func newWebSocket(ws *websocket.Conn, protocol string, sinks []sink) *wsClient {
	c := &wsClient{ws: ws, text: protocol == wsBase64Channels || protocol == wsV4Base64, ends: protocol == wsV5}
	for i, to := range sinks {
		c.streams = append(c.streams, &stream{id: uint32(i), to: c, sink: to})
	}
	return c
}

// serve implements client.
func (c *wsClient) serve() error {
	defer func() {
		for _, s := range c.streams {
			s.over.Store(true)
			s.sink.end(errGone)
		}
	}()
	for {
		_, message, err := c.ws.NextReader()
		if err != nil {
			return err
		}
		if err := c.message(message); err != nil {
			return err
		}
	}
}

// message reads one message, in pieces.
func (c *wsClient) message(r io.Reader) error {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	if n, err := io.ReadFull(r, (*buf)[:1]); n == 0 {
		return ignoreEOF(err)
	}
	number := (*buf)[0]
	if c.text {
		number -= '0'
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	if c.ends && number == wsEnd {
		n, err := io.ReadFull(r, (*buf)[:1])
		if n == 1 && int((*buf)[0]) < len(c.streams) {
			c.streams[(*buf)[0]].sink.end(nil)
		}
		return ignoreEOF(err)
	}
	for {
		n, err := r.Read((*buf)[:maxChunk])
		if n > 0 && int(number) < len(c.streams) {
			c.streams[number].sink.put((*buf)[:n])
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// ignoreEOF is nil at the end of a message. What is no base64 is dropped as well.
func ignoreEOF(err error) error {
	var corrupt base64.CorruptInputError
	if errors.Is(err, io.EOF) || errors.As(err, &corrupt) {
		return nil
	}
	return err
}

// send implements client.
func (c *wsClient) send(id uint32, p []byte) error {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	kind, frame := websocket.BinaryMessage, append((*buf)[:0], byte(id))
	if c.text {
		kind, frame[0] = websocket.TextMessage, frame[0]+'0'
		frame = base64.StdEncoding.AppendEncode(frame, p)
	} else {
		frame = append(frame, p...)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	return c.ws.WriteMessage(kind, frame)
}

// finish implements client. Nothing in the protocols says so.
func (c *wsClient) finish(uint32) error { return nil }

// reset implements client. Nothing in the protocols says so.
func (c *wsClient) reset(uint32) error { return nil }

// nudge implements client: an empty message, as clients get at the start.
func (c *wsClient) nudge() error { return c.send(c.first, nil) }

// leave implements client.
func (c *wsClient) leave() error { return sayGoodbye(c.ws) }

func sayGoodbye(ws *websocket.Conn) error {
	return ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(byeTime))
}

// tunnel is a WebSocket whose messages' bytes are those of another protocol.
type tunnel struct {
	ws      *websocket.Conn
	message io.Reader // the one that is being read; nil: none
}

// Read reads the messages' bytes as if they were one stream.
func (t *tunnel) Read(p []byte) (int, error) {
	for {
		if t.message == nil {
			kind, message, err := t.ws.NextReader()
			if err != nil {
				return 0, err
			}
			if kind != websocket.BinaryMessage {
				return 0, errProtocol
			}
			t.message = message
		}
		n, err := t.message.Read(p)
		if errors.Is(err, io.EOF) {
			t.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write sends a message. One goroutine may write.
func (t *tunnel) Write(p []byte) (int, error) {
	if err := t.ws.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
