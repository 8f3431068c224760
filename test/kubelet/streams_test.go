package kubelet_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/streamclient"
)

// checkStreams runs commands, attaches and forwards a port through the kubelet, as kubectl's requests arrive there.
func checkStreams(w *watch) {
	w.ready()
	for _, transport := range []streamclient.Transport{streamclient.SPDY, streamclient.WebSocket} {
		w.checkExec(transport)
		w.checkTerminal(transport)
		w.checkForward(transport)
	}
	w.checkAttach(streamclient.SPDY)
	w.checkAttach(streamclient.WebSocket)
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
		"command": {"sh", "-c", `until [ "$(stty size 2>/dev/null)" = "33 44" ]; do sleep 0.1; done; tty`}})
	resize := make(chan sandbox.TerminalSize, 1)
	resize <- sandbox.TerminalSize{Columns: 44, Lines: 33}
	var out bytes.Buffer
	code, err := streamclient.Run(ctx, u, transport, sandbox.Streams{Stdout: &out, Terminal: true, Resize: resize})
	if err != nil || code != 0 || !strings.HasPrefix(out.String(), "/dev/pts/") {
		w.Errorf("exec with a terminal, %s: code %d, output %q, %v", transport, code, out.String(), err)
	}
}

func (w *watch) checkForward(transport streamclient.Transport) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	f, err := streamclient.Forward(ctx, w.k.StreamURL("portForward", w.name, "", nil), transport)
	if err != nil {
		w.Errorf("forward a port, %s: %v", transport, err)
		return
	}
	defer f.Close()
	for range 2 { // two connections over one
		conn, err := f.Connect(80)
		if err != nil {
			w.Errorf("connect by %s: %v", transport, err)
			return
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
			w.Errorf("send by %s: %v", transport, err)
		}
		answer, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.0 "+fmt.Sprint(http.StatusOK)) || !strings.Contains(string(answer), "forwarded") {
			w.Errorf("page by %s: %q, %v", transport, answer, err)
		}
		conn.Close()
	}
}

// checkAttach speaks to a container twice: its input does not end with the first client's.
func (w *watch) checkAttach(transport streamclient.Transport) {
	w.Helper()
	for _, word := range []string{"first by " + string(transport), "second by " + string(transport)} {
		ctx, cancel := context.WithTimeout(w.Context(), patience)
		defer cancel()
		s, err := streamclient.Open(ctx, w.k.StreamURL("attach", w.name, "reader", url.Values{"input": {"1"}, "output": {"1"}, "error": {"1"}}), transport,
			streamclient.Process{Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			w.Errorf("attach, %s: %v", transport, err)
			return
		}
		stop := context.AfterFunc(ctx, func() { s.Vanish() })
		want := "got " + word + "\n"
		answer := make([]byte, len(want))
		if _, err = io.WriteString(s.Stdin, word+"\n"); err == nil {
			_, err = io.ReadFull(s.Stdout, answer)
		}
		if err != nil || string(answer) != want {
			w.Errorf("attach, %s: answer %q, %v; want %q", transport, answer, err, want)
		}
		stop()
		s.Close()
		w.logged("reader", want)
	}
}

// interrupted holds a command and an attached client through a kill of berthd: their clients are told, the command ends, and the container's
// input does not.
func (w *watch) interrupted() (check func()) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	command, err := streamclient.Open(ctx, w.k.StreamURL("exec", w.name, "shell", url.Values{"output": {"1"},
		"command": {"sh", "-c", "echo up; exec sleep 7777"}}), streamclient.SPDY, streamclient.Process{Stdout: true})
	if err != nil {
		cancel()
		w.Fatalf("exec: %v", err)
	}
	if _, err := io.ReadFull(command.Stdout, make([]byte, len("up\n"))); err != nil {
		w.Errorf("exec: %v", err)
	}
	attached, err := streamclient.Open(ctx, w.k.StreamURL("attach", w.name, "reader", url.Values{"input": {"1"}, "output": {"1"}}),
		streamclient.SPDY, streamclient.Process{Stdin: true, Stdout: true})
	if err != nil {
		cancel()
		w.Fatalf("attach: %v", err)
	}
	return func() {
		defer cancel()
		for what, s := range map[string]*streamclient.Session{"a command": command, "an attached client": attached} {
			stop := context.AfterFunc(ctx, func() { s.Vanish() })
			io.Copy(io.Discard, s.Stdout)
			if !stop() {
				w.Errorf("%s of a daemon that was killed waits in vain", what)
			}
			s.Vanish()
		}
		until(w.T, "the command of the killed daemon has ended", func() (any, bool) {
			ps := w.run("shell", "ps")
			return ps, !strings.Contains(ps, "sleep 7777")
		})
	}
}
