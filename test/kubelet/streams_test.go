package kubelet_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
)

// checkStreams runs commands through the kubelet, as kubectl's requests arrive there.
func checkStreams(w *watch) {
	w.ready()
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket} {
		w.checkExec(transport)
		w.checkTerminal(transport)
	}
}

func (w *watch) checkExec(transport streamclient.Transport) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	const size = 1 << 20
	u := w.k.StreamURL("exec", w.name, "shell", url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"},
		"command": {"sh", "-c", "wc -c; echo bad >&2; exit 3"}})
	var out, errs bytes.Buffer
	code, err := streamclient.Run(ctx, u, transport, sandbox.Streams{Stdin: io.LimitReader(zeros{}, size), Stdout: &out, Stderr: &errs})
	if err != nil || code != 3 || out.String() != fmt.Sprintln(size) || errs.String() != "bad\n" {
		w.Errorf("exec, %s: code %d, output %q, errors %q, %v", transport, code, out.String(), errs.String(), err)
	}
}

// zeros is an endless file of NULs.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (w *watch) checkTerminal(transport streamclient.Transport) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	u := w.k.StreamURL("exec", w.name, "shell", url.Values{"output": {"1"}, "tty": {"1"},
		"command": {"sh", "-c", `until [ "$(stty size)" = "33 44" ]; do sleep 0.1; done; tty`}})
	resize := make(chan sandbox.TerminalSize, 1)
	resize <- sandbox.TerminalSize{Columns: 44, Lines: 33}
	var out bytes.Buffer
	code, err := streamclient.Run(ctx, u, transport, sandbox.Streams{Stdout: &out, Terminal: true, Resize: resize})
	if err != nil || code != 0 || !strings.HasPrefix(out.String(), "/dev/pts/") {
		w.Errorf("exec with a terminal, %s: code %d, output %q, %v", transport, code, out.String(), err)
	}
}

// interrupted holds a session through a kill of berthd: it ends, and is not waited for in vain.
func (w *watch) interrupted() (check func()) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	u := w.k.StreamURL("exec", w.name, "shell", url.Values{"output": {"1"}, "command": {"sh", "-c", "echo up; exec sleep 7777"}})
	s, err := streamclient.Open(ctx, u, streamclient.SPDY, streamclient.Process{Stdout: true})
	if err != nil {
		cancel()
		w.Fatalf("exec: %v", err)
	}
	if _, err := io.ReadFull(s.Stdout, make([]byte, len("up\n"))); err != nil {
		w.Errorf("exec: %v", err)
	}
	return func() {
		defer cancel()
		over := make(chan struct{})
		go func() {
			defer close(over)
			io.Copy(io.Discard, s.Stdout)
		}()
		select {
		case <-over:
		case <-time.After(patience):
			w.Error("a client waits for a command of a daemon that was killed")
		}
		s.Vanish()
		until(w.T, "the command of the killed daemon has ended", func() (any, bool) {
			ps := w.run("shell", "ps")
			return ps, !strings.Contains(ps, "sleep 7777")
		})
	}
}
