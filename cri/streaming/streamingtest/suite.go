package streamingtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/transcript"
	"github.com/berthd/berth/test/wait"
)

// Target is what the suite is run against.
type Target struct {
	Runtime                streaming.Runtime
	ContainerID, SandboxID string
	// InputEnds says that the end of standard input can be told.
	InputEnds bool
}

// NobodysPort is a port that nobody listens on: no kernel hands it out, as it may hand out one that was free a moment ago.
const NobodysPort = 1

// Limit is how long one case may take.
const Limit = 30 * time.Second

// Eventually waits until ok.
func Eventually(t testing.TB, ok func() bool, format string, args ...any) {
	t.Helper()
	if !wait.Until(Limit, 5*time.Millisecond, ok) {
		t.Fatalf("not within %v: "+format, append([]any{Limit}, args...)...)
	}
}

// Suite is what package streaming relies on.
func Suite(t *testing.T, g Target) {
	exec := func(t *testing.T, s sandbox.Streams, args ...string) (int32, error) {
		ctx, cancel := context.WithTimeout(t.Context(), Limit)
		defer cancel()
		return g.Runtime.Exec(ctx, g.ContainerID, args, s)
	}
	t.Run("exit codes", func(t *testing.T) {
		for script, want := range map[string]int32{"exit 0": 0, "exit 3": 3, "exit 255": 255, "kill -9 $$": 137} {
			var out, errs transcript.Transcript
			code, err := exec(t, sandbox.Streams{Stdout: &out, Stderr: &errs}, "sh", "-c", "echo out; echo err >&2; "+script)
			if err != nil || code != want || out.String() != "out\n" || errs.String() != "err\n" {
				t.Errorf("%s: code %d, %v, %q, %q", script, code, err, out.String(), errs.String())
			}
		}
	})
	t.Run("one stream", func(t *testing.T) {
		var out, errs transcript.Transcript
		if code, err := exec(t, sandbox.Streams{Stdout: &out}, "sh", "-c", "echo out; echo err >&2"); err != nil || code != 0 || out.String() != "out\n" {
			t.Errorf("standard output alone: %d, %v, %q", code, err, out.String())
		}
		if code, err := exec(t, sandbox.Streams{Stderr: &errs}, "sh", "-c", "echo out; echo err >&2"); err != nil || code != 0 || errs.String() != "err\n" {
			t.Errorf("standard error alone: %d, %v, %q", code, err, errs.String())
		}
	})
	t.Run("no input is an empty one", func(t *testing.T) {
		var out transcript.Transcript
		if code, err := exec(t, sandbox.Streams{Stdout: &out}, "wc", "-c"); err != nil || code != 0 || strings.TrimSpace(out.String()) != "0" {
			t.Errorf("wc: %d, %v, %q", code, err, out.String())
		}
	})
	t.Run("input", func(t *testing.T) {
		input := bytes.Repeat([]byte("0123456789abcde\n"), 1<<16)
		command := []string{"cat"}
		if !g.InputEnds {
			command = []string{"head", "-c", fmt.Sprint(len(input))}
		}
		var out transcript.Transcript
		code, err := exec(t, sandbox.Streams{Stdin: bytes.NewReader(input), Stdout: &out}, command...)
		if err != nil || code != 0 || out.String() != string(input) {
			t.Errorf("input: %d, %v, %d bytes of %d", code, err, len(out.String()), len(input))
		}
	})
	t.Run("input that nobody reads", func(t *testing.T) {
		var out transcript.Transcript
		code, err := exec(t, sandbox.Streams{Stdin: endless{}, Stdout: &out}, "sh", "-c", "head -c 3; exit 4")
		if err != nil || code != 4 || out.String() != "xxx" {
			t.Errorf("head: %d, %v, %q", code, err, out.String())
		}
	})
	t.Run("much output", func(t *testing.T) {
		var n counter
		code, err := exec(t, sandbox.Streams{Stdout: &n}, "head", "-c", "20000000", "/dev/zero")
		if err != nil || code != 0 || n != 20000000 {
			t.Errorf("head: %d, %v, %d bytes", code, err, n)
		}
	})
	t.Run("no such program", func(t *testing.T) {
		if code, err := exec(t, sandbox.Streams{Stdout: io.Discard}, "/no/such/program"); err == nil && code != 127 {
			t.Errorf("code %d, %v", code, err)
		}
	})
	suiteEnds(t, g)
	suiteTerminal(t, g)
	suiteDial(t, g)
}

