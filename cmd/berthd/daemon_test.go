package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/wait"
)

// TestMain lets the test binary be the daemon.
func TestMain(m *testing.M) {
	if os.Getenv("BERTHD_TEST_RUN") != "" {
		_, _ = os.Stdout.WriteString("x") // the packages are initialized
		main()
		os.Exit(0)
	}
	if len(os.TempDir()) > len("/var/tmp") { // sockets have short names
		os.Setenv("TMPDIR", "/var/tmp")
	}
	os.Exit(m.Run())
}

// folders are those of one daemon of a test.
type folders struct{ root, state, config string }

func newFolders(t *testing.T) folders {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: the daemon makes cgroups")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := folders{root: filepath.Join(dir, "root"), state: filepath.Join(dir, "state"), config: filepath.Join(dir, "config.toml")}
	text := fmt.Sprintf("[runtime]\nmonitor = %q\n[network]\nconf_dir = %q\n[nri]\nplugin_path = %q\n", self, filepath.Join(dir, "net.d"), filepath.Join(dir, "nri"))
	if err := os.WriteFile(f.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after those of the daemons
		tree := "berth-" + instanceOf(f.root)
		for _, pattern := range []string{"/sys/fs/cgroup/" + tree, "/sys/fs/cgroup/*/" + tree} {
			if left, _ := filepath.Glob(pattern); len(left) > 0 {
				t.Errorf("cgroups are left: %q", left)
			}
		}
	})
	return f
}

// process is a running daemon.
type process struct {
	cmd   *exec.Cmd
	log   *bytes.Buffer
	begun chan struct{} // closed when main is entered
}

func (f folders) start(t *testing.T, extra ...string) *process {
	t.Helper()
	p := &process{log: &bytes.Buffer{}, begun: make(chan struct{})}
	p.cmd = exec.Command("/proc/self/exe", append([]string{"--root", f.root, "--state", f.state, "--config", f.config}, extra...)...)
	p.cmd.Env = append(os.Environ(), "BERTHD_TEST_RUN=1")
	p.cmd.Stderr = p.log
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout = w
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() {
		_, _ = r.Read(make([]byte, 1))
		_ = r.Close()
		close(p.begun)
	}()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Signal(syscall.SIGTERM) // not killed: it takes its cgroups away
			killed := time.AfterFunc(30*time.Second, func() { _ = p.cmd.Process.Kill() })
			_ = p.cmd.Wait()
			killed.Stop()
		}
		if t.Failed() {
			t.Logf("log of %d:\n%s", p.cmd.Process.Pid, p.log)
		}
	})
	return p
}

// version asks a daemon for its version, until it answers.
func (f folders) version(t *testing.T) *runtimeapi.VersionResponse {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+filepath.Join(f.state, socketName), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	v, err := runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatalf("Version = %v", err)
	}
	return v
}

