package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/transcript"
)

// session is a command with a client that types.
type session struct {
	transcript.Transcript
	in     *io.PipeWriter
	resize chan TerminalSize
	result chan error // of an exec, its exit code as an exitError
	end    context.CancelFunc
}

type exitError int32

func (e exitError) Error() string { return fmt.Sprint("exit code ", int32(e)) }

// kind is how a session is connected.
type kind int

const (
	pipes kind = iota
	terminal
)

func (s *session) streams(r *io.PipeReader, k kind) Streams {
	out := Streams{Stdin: r, Stdout: s, Terminal: k == terminal}
	if k == terminal {
		out.Resize = s.resize
	} else {
		out.Stderr = s
	}
	return out
}

func newSession(t *testing.T, call func(context.Context, *session, *io.PipeReader) error) *session {
	t.Helper()
	r, w := io.Pipe()
	s := &session{in: w, resize: make(chan TerminalSize, 1), result: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	s.end = cancel
	t.Cleanup(func() { cancel(); w.Close() })
	go func() {
		s.result <- call(ctx, s, r)
		r.CloseWithError(io.ErrClosedPipe)
	}()
	return s
}

func execTerminal(t *testing.T, m *Manager, c string, size TerminalSize, cmd ...string) *session {
	return newSession(t, func(ctx context.Context, s *session, r *io.PipeReader) error {
		if size != (TerminalSize{}) {
			s.resize <- size
		}
		code, err := m.Exec(ctx, c, cmd, s.streams(r, terminal))
		if err == nil {
			err = exitError(code)
		}
		return err
	})
}

func attachTo(t *testing.T, m *Manager, c string, k kind) *session {
	return newSession(t, func(ctx context.Context, s *session, r *io.PipeReader) error {
		return m.Attach(ctx, c, s.streams(r, k))
	})
}

func (s *session) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.result:
		return err
	case <-time.After(time.Minute):
		t.Fatalf("the call does not end; it said %q", s.String())
		return nil
	}
}

func (s *session) types(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		t.Fatalf("type %q: %v; the call ended with %v", text, err, s.ended(t))
	}
}

// sleeper is a pod with a container that sleeps.
func sleeper(t *testing.T, m *Manager) (p, c string) {
	t.Helper()
	p = run(t, m, podConfig("streams"))
	return p, start(t, m, createRequest(p, "c", "/bin/sleep", "10000"))
}

func TestRealExecStreams(t *testing.T) {
	m, _ := realManager(t)
	p, c := sleeper(t, m)
	for _, tc := range []struct {
		name, script, stdin string
		out, err            string
		code                int32
	}{
		{"streams", "cat; echo no >&2", "yes", "yes", "no\n", 0},
		{"exit code", "exit 42", "", "", "", 42},
		{"signal", "kill -9 $$", "", "", "", 137},
		{"no input", "cat", "", "", "", 0},
		{"input that is not read", "exec <&-; sleep 0.3; echo done", strings.Repeat("x", 1<<20), "done\n", "", 0},
		{"bytes", `printf 'a\0\377\r\n'`, "", "a\x00\xff\r\n", "", 0},
		{"somebody keeps the streams", "sleep 9999 & echo done", "", "done\n", "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			code, err := m.Exec(t.Context(), c, []string{"/bin/sh", "-c", tc.script}, Streams{Stdin: strings.NewReader(tc.stdin), Stdout: &out, Stderr: &errOut})
			if err != nil || code != tc.code || out.String() != tc.out || errOut.String() != tc.err {
				t.Errorf("Exec = %d %v, %q, %q", code, err, out.String(), errOut.String())
			}
		})
	}
	if _, err := m.Exec(t.Context(), c, []string{"/bin/none"}, Streams{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Exec of a missing file: %v", err)
	}
	if _, err := m.Exec(t.Context(), c, []string{"/bin/none"}, Streams{Terminal: true}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Exec of a missing file with a terminal: %v", err)
	}
	remove(t, m, p)
}

