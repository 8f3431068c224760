package streaming

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/klog/v2"
)

const (
	protocolPortForward = "portforward.k8s.io"
	// maxForwards is how many connections one client may have at once. Each has two streams.
	maxForwards = 1000
	// dialTime is how long a connection inside the pod may take.
	dialTime = 30 * time.Second
)

// Headers of a port forward's streams over SPDY.
const (
	headerPort    = "port"
	headerRequest = "requestID"
	headerType    = "streamType"
)

var errBadStream = errors.New("a port forward's stream must name its port, its type and its request")

// pair is the two streams of one connection to a port.
type pair struct {
	port         uint16
	inbox        *inbox
	data, errors *stream
	dataTaken    bool
	errorsTaken  bool
	untold       bool        // the client cannot be told that the pod sends no more
	timer        *time.Timer // until both are there
}

// forwards are the connections of one client.
type forwards struct {
	server  *Server
	sess    *session
	sandbox string
	running sync.WaitGroup

	mu    sync.Mutex
	pairs map[string]*pair // of which one stream is missing, by request
}

// serveForward connects a client to ports of a pod.
func (s *Server) serveForward(sess *session, w http.ResponseWriter, r *http.Request, q request) error {
	f := &forwards{server: s, sess: sess, sandbox: q.sandbox, pairs: make(map[string]*pair)}
	if isWebSocket(r) {
		ws, protocol, err := upgradeWebSocket(w, r, []string{wsTunnel, wsV4, wsV4Base64, ""})
		if err != nil {
			return err
		}
		if protocol != wsTunnel {
			return f.channels(ws, protocol, q.ports)
		}
		t := &tunnel{ws: ws}
		c, err := newSPDY(bufio.NewReaderSize(t, readerBytes), t, 2*maxForwards, func() error { return sayGoodbye(ws) })
		if err != nil {
			return err
		}
		c.opener = f.open
		return f.serve(c)
	}
	c, _, err := upgradeSPDY(w, r, []string{protocolPortForward}, func(string) (opener, int) { return f.open, 2 * maxForwards })
	if err != nil {
		return err
	}
	return f.serve(c)
}

// serve lets a client of SPDY open connections until it goes.
func (f *forwards) serve(c client) error {
	f.sess.serve(c)
	<-f.sess.ctx.Done()
	f.sess.part(c)
	f.drop()
	f.running.Wait()
	if cause := context.Cause(f.sess.ctx); !errors.Is(cause, errGone) {
		return cause
	}
	return nil
}

// open takes one stream of a pair.
func (f *forwards) open(h http.Header) (sink, func(*stream), error) {
	port, err := strconv.ParseUint(h.Get(headerPort), 10, 16)
	id, kind := h.Get(headerRequest), h.Get(headerType)
	if err != nil || port == 0 || id == "" || kind != "data" && kind != "error" {
		return nil, nil, errBadStream
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pairs[id]
	if p == nil {
		p = &pair{port: uint16(port), inbox: newInbox()}
		p.timer = time.AfterFunc(f.server.creationTimeout, func() { f.abandon(id, p) })
		f.pairs[id] = p
	}
	if p.port != uint16(port) || kind == "data" && p.dataTaken || kind == "error" && p.errorsTaken {
		return nil, nil, errBadStream
	}
	if kind == "error" {
		p.errorsTaken = true
		return nowhere{}, func(s *stream) { f.add(id, p, &p.errors, s) }, nil
	}
	p.dataTaken = true
	return p.inbox, func(s *stream) { f.add(id, p, &p.data, s) }, nil
}

// add puts a stream into its place of a pair, and connects one that is complete.
func (f *forwards) add(id string, p *pair, place **stream, s *stream) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pairs[id] != p { // abandoned just now
		f.running.Go(func() { s.reset() }) //nolint:errcheck // who has gone is found by reading
		return
	}
	*place = s
	if p.data == nil || p.errors == nil {
		return
	}
	p.timer.Stop()
	delete(f.pairs, id)
	f.running.Go(func() {
		defer recovered(f.sess.ctx)
		f.connect(p)
	})
}

