package streaming_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/spdystream/spdy"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/transcript"
)

// upgraded is a connection with a good token that speaks SPDY from now on, as badly as a test likes.
func upgraded(t testing.TB, address, protocol string) net.Conn {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n\r\n", u.Path, protocol)
	r := bufio.NewReaderSize(conn, 16)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	return conn
}

// waitClosed waits until the server has closed a connection.
func waitClosed(t testing.TB, conn net.Conn, after string) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(streamingtest.Limit))
	if _, err := io.Copy(io.Discard, conn); err != nil && err.(net.Error).Timeout() {
		t.Errorf("after %s the connection is still open", after)
	}
}

func frame(kind uint32, length int, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 0x80030000|kind)
	return append(binary.BigEndian.AppendUint32(b, uint32(length)), payload...)
}

// syn is a SYN_STREAM, the first frame with headers on its connection.
func syn(t testing.TB, id spdy.StreamId, h http.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	f, err := spdy.NewFramer(&out, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFrame(&spdy.SynStreamFrame{StreamId: id, Headers: h}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// heap is how much memory is taken from the system for what Go allocates; it does not shrink by itself within a test.
func heap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapSys - m.HeapReleased)
}

// Fails when what a frame claims is believed: each of these ends the connection and takes no memory to speak of.
func TestBadSPDYFramesEndTheConnection(t *testing.T) {
	s := serve(t, streaming.Config{})
	many := http.Header{}
	for i := range 100 {
		many.Set(fmt.Sprintf("h%d", i), "x")
	}
	for name, text := range map[string][]byte{
		"settings without end":       frame(4, 0xffffff, binary.BigEndian.AppendUint32(nil, 1<<31)),
		"headers without end":        frame(8, 0xffffff, make([]byte, 64)),
		"a stream of 8 MiB headers":  syn(t, 1, http.Header{"Streamtype": {string(make([]byte, 8<<20))}}),
		"a stream of many headers":   syn(t, 1, many),
		"a stream of the server's":   syn(t, 2, http.Header{"Streamtype": {"stdout"}}),
		"a stream twice":             append(syn(t, 3, http.Header{"Streamtype": {"stdout"}}), frame(1, 10, []byte{0, 0, 0, 3, 0, 0, 0, 0, 0, 0})...),
		"a stream with a short head": frame(1, 3, []byte{0, 0, 1}),
		"no compression":             frame(1, 14, make([]byte, 14)),
		"a short reset":              frame(3, 2, []byte{0, 1}),
		"another version":            {0x80, 2, 0, 1, 0, 0, 0, 0},
		"the end":                    frame(7, 8, make([]byte, 8)),
		"HTTP":                       []byte("POST /exec/x HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n"),
	} {
		before := heap()
		conn := upgraded(t, execURL(t, s, "sleep", "600"), "v4.channel.k8s.io")
		if _, err := conn.Write(text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name == "HTTP" { // a data frame, as far as SPDY is concerned, of a stream that there is not
			conn.(*net.TCPConn).CloseWrite()
		}
		waitClosed(t, conn, name)
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%s: %d MiB", name, grown>>20)
		}
	}
}

// Fails when frames that need an answer, or belong to no stream, are kept, or have goroutines of their own: the client reads nothing meanwhile.
func TestFloodOfFrames(t *testing.T) {
	s := serve(t, streaming.Config{})
	for name, text := range map[string][]byte{
		"pings":                frame(6, 4, []byte{0, 0, 0, 1}),
		"resets":               frame(3, 8, []byte{0, 0, 0, 9, 0, 0, 0, 1}),
		"settings":             frame(4, 4, make([]byte, 4)),
		"data of no stream":    append(binary.BigEndian.AppendUint32([]byte{0, 0, 0, 9}, 1000), make([]byte, 1000)...),
		"window updates":       frame(9, 8, []byte{0, 0, 0, 1, 0, 0, 0, 1}),
		"unknown frames":       frame(77, 4, make([]byte, 4)),
		"data without a limit": binary.BigEndian.AppendUint32([]byte{0, 0, 0, 9}, 0xffffff),
	} {
		conn := upgraded(t, execURL(t, s, "sleep", "600"), "v4.channel.k8s.io")
		before, goroutines := heap(), runtime.NumGoroutine()
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		batch := bytes.Repeat(text, 1+100000/len(text))
		for sent := 0; sent < 50<<20; sent += len(batch) {
			if _, err := conn.Write(batch); err != nil {
				break
			}
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%s: %d MiB", name, grown>>20)
		}
		if n := runtime.NumGoroutine() - goroutines; n > 20 {
			t.Errorf("%s: %d goroutines more", name, n)
		}
		conn.Close()
	}
}

// Fails when a stream is taken twice, or one that is none: then a client could replace what a process reads, or have goroutines wait for ever.
func TestExecStreamsAreChecked(t *testing.T) {
	s := serve(t, streaming.Config{})
	conn := upgraded(t, execURL(t, s, "echo", "hello"), "v4.channel.k8s.io")
	var out bytes.Buffer
	f, err := spdy.NewFramer(io.MultiWriter(&out, conn), conn)
	if err != nil {
		t.Fatal(err)
	}
	refusals := 0
	for i, kind := range []string{"stdout", "stdout", "nonsense", "", "stderr", "stdin", "resize", "stdout", "error"} {
		id := spdy.StreamId(2*i + 1)
		if err := f.WriteFrame(&spdy.SynStreamFrame{StreamId: id, Headers: http.Header{"Streamtype": {kind}}}); err != nil {
			t.Fatal(err)
		}
		reply, err := f.ReadFrame()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		switch r := reply.(type) {
		case *spdy.SynReplyFrame:
			if r.StreamId != id {
				t.Errorf("%s: answer to stream %d", kind, r.StreamId)
			}
		case *spdy.RstStreamFrame:
			refusals++
		default:
			t.Errorf("%s: %T", kind, reply)
		}
	}
	if refusals != 4 {
		t.Errorf("%d streams were refused, want 4", refusals)
	}
	var got []byte
	for {
		reply, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := reply.(*spdy.DataFrame); ok && d.StreamId == 1 {
			got = append(got, d.Data...)
		}
		if _, ok := reply.(*spdy.GoAwayFrame); ok {
			break
		}
	}
	if string(got) != "hello\n" {
		t.Errorf("output %q", got)
	}
}

// Fails when a size is kept before it is complete, without bound, or when each of many sizes has to be taken.
func TestFloodOfSizes(t *testing.T) {
	s := serve(t, streaming.Config{})
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket} {
		u, err := s.Exec(streaming.Process{ContainerID: "c", Cmd: []string{"sh", "-c", "echo up; while read x; do test \"$x\" != end || exit 0; stty size; done"}, Stdin: true, Stdout: true, Terminal: true})
		if err != nil {
			t.Fatal(err)
		}
		session, err := streamclient.Open(t.Context(), u, transport, streamclient.Process{Stdin: true, Stdout: true, Terminal: true})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		var out transcript.Transcript
		go io.Copy(&out, session.Stdout)
		out.Wait(t, "up")
		before := heap()
		for range 20 {
			if err := session.ResizeText(bytes.Repeat([]byte(`{"Width":1,`), 100000)); err != nil {
				t.Fatal(err)
			}
		}
		session.ResizeText([]byte("}"))
		for i := range 20000 {
			if err := session.Resize(sandbox.TerminalSize{Columns: uint16(i), Lines: 24}); err != nil {
				t.Fatal(err)
			}
		}
		session.ResizeText([]byte(`{"Width":1,"Height":"x"}{"Width":70000,"Height":1}[{"Width":80,`))
		session.ResizeText([]byte(`"Height":24}{"Width":101,"Height":42}`))
		streamingtest.Eventually(t, func() bool { // sizes and input are different streams
			io.WriteString(session.Stdin, "\n")
			time.Sleep(50 * time.Millisecond)
			return strings.Contains(out.String(), "42 101")
		}, "the last size is taken")
		io.WriteString(session.Stdin, "end\n")
		if code, err := session.Wait(); err != nil || code != 0 {
			t.Errorf("%s: %d, %v", transport, code, err)
		}
		if grown := heap() - before; grown > 16<<20 {
			t.Errorf("%s: %d MiB", transport, grown>>20)
		}
	}
}

// Fails when a message is kept as a whole.
func TestBigMessages(t *testing.T) {
	s := serve(t, streaming.Config{})
	var out transcript.Transcript
	before := heap()
	u, err := s.Exec(streaming.Process{ContainerID: "c", Cmd: []string{"wc", "-c"}, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	session, err := streamclient.Open(t.Context(), u, streamclient.WebSocket, streamclient.Process{Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	go io.Copy(&out, session.Stdout)
	const size = 64 << 20
	if err := session.BigMessage(0, size); err != nil {
		t.Fatal(err)
	}
	session.Stdin.Close()
	if code, err := session.Wait(); err != nil || code != 0 {
		t.Errorf("%d, %v", code, err)
	}
	out.Wait(t, fmt.Sprint(size))
	if grown := heap() - before; grown > 16<<20 {
		t.Errorf("a message of %d MiB took %d MiB", size>>20, grown>>20)
	}
}
