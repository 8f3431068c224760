package streaming

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/berthd/berth/sandbox"
)

// Process says which process a client wants to talk to, and by which of its streams.
type Process struct {
	ContainerID                     string
	Cmd                             []string // of an exec
	Stdin, Stdout, Stderr, Terminal bool
	// Deaf says that the process reads nothing: what the client sends is dropped.
	Deaf bool
}

// The streams of a process, by their numbers in WebSocket's protocols.
const (
	slotStdin = iota
	slotStdout
	slotStderr
	slotError
	slotResize
	slotCount
)

// slotNames are what SPDY's clients call them, in the header streamType.
var slotNames = map[string]int{"stdin": slotStdin, "stdout": slotStdout, "stderr": slotStderr, "error": slotError, "resize": slotResize}

// SPDY's protocols of a process's streams, the newest first. In v4 how the process ended is told in JSON, before that in words; before v3
// there is no stream for the terminal's size.
const (
	protocolV4 = "v4.channel.k8s.io"
	protocolV3 = "v3.channel.k8s.io"
	protocolV2 = "v2.channel.k8s.io"
)

var errUnknownStream = errors.New("unknown or repeated stream")

// slots are the streams of one process. SPDY's clients open them one after another.
type slots struct {
	stdin *inbox
	sizes *sizes
	ready chan struct{} // closed when all that are wanted are there

	mu      sync.Mutex
	missing int
	taken   [slotCount]bool
	streams [slotCount]*stream
}

// wanted says which streams must be there before the process is started.
func (p Process) wanted(protocol string) [slotCount]bool {
	var w [slotCount]bool
	w[slotStdin], w[slotStdout], w[slotStderr], w[slotError] = p.Stdin, p.Stdout, p.Stderr, true
	w[slotResize] = p.Terminal && protocol != protocolV2
	return w
}

func newSlots(p Process, protocol string) *slots {
	s := &slots{stdin: newInbox(), sizes: newSizes(), ready: make(chan struct{})}
	for _, want := range p.wanted(protocol) {
		if want {
			s.missing++
		}
	}
	if !p.Stdin || p.Deaf {
		s.stdin.close()
	}
	return s
}

// sink takes what comes on a stream.
func (s *slots) sink(slot int) sink {
	switch slot {
	case slotStdin:
		return stdin{s.stdin}
	case slotResize:
		return s.sizes
	}
	return nowhere{}
}

// opener takes the streams that a client of SPDY opens, each once. One that was not asked for is taken too, and not used.
func (s *slots) opener(want [slotCount]bool) opener {
	return func(h http.Header) (sink, func(*stream), error) {
		slot, ok := slotNames[h.Get("streamType")]
		s.mu.Lock()
		defer s.mu.Unlock()
		if !ok || s.taken[slot] {
			return nil, nil, errUnknownStream
		}
		s.taken[slot] = true
		return s.sink(slot), func(opened *stream) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.streams[slot] = opened
			if want[slot] {
				if s.missing--; s.missing == 0 {
					close(s.ready)
				}
			}
		}, nil
	}
}

// all takes the streams of a client of WebSocket.
func (s *slots) all(streams []*stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	copy(s.streams[:], streams)
	close(s.ready)
}

// end lets go who waits for the client, and whom the client waits for.
func (s *slots) end() {
	s.stdin.close()
	s.stdin.end(nil)
}

// of makes the streams that a process is given.
func (s *slots) of(p Process) sandbox.Streams {
	s.mu.Lock()
	defer s.mu.Unlock()
	streams := sandbox.Streams{Terminal: p.Terminal, Resize: s.sizes.c}
	if p.Stdin && !p.Deaf {
		streams.Stdin = s.stdin
	}
	if p.Stdout {
		streams.Stdout = s.streams[slotStdout]
	}
	if p.Stderr {
		streams.Stderr = s.streams[slotStderr]
	}
	return streams
}

// serveProcess runs a command with a client's streams, or attaches them to a container.
func (s *Server) serveProcess(sess *session, w http.ResponseWriter, r *http.Request, q request) error {
	c, streams, protocol, err := openProcess(w, r, q.process)
	if err != nil {
		return err
	}
	sess.serve(c)
	defer sess.part(c)
	defer streams.end()
	timer := time.NewTimer(s.creationTimeout)
	defer timer.Stop()
	select {
	case <-streams.ready:
	case <-timer.C:
		err := fmt.Errorf("wait for the client's streams: %w", context.DeadlineExceeded)
		sess.end(err) // nothing is on its way to such a client
		return err
	case <-sess.ctx.Done():
		return context.Cause(sess.ctx)
	}
	o := s.run(sess.ctx, q, streams.of(q.process))
	streams.stdin.close()
	if text := o.text(protocol); len(text) > 0 {
		streams.streams[slotError].Write(text) //nolint:errcheck // there is nobody else to tell
	}
	for _, slot := range []int{slotStdout, slotStderr, slotError} {
		streams.streams[slot].finish() //nolint:errcheck // as above
	}
	return o.err
}

