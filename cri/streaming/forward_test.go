package streaming_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/test/streamclient"
)

// listen serves connections on loopback until the test ends.
func listen(t testing.TB, serve func(*net.TCPConn)) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				serve(conn.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

func forwarder(t testing.TB, s *streaming.Server, transport streamclient.Transport) *streamclient.Forwarder {
	t.Helper()
	u, err := s.PortForward("s", nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := streamclient.Forward(t.Context(), u, transport)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func connect(t testing.TB, f *streamclient.Forwarder, port uint16) *streamclient.Forwarded {
	t.Helper()
	c, err := f.Connect(port)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var both = []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket}

// TestForwardBothWays moves different bytes in both directions of many connections at once.
func TestForwardBothWays(t *testing.T) {
	for _, transport := range both {
		s := serve(t, streaming.Config{})
		port := listen(t, echo)
		f := forwarder(t, s, transport)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				c, err := f.Connect(port)
				if err != nil {
					t.Error(err)
					return
				}
				data := make([]byte, 2<<20)
				rand.NewChaCha8([32]byte{byte(i)}).Read(data)
				go func() {
					for p := data; len(p) > 0; p = p[min(len(p), 30000):] {
						c.Write(p[:min(len(p), 30000)])
					}
					c.Close()
				}()
				got, err := io.ReadAll(c)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s, connection %d: %v, %d bytes of %d, %x", transport, i, err, len(got), len(data), sha256.Sum256(got))
				}
				if text, err := io.ReadAll(c.Errors); err != nil || len(text) > 0 {
					t.Errorf("%s, connection %d: %q, %v", transport, i, text, err)
				}
			})
		}
		wg.Wait()
	}
}

// TestForwardHalfClose: either side may end first, and the other direction goes on.
func TestForwardHalfClose(t *testing.T) {
	for _, transport := range both {
		s := serve(t, streaming.Config{})
		last := make(chan string, 1)
		port := listen(t, func(c *net.TCPConn) { // ends its side first
			io.WriteString(c, "hello")
			c.CloseWrite()
			text, _ := io.ReadAll(c)
			last <- string(text)
		})
		f := forwarder(t, s, transport)
		c := connect(t, f, port)
		if text, err := io.ReadAll(c); err != nil || string(text) != "hello" {
			t.Errorf("%s: %q, %v", transport, text, err)
		}
		io.WriteString(c, "still here")
		c.Close()
		if got := <-last; got != "still here" {
			t.Errorf("%s: the server got %q", transport, got)
		}
		if text, err := io.ReadAll(c.Errors); err != nil || len(text) > 0 {
			t.Errorf("%s: %q, %v", transport, text, err)
		}
	}
}

// TestForwardErrors: what goes wrong is said on the error stream, and the next connection works.
func TestForwardErrors(t *testing.T) {
	for _, transport := range both {
		s := serve(t, streaming.Config{})
		f := forwarder(t, s, transport)
		c := connect(t, f, streamingtest.NobodysPort)
		if text, err := io.ReadAll(c.Errors); err != nil || !strings.Contains(string(text), "connection refused") {
			t.Errorf("%s: nobody listens: %q, %v", transport, text, err)
		}
		if text, err := io.ReadAll(c); err != nil || len(text) > 0 {
			t.Errorf("%s: nobody listens: data %q, %v", transport, text, err)
		}
		reset := listen(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})
		c = connect(t, f, reset)
		io.WriteString(c, "xx")
		if text, err := io.ReadAll(c.Errors); err != nil || !strings.Contains(string(text), "reset") {
			t.Errorf("%s: reset by the server: %q, %v", transport, text, err)
		}
		c = connect(t, f, listen(t, echo))
		io.WriteString(c, "works")
		c.Close()
		if text, err := io.ReadAll(c); err != nil || string(text) != "works" {
			t.Errorf("%s: after the errors: %q, %v", transport, text, err)
		}
	}
}

