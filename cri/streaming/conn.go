package streaming

import (
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxStrangers is how many connections may be open that have shown no token. One more ends the oldest: who knows a token shows it at
// once, and who does not cannot keep others out by holding connections open.
const maxStrangers = 512

// door is the listener. It keeps the connections that have shown no token.
type door struct {
	net.Listener
	start time.Time

	mu        sync.Mutex
	strangers list.List // of *conn, the oldest first
}

// Accept waits for a connection.
func (d *door) Accept() (net.Conn, error) {
	accepted, err := d.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: accepted, door: d}
	c.touch()
	d.mu.Lock()
	c.place = d.strangers.PushBack(c)
	var oldest *conn
	if d.strangers.Len() > maxStrangers {
		oldest = d.strangers.Front().Value.(*conn)
	}
	d.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return c, nil
}

// conn is a connection from its start to its end, also when TLS is spoken over it.
type conn struct {
	net.Conn
	door   *door
	place  *list.Element // among the strangers; nil: none. Guarded by door.mu
	active atomic.Int64  // when bytes last moved, since door.start
	closed atomic.Bool
	read   atomic.Bool // somebody reads
	nudged atomic.Bool // what is written now is no sign of life
}

// Read notes that the client lives.
func (c *conn) Read(p []byte) (int, error) {
	c.read.Store(true)
	defer c.read.Store(false)
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// Write notes that the client takes what it is sent.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 && !c.nudged.Load() {
		c.touch()
	}
	return n, err
}

// Close ends the connection; again, it does nothing.
func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.known()
	return c.Conn.Close()
}

// CloseWrite tells the client that nothing follows.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// known takes the connection out of the strangers.
func (c *conn) known() {
	c.door.mu.Lock()
	defer c.door.mu.Unlock()
	if c.place != nil {
		c.door.strangers.Remove(c.place)
		c.place = nil
	}
}

func (c *conn) touch() { c.active.Store(int64(time.Since(c.door.start))) }

// idle is for how long no byte has moved.
func (c *conn) idle() time.Duration {
	return time.Since(c.door.start) - time.Duration(c.active.Load())
}

// stalled tells whether nobody reads what the client sends, nor anything is sent to it.
func (c *conn) stalled() bool { return !c.read.Load() && c.idle() > watchInterval }

// hungUp asks the kernel whether the client has closed or reset the connection. Whoever reads notices that without asking, but nobody reads
// while a process does not take what its client has sent before.
func (c *conn) hungUp() bool {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return true
	}
	var gone bool
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(fds, 0)
		gone = err == nil && n > 0
	})
	return gone || err != nil
}

type connKey struct{}

// withConn lets a request's handler find the connection.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	return context.WithValue(ctx, connKey{}, c)
}

// connOf is the connection of a request; nil when it did not come through a door.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}
