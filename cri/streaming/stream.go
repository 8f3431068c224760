package streaming

import (
	"encoding/json"
	"errors"
	"io"
	"sync"
	"sync/atomic"

	"github.com/berthd/berth/sandbox"
)

// maxChunk is the most that goes in one frame or message.
const maxChunk = 32 << 10

// chunks are buffers for a frame or message of maxChunk and what stands before it. They are held while bytes move, not while a session is idle.
var chunks = sync.Pool{New: func() any { b := make([]byte, maxChunk+maxHead); return &b }}

// maxHead is the most that stands before a chunk.
const maxHead = 16

var (
	errStreamOver  = errors.New("nothing more can be sent on the stream")
	errStreamReset = errors.New("the client has reset the stream")
)

// client is a connection that carries streams.
type client interface {
	// serve takes what the client sends until that ends, and gives it to the streams' sinks.
	serve() error
	// send sends at most maxChunk bytes on a stream.
	send(id uint32, p []byte) error
	// finish says that nothing more will be sent on a stream.
	finish(id uint32) error
	// reset ends a stream in both directions.
	reset(id uint32) error
	// nudge sends what the client ignores.
	nudge() error
	// leave says that nothing more will be sent at all.
	leave() error
}

// sink takes what the client sends on a stream. It is used by one goroutine.
type sink interface {
	// put takes bytes; it may wait for who needs them, and then nothing else is read from the client.
	put(p []byte)
	// end says that no more will come: nil when the client said so, else because the stream was reset or the client is gone. It may be called again.
	end(cause error)
}

// stream is one of a client's streams; what is written to it is sent.
type stream struct {
	id    uint32
	to    client
	sink  sink
	over  atomic.Bool // nothing more can be sent
	heard atomic.Bool // the client sends no more
}

// Write sends bytes.
func (s *stream) Write(p []byte) (int, error) {
	for done := 0; ; {
		if s.over.Load() {
			return done, errStreamOver
		}
		n := min(len(p)-done, maxChunk)
		if err := s.to.send(s.id, p[done:done+n]); err != nil {
			return done, err
		}
		if done += n; done == len(p) {
			return done, nil
		}
	}
}

// finish says that nothing more will be sent.
func (s *stream) finish() error {
	if s == nil || s.over.Swap(true) {
		return nil
	}
	return s.to.finish(s.id)
}

// reset ends the stream in both directions.
func (s *stream) reset() error {
	if s.over.Swap(true) {
		return nil
	}
	return s.to.reset(s.id)
}

// nowhere is the sink of a stream on which nothing is expected.
type nowhere struct{}

func (nowhere) put([]byte) {}
func (nowhere) end(error)  {}

// inbox is a sink that somebody reads from. It holds nothing: the client is read as fast as the reader reads.
type inbox struct {
	r *io.PipeReader
	w *io.PipeWriter
}

func newInbox() *inbox {
	r, w := io.Pipe()
	return &inbox{r, w}
}

func (i *inbox) put(p []byte)    { i.w.Write(p) } //nolint:errcheck // what nobody wants any more is dropped
func (i *inbox) end(cause error) { i.w.CloseWithError(cause) }

// Read waits for what the client sends.
func (i *inbox) Read(p []byte) (int, error) { return i.r.Read(p) }

// close says that nobody will read any more.
func (i *inbox) close() { i.r.Close() }

// stdin is an inbox for which the end of the client is the end of the input.
type stdin struct{ *inbox }

func (s stdin) end(error) { s.inbox.end(nil) }

// maxSizeBytes is the longest description of a terminal's size.
const maxSizeBytes = 512

// sizes is the sink of a stream of terminal sizes, JSON objects one after another. Only the newest is kept.
type sizes struct {
	c    chan sandbox.TerminalSize
	text []byte
	over bool
}

func newSizes() *sizes { return &sizes{c: make(chan sandbox.TerminalSize, 1)} }

func (s *sizes) put(p []byte) {
	for _, b := range p {
		if s.text = append(s.text, b); b == '}' {
			s.parse()
		}
		if len(s.text) > maxSizeBytes {
			s.text = s.text[:0]
		}
	}
}

// parse hands on what has come. What is no size is dropped.
func (s *sizes) parse() {
	var size struct{ Width, Height uint16 }
	err := json.Unmarshal(s.text, &size)
	s.text = s.text[:0]
	if err != nil || s.over {
		return
	}
	select {
	case <-s.c:
	default:
	}
	s.c <- sandbox.TerminalSize{Columns: size.Width, Lines: size.Height} // one place is free: nobody else sends
}

func (s *sizes) end(error) {
	if !s.over {
		s.over = true
		close(s.c)
	}
}