// suiteEnds is about clients that go.
func suiteEnds(t *testing.T, g Target) {
	alive := func(t *testing.T, mark string) bool {
		var out transcript.Transcript
		// The brackets keep the command from finding itself.
		_, err := g.Runtime.Exec(t.Context(), g.ContainerID, []string{"sh", "-c", "ps ax 2>/dev/null | grep -c '[s]leep " + mark + "'"}, sandbox.Streams{Stdout: &out})
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out.String()) != "0"
	}
	t.Run("the end of the context kills", func(t *testing.T) {
		mark := fmt.Sprint(70000 + time.Now().UnixNano()%9999)
		ctx, cancel := context.WithCancel(t.Context())
		var out transcript.Transcript
		done := make(chan error, 1)
		go func() {
			_, err := g.Runtime.Exec(ctx, g.ContainerID, []string{"sh", "-c", "sleep " + mark + " & echo up; wait"}, sandbox.Streams{Stdout: &out})
			done <- err
		}()
		out.Wait(t, "up")
		cancel()
		if err := <-done; err == nil {
			t.Error("no error")
		}
		Eventually(t, func() bool { return !alive(t, mark) }, "the command and its children end")
	})
	t.Run("a writer that fails kills", func(t *testing.T) {
		mark := fmt.Sprint(80000 + time.Now().UnixNano()%9999)
		ctx, cancel := context.WithTimeout(t.Context(), Limit)
		defer cancel()
		_, err := g.Runtime.Exec(ctx, g.ContainerID, []string{"sh", "-c", "sleep " + mark + " & while :; do echo y; sleep 0.01; done"}, sandbox.Streams{Stdout: broken{}})
		if err == nil || ctx.Err() != nil {
			t.Errorf("err = %v", err)
		}
		Eventually(t, func() bool { return !alive(t, mark) }, "the command and its children end")
	})
}

// suiteTerminal is about terminals.
func suiteTerminal(t *testing.T, g Target) {
	t.Run("terminal", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), Limit)
		defer cancel()
		in, typed := io.Pipe()
		sizes := make(chan sandbox.TerminalSize, 4)
		sizes <- sandbox.TerminalSize{Columns: 91, Lines: 33}
		var out transcript.Transcript
		done := make(chan error, 1)
		go func() {
			code, err := g.Runtime.Exec(ctx, g.ContainerID, []string{"sh", "-c", "stty size; while read x; do test $x = end && exit 5; stty size; echo said $x; done"},
				sandbox.Streams{Stdin: in, Stdout: &out, Terminal: true, Resize: sizes})
			if err == nil && code != 5 {
				err = fmt.Errorf("code %d", code)
			}
			done <- err
		}()
		shows := func(size string) { // it may come after the command has begun
			Eventually(t, func() bool {
				io.WriteString(typed, "a\n")
				time.Sleep(50 * time.Millisecond)
				return strings.Contains(out.String(), size)
			}, "the size is %s: %q", size, &out)
		}
		shows("33 91")
		sizes <- sandbox.TerminalSize{Columns: 132, Lines: 50}
		shows("50 132")
		out.Wait(t, "said a")
		io.WriteString(typed, "end\n")
		if err := <-done; err != nil {
			t.Errorf("%v; output %q", err, out.String())
		}
		typed.Close()
	})
	t.Run("terminal interrupt", func(t *testing.T) {
		caught := make(chan os.Signal, 1) // what a shell runs in the background ignores it, and with it what that starts
		signal.Notify(caught, os.Interrupt)
		defer signal.Stop(caught)
		ctx, cancel := context.WithTimeout(t.Context(), Limit)
		defer cancel()
		in, typed := io.Pipe()
		defer in.Close()
		var out transcript.Transcript
		done := make(chan int32, 1)
		go func() {
			code, err := g.Runtime.Exec(ctx, g.ContainerID, []string{"sh", "-c", "echo up; sleep 1000"}, sandbox.Streams{Stdin: in, Stdout: &out, Terminal: true})
			if err != nil {
				t.Error(err)
			}
			done <- code
		}()
		out.Wait(t, "up")
		go func() { // a shell that is about to start its child loses a ^C
			for {
				if _, err := typed.Write([]byte{3}); err != nil {
					return
				}
				time.Sleep(200 * time.Millisecond)
			}
		}()
		if code := <-done; code != 130 {
			t.Errorf("code %d, output %q", code, out.String())
		}
	})
}

// suiteDial is about connections into the pod.
func suiteDial(t *testing.T, g Target) {
	t.Run("dial", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() { // answers once it has read all
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			text, _ := io.ReadAll(conn)
			conn.Write(append([]byte("got "), text...))
		}()
		port := uint16(l.Addr().(*net.TCPAddr).Port)
		conn, err := g.Runtime.Dial(t.Context(), g.SandboxID, port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, "hello")
		half, ok := conn.(interface{ CloseWrite() error })
		if !ok {
			t.Fatalf("%T cannot be closed in one direction", conn)
		}
		if err := half.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if text, err := io.ReadAll(conn); err != nil || string(text) != "got hello" {
			t.Errorf("read %q, %v", text, err)
		}
	})
	t.Run("dial refused", func(t *testing.T) {
		conn, err := g.Runtime.Dial(t.Context(), g.SandboxID, NobodysPort)
		if err == nil {
			_, err = io.ReadAll(conn)
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("err = %v", err)
		}
	})
}

// endless is input without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// broken is a writer of a client that is gone.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken") }

// counter counts bytes.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}
