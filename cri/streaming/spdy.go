package streaming

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"

	"github.com/moby/spdystream/spdy"
)

// Limits of what a client may send over SPDY. A data frame has none: it is passed on in pieces.
const (
	maxControlBytes = 16 << 10
	minHeadersBytes = 10 // of a frame with headers
	maxHeaders      = 64
	maxHeaderBytes  = 4 << 10
	headBytes       = 8 // of every frame
	maxStreamID     = 1<<31 - 1
)

// SPDY/3.1 frames, as far as they are written here. https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1
const (
	control     = 1 << 31
	version3    = control | 3<<16
	typeReply   = uint32(spdy.TypeSynReply)
	typeReset   = uint32(spdy.TypeRstStream)
	typePing    = uint32(spdy.TypePing)
	typeGoAway  = uint32(spdy.TypeGoAway)
	flagFin     = 1
	resetRefuse = uint32(spdy.RefusedStream)
	resetCancel = uint32(spdy.Cancel)
)

// No reply has headers, so their compressed form is written by hand, each in a stored block of deflate (RFC 1951 section 3.2.4) and an empty
// one, at which readers hand out what they have: the library would keep a compressor of a MiB for each connection. Before the first one
// stands zlib's head, which names SPDY's dictionary.
var (
	zlibHead  = []byte{0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2}
	noHeaders = []byte{0x00, 0x04, 0x00, 0xfb, 0xff, 0, 0, 0, 0, 0x00, 0x00, 0x00, 0xff, 0xff}
)

var (
	errProtocol = errors.New("the client breaks SPDY's rules")
	errGoneAway = errors.New("the client says that it goes away")
)

// spdyClient is a client that speaks SPDY/3.1, whose streams it opens. One goroutine reads; none waits for a frame.
type spdyClient struct {
	r       *bufio.Reader
	w       io.Writer
	framer  *spdy.Framer // parses headers
	bye     func() error // ends the sending direction of what carries the frames
	opener  opener
	limit   int           // streams at once
	newest  atomic.Uint32 // of the client's streams
	sending sync.Mutex
	replied bool // guarded by sending

	mu      sync.Mutex
	streams map[uint32]*stream
}

// opener decides about the streams that a client opens. It returns the stream's sink, and what to do once the client knows that the stream is open.
type opener func(h http.Header) (sink, func(*stream), error)

// newSPDY speaks with a client over r and w. At most limit streams may be open at once.
func newSPDY(r *bufio.Reader, w io.Writer, limit int, bye func() error) (*spdyClient, error) {
	c := &spdyClient{r: r, w: w, bye: bye, limit: limit, streams: make(map[uint32]*stream)}
	var err error
	c.framer, err = spdy.NewFramerWithOptions(io.Discard, r, spdy.WithMaxControlFramePayloadSize(maxControlBytes),
		spdy.WithMaxHeaderCount(maxHeaders), spdy.WithMaxHeaderFieldSize(maxHeaderBytes))
	if err != nil {
		return nil, fmt.Errorf("make SPDY framer: %w", err)
	}
	return c, nil
}

// serve implements client.
func (c *spdyClient) serve() error {
	defer c.endAll()
	for {
		head, err := c.r.Peek(headBytes)
		if err != nil {
			return err
		}
		word, length := binary.BigEndian.Uint32(head), int(binary.BigEndian.Uint32(head[4:])&0xffffff)
		if word&control == 0 {
			fin := head[4]&flagFin != 0
			c.r.Discard(headBytes) //nolint:errcheck // they were peeked at
			if err := c.data(c.find(word), length); err != nil {
				return err
			}
			if fin {
				c.heardEnd(c.find(word))
			}
			continue
		}
		if length > maxControlBytes || word&0x7fff0000 != version3&0x7fff0000 {
			return errProtocol
		}
		if err := c.controlFrame(spdy.ControlFrameType(word&0xffff), length); err != nil {
			return err
		}
	}
}

// data gives a data frame's bytes to a stream's sink, or drops them.
func (c *spdyClient) data(s *stream, length int) error {
	if s == nil || s.heard.Load() {
		_, err := c.r.Discard(length)
		return err
	}
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for length > 0 {
		n, err := c.r.Read((*buf)[:min(length, maxChunk)])
		s.sink.put((*buf)[:n])
		if length -= n; err != nil {
			return err
		}
	}
	return nil
}