func (p *process) wait(t *testing.T) int {
	t.Helper()
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

// TestSystemdCannotBeReached: where systemd is the init, one that does not answer is not taken for none: the kubelet goes on to name slices.
func TestSystemdCannotBeReached(t *testing.T) {
	f := newFolders(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// A host of its own: sd_booted(3), version 2 alone, and neither a bus nor systemd's own socket.
	const host = `set -e; mount -t tmpfs none /run; mkdir -p /run/systemd/system; umount -l -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$0" "$@"`
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "sh", "-c", host, self, "--root", f.root, "--state", f.state, "--config", f.config)
	cmd.Env = append(os.Environ(), "BERTHD_TEST_RUN=1", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/none")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(string(out), "systemd is the init of this host, and cgroup.driver does not say") {
		t.Errorf("it ended with %v:\n%s", err, out)
	}
}

func TestLifeOfADaemon(t *testing.T) {
	f := newFolders(t)
	notifications, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(filepath.Dir(f.root), "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notifications.Close()
	t.Setenv("NOTIFY_SOCKET", notifications.LocalAddr().String())
	begin := time.Now()
	first := f.start(t)
	b := make([]byte, 64)
	if err := notifications.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := notifications.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Fatalf("notification %q, %v", b[:n], err)
	}
	t.Logf("ready after %v", time.Since(begin))
	if v := f.version(t); v.GetRuntimeName() != "berth" {
		t.Errorf("Version = %v", v)
	}

	// A second one on either folder refuses at once.
	for name, g := range map[string]folders{
		"same folders": f, "same root": {f.root, f.state + "2", f.config}, "same state": {f.root + "2", f.state, f.config},
	} {
		begin := time.Now()
		second := g.start(t)
		if code := second.wait(t); code != exitFailed || !strings.Contains(second.log.String(), fmt.Sprintf("PID %d", first.cmd.Process.Pid)) {
			t.Errorf("%s: exit status %d, %s", name, code, second.log)
		}
		if d := time.Since(begin); d > 20*time.Second {
			t.Errorf("%s: the refusal took %v", name, d)
		}
	}

	if err := first.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	f.version(t)

	// Killed, it leaves a socket that the next one replaces.
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	first.wait(t)
	next := f.start(t)
	f.version(t)
	if err := next.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := next.wait(t); code != 0 {
		t.Errorf("SIGTERM: exit status %d", code)
	}
	if _, err := os.Stat(filepath.Join(f.state, socketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestADaemonThatCannotStartSaysWhy(t *testing.T) {
	f := newFolders(t)
	for name, tc := range map[string]struct {
		config string
		args   []string
		want   string
		code   int
	}{
		"unknown key":    {config: "[runtime]\nmonitr = \"x\"\n", want: f.config + ":2: unknown key runtime.monitr", code: exitFailed},
		"no monitor":     {config: "[runtime]\nmonitor = \"/nowhere/monitor\"\n", want: "/nowhere/monitor", code: exitFailed},
		"no such config": {args: []string{"--config", "/nowhere/config.toml"}, want: "/nowhere/config.toml", code: exitFailed},
		"unknown flag":   {args: []string{"--nothing"}, want: "nothing", code: exitUsage},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(f.config, []byte(tc.config), 0o600); err != nil {
				t.Fatal(err)
			}
			p := f.start(t, tc.args...)
			if code := p.wait(t); code != tc.code || !strings.Contains(p.log.String(), tc.want) {
				t.Errorf("exit status %d, %q, want %d, %q", code, p.log, tc.code, tc.want)
			}
		})
	}
}

// Who reads the log may go: a service manager's logger that is started anew, a pipe to a program that ends.
func TestLogThatNobodyReadsEndsNothing(t *testing.T) {
	f := newFolders(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "--root", f.root, "--state", f.state, "--config", f.config, "--v=5")
	cmd.Env = append(os.Environ(), "BERTHD_TEST_RUN=1")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer cmd.Process.Kill()
	f.version(t)
	r.Close()
	for range 3 {
		if err := cmd.Process.Signal(syscall.SIGHUP); err != nil { // each is logged
			t.Fatalf("the daemon is gone: %v, %v", err, <-ended)
		}
		f.version(t)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
}

// A service manager that changes its mind ends what it has just started, which is no failure.
func TestASignalToEndWhileItStarts(t *testing.T) {
	f := newFolders(t)
	slow := filepath.Join(filepath.Dir(f.root), "slow")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\nexec sleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.config, fmt.Appendf(text, "[runtimes.slow]\ntype = \"oci\"\npath = %q\n", slow), 0o600); err != nil {
		t.Fatal(err)
	}
	p := f.start(t)
	if !wait.Until(20*time.Second, time.Millisecond, func() bool { // the program is looked at behind this
		_, err := os.Stat(filepath.Join(f.state, socketName))
		return err == nil
	}) {
		t.Fatal("there is no socket after 20 s")
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := p.wait(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if _, err := os.Stat(filepath.Join(f.state, socketName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
