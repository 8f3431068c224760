package cri

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary be a client with another user's credentials.
func TestMain(m *testing.M) {
	if path := os.Getenv("CRI_TEST_CONNECT"); path != "" {
		connectAsClient(path)
	}
	if len(os.TempDir()) > len("/var/tmp") { // sockets have short names
		os.Setenv("TMPDIR", "/var/tmp")
	}
	os.Exit(m.Run())
}

// connectAsClient exits with 3 when the connection is refused, 4 when it is closed, and 0 when it stays open.
func connectAsClient(path string) {
	c, err := net.Dial("unix", path)
	if err != nil {
		os.Exit(3)
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		os.Exit(5)
	}
	if _, err := c.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
		os.Exit(4)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		os.Exit(4)
	}
	os.Exit(0)
}

func TestSocketIsForRootOnly(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	t.Setenv("TMPDIR", "/var/tmp") // that of who runs the tests may be closed to others
	w := newWorld(t)
	st, err := os.Stat(w.socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("mode = %v, %v, want 0600", st.Mode(), err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root to become another user")
	}
	// Somebody opened the way for everybody: the credentials are still looked at (threat B1).
	for dir := filepath.Dir(w.socket); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if code := connectAs(t, w.socket, 1000); code != 3 {
		t.Errorf("uid 1000 with mode 0600: exit %d, want a refused connection", code)
	}
	if err := os.Chmod(w.socket, 0o777); err != nil {
		t.Fatal(err)
	}
	if code := connectAs(t, w.socket, 1000); code != 4 {
		t.Errorf("uid 1000 with mode 0777: exit %d, want a closed connection", code)
	}
	if code := connectAs(t, w.socket, 0); code != 0 {
		t.Errorf("uid 0: exit %d, want an answer", code)
	}
}

func connectAs(t *testing.T, socket string, uid uint32) int {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(filepath.Dir(socket), "client")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = []string{"CRI_TEST_CONNECT=" + socket}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}

func TestListenReplacesOnlyASocketThatNobodyServes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path); !errors.Is(err, ErrSocketInUse) {
		t.Errorf("Listen on a served socket = %v, want ErrSocketInUse", err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	l, err := Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("Listen on a stale socket = %v", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("Listen on a file = %v, want a refusal", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("Listen removed a file")
	}
}

func TestListenPutsTheUmaskBack(t *testing.T) {
	before := unix.Umask(0o022)
	defer unix.Umask(before)
	l, err := Listen(t.Context(), filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if got := unix.Umask(0o022); got != 0o022 {
		t.Errorf("umask = %#o, want 022", got)
	}
}