// openProcess speaks with a client in the protocol that it asks for.
func openProcess(w http.ResponseWriter, r *http.Request, p Process) (client, *slots, string, error) {
	if isWebSocket(r) {
		ws, protocol, err := upgradeWebSocket(w, r, []string{wsV5, wsV4, wsV4Base64, wsChannels, wsBase64Channels, ""})
		if err != nil {
			return nil, nil, "", err
		}
		streams := newSlots(p, protocol)
		sinks := make([]sink, slotCount)
		for i := range sinks {
			sinks[i] = streams.sink(i)
		}
		c := newWebSocket(ws, protocol, sinks)
		streams.all(c.streams)
		// Clients wait for a first message, which may be empty, on the first channel that there is to read from.
		c.first = slotError
		if p.Stdout {
			c.first = slotStdout
		} else if p.Stderr {
			c.first = slotStderr
		}
		c.nudge() //nolint:errcheck // who has gone is found by reading
		return c, streams, protocol, nil
	}
	var streams *slots
	c, protocol, err := upgradeSPDY(w, r, []string{protocolV4, protocolV3, protocolV2}, func(protocol string) (opener, int) {
		streams = newSlots(p, protocol)
		return streams.opener(p.wanted(protocol)), slotCount
	})
	if err != nil {
		return nil, nil, "", err
	}
	return c, streams, protocol, nil
}

// run does what the client wants.
func (s *Server) run(ctx context.Context, q request, streams sandbox.Streams) outcome {
	if q.kind == kindAttach {
		err := s.runtime.Attach(ctx, q.process.ContainerID, streams)
		return outcome{err: endOf(ctx, err)}
	}
	code, err := s.runtime.Exec(ctx, q.process.ContainerID, q.process.Cmd, streams)
	return outcome{code: code, err: endOf(ctx, err)}
}

// endOf says why a call ended: when its context has, the cause of that.
func endOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// outcome is how a process's part of a session ended.
type outcome struct {
	code int32
	err  error
}

// exitStatus is the part of Kubernetes' Status (k8s.io/apimachinery/pkg/apis/meta/v1) that clients look at.
type exitStatus struct {
	Status  string       `json:"status"`
	Message string       `json:"message,omitempty"`
	Reason  string       `json:"reason,omitempty"`
	Details *exitDetails `json:"details,omitempty"`
	Code    int          `json:"code,omitempty"`
}

type exitDetails struct {
	Causes []exitCause `json:"causes"`
}

type exitCause struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// text is what the client reads of it on the error stream.
func (o outcome) text(protocol string) []byte {
	status := exitStatus{Status: "Success"}
	switch {
	case o.err != nil:
		status = exitStatus{Status: "Failure", Reason: "InternalError", Code: http.StatusInternalServerError,
			Message: "Internal error occurred: " + o.err.Error()}
	case o.code != 0:
		status = exitStatus{Status: "Failure", Reason: "NonZeroExitCode",
			Message: fmt.Sprintf("command terminated with exit code %d", o.code),
			Details: &exitDetails{Causes: []exitCause{{Reason: "ExitCode", Message: strconv.Itoa(int(o.code))}}}}
	}
	switch protocol {
	case protocolV4, wsV4Base64, wsV5: // wsV4 is protocolV4
		text, _ := json.Marshal(status) //nolint:errchkjson // strings and numbers
		return text
	}
	return []byte(status.Message)
}

// upgradeSPDY speaks SPDY with a client in the first of its protocols that is among ours. Whom it cannot do that with is told why.
func upgradeSPDY(w http.ResponseWriter, r *http.Request, ours []string, with func(protocol string) (opener, int)) (client, string, error) {
	protocol, err := negotiate(w, headerValues(r, "X-Stream-Protocol-Version"), ours)
	if err != nil {
		return nil, "", err
	}
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, "", fmt.Errorf("take the connection over: %w", err)
	}
	bye := func() error { return nil }
	if half, ok := nc.(interface{ CloseWrite() error }); ok {
		bye = half.CloseWrite
	}
	open, limit := with(protocol)
	c, err := newSPDY(bufio.NewReaderSize(rw.Reader, readerBytes), nc, limit, bye)
	if err != nil {
		return nil, "", err
	}
	c.opener = open
	_, err = fmt.Fprintf(nc, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Stream-Protocol-Version: %s\r\n\r\n", spdy31, protocol)
	if err != nil {
		return nil, "", fmt.Errorf("answer the client: %w", err)
	}
	return c, protocol, nil
}