// abandon gives up a pair whose other stream does not come.
func (f *forwards) abandon(id string, p *pair) {
	f.mu.Lock()
	if f.pairs[id] != p {
		f.mu.Unlock()
		return
	}
	delete(f.pairs, id)
	f.mu.Unlock()
	p.inbox.close()
	for _, s := range []*stream{p.data, p.errors} {
		if s != nil {
			s.reset() //nolint:errcheck // who has gone is found by reading
		}
	}
}

// drop gives up the pairs that are not complete.
func (f *forwards) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pairs {
		p.timer.Stop()
		p.inbox.close()
	}
	clear(f.pairs)
}

// channels connects the ports that were asked for, each with two channels of WebSocket: a pair of a client of older days.
func (f *forwards) channels(ws *websocket.Conn, protocol string, ports []uint16) error {
	var sinks []sink
	pairs := make([]*pair, len(ports))
	for i, port := range ports {
		pairs[i] = &pair{port: port, inbox: newInbox(), untold: true}
		sinks = append(sinks, pairs[i].inbox, nowhere{})
	}
	c := newWebSocket(ws, protocol, sinks)
	f.sess.serve(c)
	defer f.sess.part(c)
	for i, p := range pairs {
		p.data, p.errors = c.streams[2*i], c.streams[2*i+1]
		number := binary.LittleEndian.AppendUint16(nil, p.port) // the first message of each channel
		p.data.Write(number)                                    //nolint:errcheck // who has gone is found by reading
		p.errors.Write(number)                                  //nolint:errcheck // as above
		f.running.Go(func() {
			defer recovered(f.sess.ctx)
			f.connect(p)
		})
	}
	f.running.Wait()
	return nil
}

// connect makes the connection of a pair and moves bytes until both sides have ended, or one broke.
func (f *forwards) connect(p *pair) {
	err := f.move(p)
	p.inbox.close()
	if err != nil && f.sess.ctx.Err() == nil {
		klog.FromContext(f.sess.ctx).V(4).Info("Could not forward a port", "port", p.port, "err", err)
		fmt.Fprintf(p.errors, "forward port %d: %v", p.port, err)
		p.data.reset() //nolint:errcheck // who has gone is found by reading
	}
	p.data.finish()   //nolint:errcheck // as above
	p.errors.finish() //nolint:errcheck // as above
}

func (f *forwards) move(p *pair) error {
	ctx, cancel := context.WithTimeout(f.sess.ctx, dialTime)
	conn, err := f.server.runtime.Dial(ctx, f.sandbox, p.port)
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(f.sess.ctx, func() { conn.Close() })
	defer stop()
	sent := make(chan error, 1)
	go func() {
		defer recovered(f.sess.ctx)
		sent <- f.toPod(conn, p.inbox)
	}()
	_, err = copyChunks(p.data, conn)
	if err != nil {
		conn.Close()
		p.inbox.close()
	} else {
		err = p.data.finish()
		if p.untold { // it would wait for ever: the end of one direction is that of the connection
			p.inbox.close()
		}
	}
	sendErr := <-sent
	if err == nil || errors.Is(err, net.ErrClosed) { // the other direction knows why
		err = sendErr
	}
	return ignoreEnd(err)
}

// toPod sends what the client sends, and then says that this was all. A client that has broken off breaks the connection off.
func (f *forwards) toPod(conn net.Conn, in *inbox) error {
	_, err := copyChunks(conn, in)
	if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
		return half.CloseWrite()
	}
	conn.Close()
	return err
}

// ignoreEnd is nil for what a client may do at any time.
func ignoreEnd(err error) error {
	for _, fine := range []error{errStreamReset, errStreamOver, errGone, net.ErrClosed, io.ErrClosedPipe} {
		if errors.Is(err, fine) {
			return nil
		}
	}
	return err
}

// copyChunks copies with a buffer of the pool.
func copyChunks(to io.Writer, from io.Reader) (int64, error) {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	return io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, (*buf)[:maxChunk])
}
