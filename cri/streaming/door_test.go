package streaming_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/cri/streaming/streamingtest"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/transcript"
)

func execURL(t testing.TB, s *streaming.Server, cmd ...string) string {
	t.Helper()
	u, err := s.Exec(streaming.Process{ContainerID: "c", Cmd: cmd, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// send sends a request and returns all of the answer.
func send(t testing.TB, address, text string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(streamingtest.Limit))
	go io.WriteString(conn, text)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("answer to %.80q: %v", text, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Content-Type", "Connection", "X-Content-Type-Options"} {
		body = append(body, "\n"+name+": "+resp.Header.Get(name)...)
	}
	return resp.StatusCode, string(body)
}

const upgradeHead = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"

// Fails when any of these requests is answered in another way than the rest: then the answer tells a stranger something.
func TestStrangersLearnNothing(t *testing.T) {
	s := serve(t, streaming.Config{})
	base, err := url.Parse(execURL(t, s, "true"))
	if err != nil {
		t.Fatal(err)
	}
	token := base.Path[len("/exec/"):]
	spent := execURL(t, s, "true")
	if _, err := streamclient.Run(t.Context(), spent, streamclient.SPDY, sandbox.Streams{Stdout: io.Discard}); err != nil {
		t.Fatal(err)
	}
	spentURL, _ := url.Parse(spent)
	var want string
	for i, tc := range []struct{ name, line string }{
		{"nothing", "GET / "}, {"no token", "GET /exec/ "}, {"a short token", "POST /exec/a "}, {"a wrong token", "POST /exec/" + strings.Repeat("A", len(token)) + " "},
		{"a token and more", "POST /exec/" + token + "/x "}, {"a long token", "POST /exec/" + strings.Repeat("A", 50000) + " "},
		{"a spent token", "POST " + spentURL.Path + " "}, {"another method", "PUT /exec/" + token + " "}, {"an unknown kind", "GET /run/" + token + "2 "},
		{"an upper kind", "GET /EXEC/" + strings.ToLower(token) + " "}, {"dots", "GET /exec/../exec/x "}, {"a query", "GET /exec/?token=" + token + " "},
		{"debugging", "GET /debug/pprof/ "}, {"a whole URL", "GET http://127.0.0.1/x "},
	} {
		code, answer := send(t, base.Host, tc.line+"HTTP/1.1\r\nHost: x\r\n"+upgradeHead+"\r\n")
		if i == 0 {
			want = answer
		}
		if code != http.StatusNotFound || answer != want {
			t.Errorf("%s: %d %q, want 404 %q", tc.name, code, answer, want)
		}
	}
	// The token that was not spent above still is good.
	if _, err := streamclient.Run(t.Context(), base.String(), streamclient.SPDY, sandbox.Streams{Stdout: io.Discard}); err != nil {
		t.Errorf("the token: %v", err)
	}
}

func refused(err error, code int) bool {
	var r *streamclient.RefusedError
	return errors.As(err, &r) && r.Code == code
}

// Fails when a URL can be used by two clients, at once or one after the other.
func TestURLServesOneClient(t *testing.T) {
	s := serve(t, streaming.Config{})
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket} {
		address := execURL(t, s, "true")
		var wg sync.WaitGroup
		errs := make(chan error, 8)
		for range 8 {
			wg.Go(func() {
				_, err := streamclient.Run(t.Context(), address, transport, sandbox.Streams{Stdout: io.Discard})
				errs <- err
			})
		}
		wg.Wait()
		served := 0
		for range 8 {
			if err := <-errs; err == nil {
				served++
			} else if !refused(err, http.StatusNotFound) {
				t.Error(err)
			}
		}
		if served != 1 {
			t.Errorf("%s: %d clients were served", transport, served)
		}
	}
}

// Fails when a header of origin opens the door, or closes it: some clients of the API server always send one, and the kubelet passes it on.
func TestOriginsAreNotLookedAt(t *testing.T) {
	s := serve(t, streaming.Config{})
	const webSocketHead = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
	for protocol, head := range map[string]string{"SPDY": upgradeHead, "WebSocket": webSocketHead} {
		u, err := url.Parse(execURL(t, s, "true"))
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			path string
			code int
		}{{"/exec/" + strings.Repeat("A", len(u.Path)-len("/exec/")), http.StatusNotFound}, {u.Path, http.StatusSwitchingProtocols}, {u.Path, http.StatusNotFound}} {
			text := "GET " + tc.path + " HTTP/1.1\r\nHost: x\r\n" + head
			without, want := 0, ""
			if tc.code == http.StatusNotFound {
				without, want = send(t, u.Host, text+"\r\n")
			}
			code, answer := send(t, u.Host, text+"Origin: https://elsewhere.example\r\n\r\n")
			if code != tc.code || want != "" && (without != code || answer != want) {
				t.Errorf("%s, %s: %d %q, want %d; without an origin %d %q", protocol, tc.path, code, answer, tc.code, without, want)
			}
		}
	}
}

