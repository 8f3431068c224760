package streamclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"

	"github.com/gorilla/websocket"

	"github.com/berthd/berth/sandbox"
)

// Transport is how a client speaks.
type Transport string

// Transports, by their protocols.
const (
	SPDY      Transport = "v4.channel.k8s.io over SPDY"
	WebSocket Transport = "v5.channel.k8s.io over WebSocket"
	// V4 cannot tell the end of standard input.
	V4     Transport = "v4.channel.k8s.io over WebSocket"
	Base64 Transport = "v4.base64.channel.k8s.io over WebSocket"
)

// Process says which streams of a process a client opens. It must ask for the same in the CRI's request.
type Process struct {
	Stdin, Stdout, Stderr, Terminal bool
}

// Session is a connection to a process. Streams that were not asked for are nil.
type Session struct {
	Stdin          io.WriteCloser // Close tells the end of the input
	Stdout, Stderr io.Reader
	// Errors is how the process ended, once it has.
	Errors io.Reader
	resize io.Writer
	conn   net.Conn
	ws     *websocket.Conn // nil: SPDY
	close  func() error
}

// Open opens a session at a URL.
func Open(ctx context.Context, url string, t Transport, p Process) (*Session, error) {
	if t == SPDY {
		return openSPDY(ctx, url, p)
	}
	return openWebSocket(ctx, url, t, p)
}

// Resize tells the terminal's size.
func (s *Session) Resize(size sandbox.TerminalSize) error {
	text, err := json.Marshal(map[string]uint16{"Width": size.Columns, "Height": size.Lines})
	if err != nil {
		return err
	}
	_, err = s.resize.Write(text)
	return err
}

// ResizeText sends anything as a size.
func (s *Session) ResizeText(text []byte) error {
	_, err := s.resize.Write(text)
	return err
}

// BigMessage sends zeros on a channel of WebSocket, in one message, piece by piece.
func (s *Session) BigMessage(number byte, size int) error {
	w, err := s.ws.NextWriter(websocket.BinaryMessage)
	if err != nil {
		return err
	}
	if _, err := w.Write([]byte{number}); err != nil {
		return err
	}
	for piece := make([]byte, 64<<10); size > 0; size -= len(piece) {
		if _, err := w.Write(piece[:min(size, len(piece))]); err != nil {
			return err
		}
	}
	return w.Close()
}

// Close leaves as a good client does.
func (s *Session) Close() error { return s.close() }

// Abort resets the connection: whatever is on its way is lost.
func (s *Session) Abort() error {
	tcp := s.conn.(*net.TCPConn)
	return errors.Join(tcp.SetLinger(0), tcp.Close())
}

// Vanish closes the connection and says nothing.
func (s *Session) Vanish() error { return s.conn.Close() }

// Wait reads how the process ended. The outputs must be read meanwhile.
func (s *Session) Wait() (code int32, err error) {
	text, err := io.ReadAll(s.Errors)
	if err != nil {
		return 0, fmt.Errorf("read the end of the process: %w", err)
	}
	var status struct {
		Status, Message, Reason string
		Details                 struct {
			Causes []struct{ Reason, Message string }
		}
	}
	if err := json.Unmarshal(text, &status); err != nil {
		return 0, fmt.Errorf("end of the process %q: %w", text, err)
	}
	switch {
	case status.Status == "Success":
		return 0, nil
	case status.Reason == "NonZeroExitCode" && len(status.Details.Causes) == 1 && status.Details.Causes[0].Reason == "ExitCode":
		n, err := strconv.ParseInt(status.Details.Causes[0].Message, 10, 32)
		return int32(n), err
	}
	return 0, fmt.Errorf("%s: %s", status.Reason, status.Message)
}

// Run talks to a process until it ends, and returns its exit code.
func Run(ctx context.Context, url string, t Transport, streams sandbox.Streams) (int32, error) {
	p := Process{Stdin: streams.Stdin != nil, Stdout: streams.Stdout != nil, Stderr: streams.Stderr != nil, Terminal: streams.Terminal}
	s, err := Open(ctx, url, t, p)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	stop := context.AfterFunc(ctx, func() { s.Vanish() })
	defer stop()
	if p.Stdin {
		go func() {
			io.Copy(s.Stdin, streams.Stdin)
			s.Stdin.Close()
		}()
	}
	if p.Terminal && streams.Resize != nil {
		over := make(chan struct{})
		defer close(over)
		go func() {
			for {
				select {
				case size, ok := <-streams.Resize:
					if !ok {
						return
					}
					s.Resize(size)
				case <-over:
					return
				}
			}
		}()
	}
	var outputs sync.WaitGroup
	var errs [2]error
	for i, c := range []struct {
		to   io.Writer
		from io.Reader
	}{{streams.Stdout, s.Stdout}, {streams.Stderr, s.Stderr}} {
		if c.to != nil {
			outputs.Go(func() {
				if _, errs[i] = io.Copy(c.to, c.from); errs[i] != nil {
					s.Vanish()
					io.Copy(io.Discard, c.from) // what nobody takes would keep spdystream from telling the other streams of the end
				}
			})
		}
	}
	code, err := s.Wait()
	outputs.Wait()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	return code, errors.Join(err, errs[0], errs[1])
}