// TestForwardClientBreaksOff: the pod's side learns of a client that resets one connection, and of one that goes altogether.
func TestForwardClientBreaksOff(t *testing.T) {
	for _, transport := range both {
		s := serve(t, streaming.Config{})
		ended := make(chan error, 2)
		port := listen(t, func(c *net.TCPConn) {
			io.WriteString(c, "x")
			_, err := io.Copy(io.Discard, c)
			ended <- err
		})
		f := forwarder(t, s, transport)
		one, other := connect(t, f, port), connect(t, f, port)
		for _, c := range []*streamclient.Forwarded{one, other} {
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		one.Reset()
		<-ended
		if text, err := io.ReadAll(one.Errors); err != nil || len(text) > 0 {
			t.Errorf("%s: after a reset: %q, %v", transport, text, err)
		}
		select {
		case <-ended:
			t.Errorf("%s: the other connection ended too", transport)
		default:
		}
		f.Abort()
		<-ended
	}
}

// Fails when a stream without its other half, with a wrong head, or one too many is taken.
func TestForwardStreamsAreChecked(t *testing.T) {
	t.Parallel()
	s := serve(t, streaming.Config{CreationTimeout: 10 * time.Second}) // in which the other streams must come, too
	port := fmt.Sprint(listen(t, echo))
	f := forwarder(t, s, streamclient.SPDY)
	for name, h := range map[string]map[string]string{
		"no port": {"streamType": "data", "requestID": "1"}, "port 0": {"streamType": "data", "requestID": "1", "port": "0"},
		"a big port": {"streamType": "data", "requestID": "1", "port": "65536"}, "no number": {"streamType": "data", "requestID": "1", "port": "http"},
		"no type": {"requestID": "1", "port": port}, "another type": {"streamType": "stdin", "requestID": "1", "port": port}, "no request": {"streamType": "data", "port": port},
	} {
		if _, err := f.Stream(h); err == nil {
			t.Errorf("%s: the stream was taken", name)
		}
	}
	half, err := f.Stream(map[string]string{"streamType": "data", "requestID": "2", "port": port})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Stream(map[string]string{"streamType": "data", "requestID": "2", "port": port}); err == nil {
		t.Error("a stream was taken twice")
	}
	if _, err := f.Stream(map[string]string{"streamType": "error", "requestID": "2", "port": "1"}); err == nil {
		t.Error("a pair has two ports")
	}
	if _, err := io.ReadAll(half); err != nil { // it is reset when the other half does not come
		t.Error(err)
	}
	c := connect(t, f, listen(t, echo))
	io.WriteString(c, "works")
	c.Close()
	if text, err := io.ReadAll(c); err != nil || string(text) != "works" {
		t.Errorf("after all that: %q, %v", text, err)
	}
	f, taken := forwarder(t, serve(t, streaming.Config{}), streamclient.SPDY), 0
	for i := range 3000 {
		if _, err := f.Stream(map[string]string{"streamType": "error", "requestID": fmt.Sprint("many", i), "port": port}); err != nil {
			break
		}
		taken++
	}
	if taken > 2000 {
		t.Errorf("%d streams were taken", taken)
	}
}

// TestForwardChannels is what clients of older days speak: two channels for each port of the request.
func TestForwardChannels(t *testing.T) {
	s := serve(t, streaming.Config{})
	ports := []uint16{listen(t, echo), streamingtest.NobodysPort}
	u, err := s.PortForward("s", ports)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := streamclient.ForwardChannels(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	if err := ws.WriteMessage(websocket.BinaryMessage, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	got := map[byte][]byte{}
	ws.SetReadDeadline(time.Now().Add(streamingtest.Limit))
	for !strings.Contains(string(got[0]), "hello") || !strings.Contains(string(got[3]), "connection refused") {
		_, message, err := ws.ReadMessage()
		if err != nil {
			t.Fatalf("%v; got %q", err, got)
		}
		got[message[0]] = append(got[message[0]], message[1:]...)
	}
	for channel := range byte(4) {
		if head := binary.LittleEndian.AppendUint16(nil, ports[channel/2]); !bytes.HasPrefix(got[channel], head) {
			t.Errorf("channel %d begins with %q, want %q", channel, got[channel], head)
		}
	}
	if len(got[1]) != 2 || string(got[0][2:]) != "hello" {
		t.Errorf("got %q", got)
	}
}

// TestForwardChannelsEnd: their protocol cannot tell that the pod sends no more, so the session ends when no port has anything to send.
func TestForwardChannelsEnd(t *testing.T) {
	s := serve(t, streaming.Config{})
	port := listen(t, func(c *net.TCPConn) { io.WriteString(c, "bye") })
	u, err := s.PortForward("s", []uint16{port, port})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := streamclient.ForwardChannels(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	ws.SetReadDeadline(time.Now().Add(streamingtest.Limit))
	for got := ""; ; {
		_, message, err := ws.ReadMessage()
		if err == nil {
			got += string(message[1:])
			continue
		}
		if !websocket.IsCloseError(err, websocket.CloseNormalClosure) || strings.Count(got, "bye") != 2 {
			t.Errorf("after %q: %v, want the end", got, err)
		}
		break
	}
}

// TestForwardStalledConnection: a server in the pod that reads nothing keeps nothing of a client that has gone.
func TestForwardStalledConnection(t *testing.T) {
	s := serve(t, streaming.Config{})
	release := make(chan struct{})
	port := listen(t, func(c *net.TCPConn) {
		<-release
		n, err := io.Copy(io.Discard, c)
		if n < 20<<20 && err == nil {
			err = errors.New("short")
		}
	})
	f := forwarder(t, s, streamclient.SPDY)
	c := connect(t, f, port)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range 700 {
			if _, err := c.Write(make([]byte, 30000)); err != nil {
				return
			}
		}
	}()
	time.Sleep(300 * time.Millisecond)
	f.Abort() // while the server does not read: everything is let go all the same
	close(release)
	<-sent
}
