package sandbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// wants reports an error of a client.
func wants(t *testing.T) func(error) {
	return func(err error) {
		if err != nil {
			t.Error(err)
		}
	}
}

func pipeFiles(t *testing.T) (read, write *os.File) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { read.Close(); write.Close() })
	return read, write
}

func TestOutletKeepsBytes(t *testing.T) {
	read, write := pipeFiles(t)
	want := bytes.Repeat([]byte{0, 1, 0xff, '\r', '\n'}, 50000)
	go func() { write.Write(want); write.Close() }()
	var got bytes.Buffer
	<-carry(read, &got, wants(t)).done
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes of %d", got.Len(), len(want))
	}
}

// A process has ended and somebody else keeps its pipe open: what the pipe has is delivered, however slow the client, and then it ends.
func TestDrainDeliversWhatIsThere(t *testing.T) {
	read, write := pipeFiles(t)
	want := bytes.Repeat([]byte("x"), 60000)
	if _, err := write.Write(want); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	slow := writerFunc(func(b []byte) (int, error) {
		time.Sleep(2 * drainTimeout)
		return got.Write(b)
	})
	o := carry(read, slow, wants(t))
	o.drain()
	select {
	case <-o.done:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%d bytes of %d", got.Len(), len(want))
	}
}

// Somebody who writes without end does not hold the answer up for ever.
func TestDrainIsBounded(t *testing.T) {
	read, write := pipeFiles(t)
	go func() {
		for b := make([]byte, 4096); ; {
			if _, err := write.Write(b); err != nil {
				return
			}
		}
	}()
	o := carry(read, io.Discard, wants(t))
	o.drain()
	select {
	case <-o.done:
	case <-time.After(time.Minute):
		t.Fatal("it does not end")
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func TestExecStreams(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000"))
	var out, errOut bytes.Buffer
	code, err := m.Exec(t.Context(), c, []string{"cat; echo no >&2; exit 3"},
		Streams{Stdin: strings.NewReader("yes"), Stdout: &out, Stderr: &errOut})
	if code != 3 || err != nil || out.String() != "yes" || errOut.String() != "no\n" {
		t.Errorf("Exec = %d %v, %q, %q", code, err, out.String(), errOut.String())
	}
	if code, err := m.Exec(t.Context(), c, []string{"exit 4"}, Streams{}); code != 4 || err != nil {
		t.Errorf("Exec without streams = %d %v", code, err)
	}
	gone := errors.New("gone")
	fails := writerFunc(func([]byte) (int, error) { return 0, gone })
	if _, err := m.Exec(t.Context(), c, []string{"while :; do echo; sleep 0.01; done"}, Streams{Stdout: fails}); !errors.Is(err, gone) {
		t.Errorf("Exec for a client that is gone: %v", err)
	}
	// The client has stalled: neither its Read nor its Write returns before it is closed, which is after the call.
	stalled, release := io.Pipe()
	blocked := writerFunc(func([]byte) (int, error) { return stalled.Read(make([]byte, 1)) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.Exec(ctx, c, []string{"while :; do echo; sleep 0.01; done"}, Streams{Stdin: stalled, Stdout: blocked}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Exec for a client that stalled: %v", err)
	}
	release.Close()
	waitFor(t, func() bool {
		names, _ := w.cgroups.List(w.cgroups.Tree() + "/" + p + "/" + c)
		return len(names) == 0
	})
	remove(t, m, p)
	w.empty()
}