// Fails when a URL for one thing does another, or stays good after a try.
func TestURLOfAnotherKind(t *testing.T) {
	s := serve(t, streaming.Config{})
	address := execURL(t, s, "true")
	for _, u := range []string{strings.Replace(address, "/exec/", "/attach/", 1), address} {
		if _, err := streamclient.Open(t.Context(), u, streamclient.SPDY, streamclient.Process{Stdout: true}); !refused(err, http.StatusNotFound) {
			t.Errorf("%s: %v", u, err)
		}
	}
	forward, err := s.PortForward("s", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := streamclient.Open(t.Context(), strings.Replace(forward, "/portforward/", "/exec/", 1), streamclient.WebSocket, streamclient.Process{Stdout: true}); !refused(err, http.StatusNotFound) {
		t.Errorf("a port forward as exec: %v", err)
	}
}

func TestClientsThatCannotBeServedAreToldWhy(t *testing.T) {
	s := serve(t, streaming.Config{})
	for _, tc := range []struct {
		name, head, says string
		code             int
	}{
		{"no upgrade", "", "SPDY/3.1", http.StatusBadRequest},
		{"an upgrade to something else", "Connection: Upgrade\r\nUpgrade: h2c\r\n", "SPDY/3.1", http.StatusBadRequest},
		{"no protocol", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n", "protocols", http.StatusForbidden},
		{"an unknown protocol", "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9.channel.k8s.io\r\n", "protocols", http.StatusForbidden},
		{"an unknown protocol over WebSocket", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v9\r\n", "protocols", http.StatusForbidden},
		{"an old WebSocket", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 7\r\n", "version", http.StatusBadRequest},
	} {
		u, err := url.Parse(execURL(t, s, "true"))
		if err != nil {
			t.Fatal(err)
		}
		code, answer := send(t, u.Host, "GET "+u.Path+" HTTP/1.1\r\nHost: x\r\n"+tc.head+"\r\n")
		if code != tc.code || !strings.Contains(answer, tc.says) {
			t.Errorf("%s: %d %q, want %d and %q", tc.name, code, answer, tc.code, tc.says)
		}
		if code, _ := send(t, u.Host, "GET "+u.Path+" HTTP/1.1\r\nHost: x\r\n\r\n"); code != http.StatusNotFound {
			t.Errorf("%s: the token is still good", tc.name)
		}
	}
}

// Fails when a request's head has no limit of size (431) or of time.
func TestRequestHeadsAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, streaming.Config{})
	u, _ := url.Parse(s.URL())
	if code, _ := send(t, u.Host, "GET /exec/x HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 200<<10)+"\r\n\r\n"); code != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a head of 200 KiB: %d", code)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	begin := time.Now()
	stop := make(chan struct{})
	go func() { // a byte every 100 ms
		defer close(stop)
		for _, b := range []byte("GET /exec/x HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", 10000)) {
			if _, err := conn.Write([]byte{b}); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	conn.SetReadDeadline(time.Now().Add(2 * streamingtest.Limit))
	if _, err := io.ReadAll(conn); err != nil && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("a slow head: %v", err)
	}
	if d := time.Since(begin); d > streamingtest.Limit {
		t.Errorf("a slow head was read for %v", d)
	}
	conn.Close()
	<-stop
}

// Fails when connections that show no token can keep others out, or are kept without bound.
func TestIdleStrangersKeepNobodyOut(t *testing.T) {
	s := serve(t, streaming.Config{})
	u, _ := url.Parse(s.URL())
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range 1500 {
		c, err := net.Dial("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	var out transcript.Transcript
	code, err := streamclient.Run(t.Context(), execURL(t, s, "echo", "in"), streamclient.SPDY, sandbox.Streams{Stdout: &out})
	if err != nil || code != 0 || out.String() != "in\n" {
		t.Errorf("beside 1,500 idle connections: %d, %v, %q", code, err, out.String())
	}
	streamingtest.Eventually(t, func() bool {
		open := 0
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(time.Millisecond))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, context.DeadlineExceeded) || strings.Contains(fmt.Sprint(err), "timeout") {
				open++
			}
		}
		return open <= 512
	}, "all idle connections but 512 are closed")
}

// Fails when a session without traffic is kept, or when one with traffic is not.
func TestIdleSessionsEnd(t *testing.T) {
	t.Parallel()
	const timeout = 8 * time.Second // a busy machine may keep even a session with traffic waiting
	s := serve(t, streaming.Config{IdleTimeout: timeout})
	var both sync.WaitGroup
	defer both.Wait()
	busy := execURL(t, s, "sh", "-c", "for i in $(seq 100); do echo $i; sleep 0.1; done; exit 7")
	both.Go(func() {
		if code, err := streamclient.Run(t.Context(), busy, streamclient.WebSocket, sandbox.Streams{Stdout: io.Discard}); err != nil || code != 7 {
			t.Errorf("a busy session: %d, %v", code, err)
		}
	})
	begin := time.Now()
	if _, err := streamclient.Run(t.Context(), execURL(t, s, "sleep", "600"), streamclient.SPDY, sandbox.Streams{Stdout: io.Discard}); err == nil {
		t.Error("an idle session ended well")
	}
	if d := time.Since(begin); d < timeout || d > timeout+streamingtest.Limit {
		t.Errorf("an idle session took %v", d)
	}
}

// Fails when a client that opens no streams, or not all of them, is waited for.
func TestStreamsMustCome(t *testing.T) {
	s := serve(t, streaming.Config{CreationTimeout: 300 * time.Millisecond})
	u, err := s.Exec(streaming.Process{ContainerID: "c", Cmd: []string{"true"}, Stdin: true, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	session, err := streamclient.Open(t.Context(), u, streamclient.SPDY, streamclient.Process{Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if _, err := session.Wait(); err == nil {
		t.Error("a session without output ended well")
	}
}

// TestShutdownTellsClients: whoever listens is told why it ends; whoever does not holds up nothing.
func TestShutdownTellsClients(t *testing.T) {
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket} {
		s := serve(t, streaming.Config{})
		good, err := streamclient.Open(t.Context(), execURL(t, s, "sh", "-c", "echo up; sleep 600"), transport, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		defer good.Close()
		if _, err := io.ReadFull(good.Stdout, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, good.Stdout)
		stalled, err := streamclient.Open(t.Context(), execURL(t, s, "cat", "/dev/zero"), transport, streamclient.Process{Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		defer stalled.Close()
		time.Sleep(100 * time.Millisecond)
		ended := make(chan error, 1)
		begin := time.Now()
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), streamingtest.Limit)
			defer cancel()
			ended <- s.Shutdown(ctx)
		}()
		if _, err := good.Wait(); err == nil || !strings.Contains(err.Error(), "the daemon is ending") {
			t.Errorf("%s: the client is told %v", transport, err)
		}
		good.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if d := time.Since(begin); d > streamingtest.Limit {
			t.Errorf("%s: the end took %v", transport, d)
		}
		if _, err := s.Exec(streaming.Process{}); err != nil {
			t.Errorf("a URL of a server that has ended: %v", err)
		}
	}
}

// Fails when anything of a request but its IDs, or a token, gets into an answer's text.
func TestErrorsHaveNoSecrets(t *testing.T) {
	s := serve(t, streaming.Config{})
	address := execURL(t, s, "/no/such/program", "--password=hunter2")
	var out transcript.Transcript
	_, err := streamclient.Run(t.Context(), address, streamclient.SPDY, sandbox.Streams{Stdout: &out})
	if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), address[strings.LastIndexByte(address, '/')+1:]) {
		t.Errorf("err = %v", err)
	}
	if bytes.Contains([]byte(out.String()), []byte("hunter2")) {
		t.Errorf("output %q", out.String())
	}
}