func TestRealExecTerminal(t *testing.T) {
	m, _ := realManager(t)
	p, c := sleeper(t, m)
	const wait = "; echo ready; while :; do sleep 0.05; done"
	t.Run("size", func(t *testing.T) {
		s := execTerminal(t, m, c, TerminalSize{Columns: 120, Lines: 40}, "/bin/sh", "-c", "stty size; trap 'stty size; exit 3' WINCH"+wait)
		s.Wait(t, "40 120\r\nready")
		s.resize <- TerminalSize{Columns: 99, Lines: 33}
		if err := s.ended(t); err != exitError(3) || !strings.HasSuffix(s.String(), "33 99\r\n") {
			t.Errorf("it ended with %v, said %q", err, s.String())
		}
	})
	t.Run("interrupt", func(t *testing.T) {
		s := execTerminal(t, m, c, TerminalSize{}, "/bin/sh", "-c", "trap 'exit 9' INT"+wait)
		s.Wait(t, "ready")
		s.types(t, "\x03")
		if err := s.ended(t); err != exitError(9) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("shell", func(t *testing.T) {
		s := execTerminal(t, m, c, TerminalSize{}, "/bin/sh")
		s.types(t, "echo $((6*7)); tty=$(cat </dev/null); test -t 0 && test -t 1 && test -t 2 && echo $TERM\n")
		s.Wait(t, "42\r\nxterm\r\n")
		s.types(t, "exit 5\n")
		if err := s.ended(t); err != exitError(5) {
			t.Errorf("it ended with %v", err)
		}
	})
	t.Run("all output", func(t *testing.T) {
		s := execTerminal(t, m, c, TerminalSize{}, "/bin/seq", "1", "50000")
		if err := s.ended(t); err != exitError(0) || !strings.HasSuffix(s.String(), "49999\r\n50000\r\n") || strings.Count(s.String(), "\n") != 50000 {
			t.Errorf("it ended with %v, said %d lines", err, strings.Count(s.String(), "\n"))
		}
	})
	t.Run("somebody keeps the terminal", func(t *testing.T) {
		s := execTerminal(t, m, c, TerminalSize{}, "/bin/sh", "-c", "trap '' HUP; setsid sleep 9998 & sleep 9997 & echo done")
		if err := s.ended(t); err != exitError(0) || !strings.Contains(s.String(), "done") {
			t.Errorf("it ended with %v, said %q", err, s.String())
		}
	})
	t.Run("client that vanishes", func(t *testing.T) {
		s := execTerminal(t, m, c, TerminalSize{}, "/bin/sh", "-c", "trap '' HUP INT TERM; setsid sleep 9996 & sleep 9996"+wait)
		waitFor(t, func() bool { return strings.Count(processes(t, m, c), "sleep 9996") >= 2 })
		s.end()
		if err := s.ended(t); !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
		if list := processes(t, m, c); strings.Contains(list, "9996") {
			t.Errorf("left: %s", list)
		}
	})
	remove(t, m, p)
}

func processes(t *testing.T, m *Manager, c string) string {
	t.Helper()
	r, err := m.ExecSync(t.Context(), c, []string{"/bin/ps"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return string(r.Stdout.Head)
}

// attachable starts a container with the streams that it is told to have.
func attachable(t *testing.T, m *Manager, script string, change func(*runtimeapi.ContainerConfig)) (p, c, log string) {
	t.Helper()
	config := podConfig("attach")
	config.LogDirectory = t.TempDir()
	p = run(t, m, config)
	r := createRequest(p, "c", "/bin/sh", "-c", script)
	r.Config.LogPath = "c.log"
	change(r.Config)
	return p, start(t, m, r), filepath.Join(config.LogDirectory, "c.log")
}

func TestRealAttach(t *testing.T) {
	m, _ := realManager(t)
	p, c, log := attachable(t, m, "while read line; do echo got $line; test $line != end || exit 6; done; echo eof; sleep 9999",
		func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	first := attachTo(t, m, c, pipes)
	first.types(t, "one\n")
	first.Wait(t, "got one\n")
	second := attachTo(t, m, c, pipes)
	second.types(t, "two\n")
	first.Wait(t, "got two\n")
	second.Wait(t, "got two\n")
	first.in.Close() // without StdinOnce the end of a client's stdin is the end of its attachment and nothing else
	if err := first.ended(t); err != nil {
		t.Errorf("Attach = %v", err)
	}
	second.end()
	if err := second.ended(t); !errors.Is(err, context.Canceled) {
		t.Errorf("Attach that was cancelled = %v", err)
	}
	third := attachTo(t, m, c, pipes)
	third.types(t, "three\nend\n")
	if err := third.ended(t); err != nil || third.String() != "got three\ngot end\n" {
		t.Errorf("Attach = %v, said %q", err, third.String())
	}
	exited(t, m, c)
	if err := m.Attach(t.Context(), c, Streams{Stdout: io.Discard}); !errors.Is(err, ErrState) {
		t.Errorf("Attach to an exited container = %v", err)
	}
	text, err := os.ReadFile(log)
	if err != nil || strings.Count(string(text), " stdout F got ") != 4 {
		t.Errorf("log %q, %v", text, err)
	}
	remove(t, m, p)
}

func TestRealAttachStdinOnce(t *testing.T) {
	m, _ := realManager(t)
	once := func(c *runtimeapi.ContainerConfig) { c.Stdin, c.StdinOnce = true, true }
	const script = "cat; echo eof; echo err >&2; exit 4"
	p, c, _ := attachable(t, m, script, once)
	other := attachTo(t, m, c, pipes) // has stdin open as well, and must not keep it open
	other.types(t, "other ")
	other.Wait(t, "other ")
	first := attachTo(t, m, c, pipes)
	first.types(t, "text")
	other.Wait(t, "other text")
	first.Wait(t, "text")
	first.in.Close()
	err := first.ended(t)
	for _, want := range []string{"text", "eof\n", "err\n"} {
		if err != nil || !strings.Contains(first.String(), want) {
			t.Errorf("Attach = %v, said %q", err, first.String())
		}
	}
	if err := other.ended(t); err != nil {
		t.Errorf("the other Attach = %v", err)
	}
	exited(t, m, c)
	remove(t, m, p)

	// A client that vanishes ends it too.
	p, c, _ = attachable(t, m, script, once)
	s := attachTo(t, m, c, pipes)
	s.types(t, "x")
	s.Wait(t, "x")
	s.end()
	exited(t, m, c)
	if got, _ := m.Container(c); got.ExitCode != 4 {
		t.Errorf("exit code %d", got.ExitCode)
	}
	remove(t, m, p)
}

func TestRealAttachTerminal(t *testing.T) {
	m, _ := realManager(t)
	p, c, log := attachable(t, m, "trap 'stty size' WINCH; while :; do read line || continue; echo \"got $line\" >&2; done",
		func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	s := attachTo(t, m, c, terminal)
	s.types(t, "one\n")
	s.Wait(t, "one\r\ngot one\r\n")
	waitFor(t, func() bool { // a shell that is just about to read does not see the signal
		for _, columns := range []uint16{78, 77} {
			s.resize <- TerminalSize{Columns: columns, Lines: 22}
			time.Sleep(20 * time.Millisecond)
		}
		return strings.Contains(s.String(), "22 77\r\n")
	})
	s.in.Close()
	if err := s.ended(t); err != nil {
		t.Errorf("Attach = %v", err)
	}
	s = attachTo(t, m, c, terminal)
	s.types(t, "again\n")
	s.Wait(t, "got again\r\n")
	s.types(t, "\x03")
	if err := s.ended(t); err != nil {
		t.Errorf("Attach to a container that is interrupted = %v", err)
	}
	exited(t, m, c)
	text, err := os.ReadFile(log)
	if err != nil || !strings.Contains(string(text), " stdout F got one\r\n") || strings.Contains(string(text), "stderr") {
		t.Errorf("log %q, %v", text, err)
	}
	remove(t, m, p)
}

// A container may close its terminal and open it again, as an init does.
func TestRealTerminalOutlivesItsSlaves(t *testing.T) {
	m, _ := realManager(t)
	p, c, log := attachable(t, m, "echo first; exec </dev/null >/dev/null 2>&1; sleep 0.5; echo second >/dev/console; sleep 0.1; echo third >/dev/console; exit 3",
		func(c *runtimeapi.ContainerConfig) { c.Tty = true })
	begin := time.Now()
	exited(t, m, c)
	text, err := os.ReadFile(log)
	for _, want := range []string{"first", "second", "third"} {
		if !strings.Contains(string(text), " stdout F "+want+"\r\n") {
			t.Errorf("log %q, %v", text, err)
		}
	}
	if took := time.Since(begin); took > 30*time.Second {
		t.Errorf("the exit took %v", took)
	}
	remove(t, m, p)
}

// A client that stalls is let go of; the container writes on, and all of it is in its log.
func TestRealAttachThatStalls(t *testing.T) {
	m, _ := realManager(t)
	const lines = 400000 // 50 MiB
	line := strings.Repeat("0123456789", 12)
	p, c, log := attachable(t, m, fmt.Sprintf("read ignored; read go; dd if=/dev/zero bs=%d count=%d 2>/dev/null | tr '\\000' x; echo done >&2; exit 0", len(line), lines),
		func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	release := make(chan struct{})
	stalled := make(chan error, 1)
	in, attached := io.Pipe()
	go func() {
		stalled <- m.Attach(t.Context(), c, Streams{Stdin: in, Stdout: writerFunc(func(b []byte) (int, error) { <-release; return len(b), nil })})
	}()
	if _, err := attached.Write([]byte("ignored\n")); err != nil { // somebody reads once it is attached
		t.Fatal(err)
	}
	quick := attachTo(t, m, c, pipes)
	quick.types(t, "go\n")
	exited(t, m, c)
	select {
	case err := <-stalled:
		if !errors.Is(err, ErrExhausted) {
			t.Errorf("Attach of a client that stalls = %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("a client that stalls is not let go of")
	}
	attached.Close()
	close(release)
	quick.ended(t)
	text, err := os.ReadFile(log)
	if got := strings.Count(string(text), "x"); err != nil || got != len(line)*lines {
		t.Errorf("the log has %d bytes of %d, %v", got, len(line)*lines, err)
	}
	waitFor(t, func() bool { return allBacklog.Load() == 0 })
	remove(t, m, p)
}

// TestRealAttachTakesABurst has a client that gets everything of a container that writes faster than the daemon is scheduled.
func TestRealAttachTakesABurst(t *testing.T) {
	m, _ := realManager(t)
	p, c, _ := attachable(t, m, "read go; seq 1000001 1750000; exit 0", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	release := make(chan struct{})
	var got transcript.Transcript
	s := newSession(t, func(ctx context.Context, s *session, r *io.PipeReader) error {
		return m.Attach(ctx, c, Streams{Stdin: r, Stdout: writerFunc(func(b []byte) (int, error) { <-release; return got.Write(b) })})
	})
	s.types(t, "go\n")
	exited(t, m, c)
	close(release)
	if err := s.ended(t); err != nil || len(got.String()) != 8*750000 || !strings.HasSuffix(got.String(), "1750000\n") {
		t.Errorf("Attach = %v with %d bytes of %d", err, len(got.String()), 8*750000)
	}
	remove(t, m, p)
}

func TestRealDial(t *testing.T) {
	m, _ := realManager(t)
	p := run(t, m, podConfig("dial"))
	config := podConfig("six") // its server listens on IPv6 alone
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{Sysctls: map[string]string{"net.ipv6.bindv6only": "1"}}
	six := run(t, m, config)
	for _, p := range []string{p, six} {
		start(t, m, createRequest(p, "c", "/bin/nc", "-ll", "-p", "8080", "-e", "/bin/cat"))
		var conn net.Conn
		waitFor(t, func() (ok bool) {
			var err error
			conn, err = m.Dial(t.Context(), p, 8080)
			return err == nil
		})
		if _, err := io.WriteString(conn, "through the pod"); err != nil {
			t.Error(err)
		}
		conn.(*net.TCPConn).CloseWrite()
		if got, err := io.ReadAll(conn); string(got) != "through the pod" || err != nil {
			t.Errorf("%v said %q, %v", conn.RemoteAddr(), got, err)
		}
		if four := strings.HasPrefix(conn.RemoteAddr().String(), "127.0.0.1:"); four != (p != six) {
			t.Errorf("the connection goes to %v", conn.RemoteAddr())
		}
		conn.Close()
	}
	_, err := m.Dial(t.Context(), p, 9)
	if !errors.Is(err, unix.ECONNREFUSED) || !strings.Contains(err.Error(), "port 9 of 127.0.0.1 and ::1: connection refused") {
		t.Errorf("Dial to a port that nobody listens on = %v", err)
	}
	if _, err := m.Dial(t.Context(), p, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("Dial to port 0 = %v", err)
	}
	config = podConfig("host")
	config.Hostname = ""
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}}
	onHost := run(t, m, config)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := m.Dial(t.Context(), onHost, uint16(listener.Addr().(*net.TCPAddr).Port))
	if err != nil {
		t.Errorf("Dial to the host's port: %v", err)
	} else {
		conn.Close()
	}
	// A listener whose queue is full does not answer.
	full := fullListener(t)
	before := monitorHas(t, m, onHost)
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if conn, err := m.Dial(ctx, onHost, full); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial to a listener that does not answer = %v, %v", conn, err)
		}
		cancel()
	}
	waitFor(t, func() bool { return monitorHas(t, m, onHost).descriptors <= before.descriptors+1 })
	if err := m.StopPod(t.Context(), p); err != nil {
		t.Error(err)
	}
	if _, err := m.Dial(t.Context(), p, 8080); !errors.Is(err, ErrState) {
		t.Errorf("Dial to a stopped pod = %v", err)
	}
	remove(t, m, p)
	remove(t, m, six)
	remove(t, m, onHost)
}

// fullListener is a port of 127.0.0.1 that takes no more connections.
func fullListener(t *testing.T) uint16 {
	t.Helper()
	open := func() int {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	listener := open()
	address := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err := errors.Join(unix.Bind(listener, address), unix.Listen(listener, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		t.Fatal(err)
	}
	address.Port = name.(*unix.SockaddrInet4).Port
	var clients []unix.PollFd
	for range 4 {
		clients = append(clients, unix.PollFd{Fd: int32(open()), Events: unix.POLLOUT})
		unix.Connect(int(clients[len(clients)-1].Fd), address)
	}
	waitFor(t, func() bool { n, _ := unix.Poll(clients, 0); return n > 0 }) // one has come through, and there is no place for another
	return uint16(address.Port)
}
