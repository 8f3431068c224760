package streamclient

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"time"

	"github.com/berthd/berth/sandbox"
)

// Chaos is clients that leave at random moments, in all the ways that there are to leave.
type Chaos struct {
	// Exec and Attach ask for a URL. The container must have a shell.
	Exec   func(ctx context.Context, cmd []string, p Process) (string, error)
	Attach func(ctx context.Context, p Process) (string, error)
	// Longest is the longest that a client stays.
	Longest time.Duration
}

// habits are what a client does until it leaves.
var habits = []struct {
	cmd []string
	// streams that it opens, besides standard output
	stdin, terminal bool
	do              func(s *Session, r *rand.Rand)
}{
	{cmd: []string{"sleep", "600"}},
	{cmd: []string{"sh", "-c", "exit 3"}},
	{cmd: []string{"cat"}, stdin: true, do: chat},
	{cmd: []string{"sh", "-c", "trap '' HUP TERM INT; while :; do echo line; sleep 0.01; done"}, do: read},
	{cmd: []string{"cat", "/dev/zero"}}, // and the client reads nothing
	{cmd: []string{"cat", "/dev/zero"}, do: read},
	{cmd: []string{"sleep", "600"}, stdin: true, do: push}, // a process that reads nothing
	{cmd: []string{"sh"}, stdin: true, terminal: true, do: chat},
	{cmd: []string{"sh", "-c", "while :; do stty size; done"}, stdin: true, terminal: true, do: resize},
	{cmd: []string{"sh", "-c", "sleep 600 & sleep 600 & wait"}, terminal: true, do: read},
}

func read(s *Session, _ *rand.Rand) { io.Copy(io.Discard, s.Stdout) }

func chat(s *Session, r *rand.Rand) {
	go io.Copy(io.Discard, s.Stdout)
	for range 1 + r.IntN(50) {
		if _, err := fmt.Fprintf(s.Stdin, "echo %d\n", r.IntN(1000)); err != nil {
			return
		}
	}
	if r.IntN(2) == 0 {
		s.Stdin.Close()
	}
}

func push(s *Session, r *rand.Rand) {
	for range 1 + r.IntN(4) {
		if _, err := s.Stdin.Write(make([]byte, 30000)); err != nil {
			return
		}
	}
}

func resize(s *Session, r *rand.Rand) {
	go io.Copy(io.Discard, s.Stdout)
	for {
		if s.Resize(sandbox.TerminalSize{Columns: uint16(r.IntN(300)), Lines: uint16(r.IntN(100))}) != nil {
			return
		}
	}
}

// patience is how long a client that has left may take to notice that.
const patience = 2 * time.Second

// Once is one client, from its request to its end. The error is that of a request that should not fail.
func (c Chaos) Once(ctx context.Context, r *rand.Rand) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := habits[r.IntN(len(habits))]
	p := Process{Stdin: h.stdin, Stdout: true, Terminal: h.terminal, Stderr: !h.terminal && r.IntN(2) == 0}
	ask := func() (string, error) { return c.Exec(ctx, h.cmd, p) }
	if r.IntN(2) == 0 && c.Attach != nil {
		ask = func() (string, error) { return c.Attach(ctx, p) }
	}
	address, err := ask()
	if err != nil {
		return err
	}
	transport := []Transport{SPDY, SPDY, WebSocket, V4, Base64}[r.IntN(5)]
	stay := time.Duration(r.Int64N(int64(c.Longest)))
	switch r.IntN(20) {
	case 0: // never comes
		return nil
	case 1: // leaves in the middle of its request
		return knock(address, r)
	case 2: // leaves while the session begins
		stay /= 20
		time.AfterFunc(stay, cancel)
	}
	s, err := Open(ctx, address, transport, p)
	if err != nil {
		return nil // it has left by itself
	}
	defer s.conn.Close()
	done := make(chan struct{})
	own := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
	go func() {
		defer close(done)
		if h.do != nil {
			h.do(s, own)
		}
	}()
	if s.Stderr != nil {
		go io.Copy(io.Discard, s.Stderr)
	}
	time.Sleep(stay)
	switch time.Now().UnixNano() % 3 {
	case 0:
		s.Abort()
	case 1:
		s.Vanish()
	default:
		s.Close()
	}
	select {
	case <-done:
	case <-time.After(patience): // spdystream may not notice that its connection is closed, when a stream of it is not read
	}
	return nil
}

// knock sends the beginning of a request.
func knock(address string, r *rand.Rand) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return err
	}
	text := "POST " + u.Path + " HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n\x80\x03\x00\x01"
	io.WriteString(conn, text[:r.IntN(len(text)+1)])
	return conn.Close()
}