// controlFrame reads a control frame, whose head is still to be read.
func (c *spdyClient) controlFrame(kind spdy.ControlFrameType, length int) error {
	switch kind {
	case spdy.TypeSynStream, spdy.TypeHeaders, spdy.TypeSynReply: // all of them move the state of the decompression
		if length < minHeadersBytes { // the library would read on in the next frame
			return errProtocol
		}
		frame, err := c.framer.ReadFrame()
		if err != nil {
			return fmt.Errorf("read SPDY frame: %w", err)
		}
		if syn, ok := frame.(*spdy.SynStreamFrame); ok {
			return c.open(syn)
		}
		return nil
	case spdy.TypeGoAway:
		return errGoneAway
	}
	frame := make([]byte, headBytes+length)
	if _, err := io.ReadFull(c.r, frame); err != nil {
		return err
	}
	if length < 4 {
		return errProtocol
	}
	first := binary.BigEndian.Uint32(frame[headBytes:])
	switch kind {
	case spdy.TypePing:
		if first%2 == 1 { // an answer to none of ours
			return c.write(frame)
		}
	case spdy.TypeRstStream:
		if s := c.forget(first & maxStreamID); s != nil {
			s.over.Store(true)
			s.sink.end(errStreamReset)
		}
	}
	return nil
}

// open opens a stream as the client asks for, or refuses it.
func (c *spdyClient) open(syn *spdy.SynStreamFrame) error {
	id := uint32(syn.StreamId)
	if id%2 == 0 || id <= c.newest.Load() || id > maxStreamID {
		return errProtocol
	}
	c.newest.Store(id)
	c.mu.Lock()
	full := len(c.streams) >= c.limit
	c.mu.Unlock()
	if full {
		return c.writeReset(id, resetRefuse)
	}
	sink, opened, err := c.opener(syn.Headers)
	if err != nil {
		return c.writeReset(id, resetRefuse)
	}
	s := &stream{id: id, to: c, sink: sink}
	c.mu.Lock()
	c.streams[id] = s
	c.mu.Unlock()
	if err := c.reply(id); err != nil {
		return err
	}
	opened(s)
	if syn.CFHeader.Flags&spdy.ControlFlagFin != 0 {
		c.heardEnd(s)
	}
	return nil
}

// reply accepts a stream.
func (c *spdyClient) reply(id uint32) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	block := noHeaders
	if !c.replied {
		block = append(zlibHead[:len(zlibHead):len(zlibHead)], noHeaders...)
		c.replied = true
	}
	frame := controlHead(typeReply, 4+len(block))
	frame = binary.BigEndian.AppendUint32(frame, id)
	_, err := c.w.Write(append(frame, block...))
	return err
}

// send implements client.
func (c *spdyClient) send(id uint32, p []byte) error { return c.writeData(id, 0, p) }

// finish implements client.
func (c *spdyClient) finish(id uint32) error {
	err := c.writeData(id, flagFin, nil)
	if s := c.find(id); s != nil && s.heard.Load() {
		c.forget(id)
	}
	return err
}

// reset implements client.
func (c *spdyClient) reset(id uint32) error {
	s := c.forget(id)
	if s == nil {
		return nil
	}
	return c.writeReset(id, resetCancel)
}

// nudge implements client: no data, on any stream. To a ping clients reply, and while they cannot, some read nothing.
func (c *spdyClient) nudge() error {
	c.mu.Lock()
	var open *stream
	for _, s := range c.streams {
		if !s.over.Load() {
			open = s
			break
		}
	}
	c.mu.Unlock()
	if open == nil {
		return nil
	}
	return c.send(open.id, nil)
}

// leave implements client.
func (c *spdyClient) leave() error {
	frame := controlHead(typeGoAway, 8)
	frame = binary.BigEndian.AppendUint32(frame, c.newest.Load())
	frame = binary.BigEndian.AppendUint32(frame, 0)
	return errors.Join(c.write(frame), c.bye())
}

// heardEnd notes that the client sends no more on a stream.
func (c *spdyClient) heardEnd(s *stream) {
	if s == nil {
		return
	}
	s.heard.Store(true)
	s.sink.end(nil)
	if s.over.Load() {
		c.forget(s.id)
	}
}

// endAll lets everybody go who waits for the client.
func (c *spdyClient) endAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.streams {
		s.over.Store(true)
		s.sink.end(errGone)
	}
	clear(c.streams)
}

// find is an open stream; nil: none.
func (c *spdyClient) find(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.streams[id]
}

// forget takes a stream out of the open ones.
func (c *spdyClient) forget(id uint32) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.streams[id]
	delete(c.streams, id)
	return s
}

// writeData sends a data frame in one write.
func (c *spdyClient) writeData(id uint32, flags byte, p []byte) error {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	frame := binary.BigEndian.AppendUint32((*buf)[:0], id)
	frame = binary.BigEndian.AppendUint32(frame, uint32(flags)<<24|uint32(len(p)))
	return c.write(append(frame, p...))
}

func (c *spdyClient) writeReset(id, status uint32) error {
	frame := controlHead(typeReset, 8)
	frame = binary.BigEndian.AppendUint32(frame, id)
	return c.write(binary.BigEndian.AppendUint32(frame, status))
}

func (c *spdyClient) write(frame []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := c.w.Write(frame)
	return err
}

// controlHead is the head of a control frame, with room for what follows.
func controlHead(kind uint32, length int) []byte {
	frame := make([]byte, 0, headBytes+length)
	frame = binary.BigEndian.AppendUint32(frame, version3|kind)
	return binary.BigEndian.AppendUint32(frame, uint32(length))
}
