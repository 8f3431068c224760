package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	// DefaultTimeout is how long one plugin may take.
	DefaultTimeout = 60 * time.Second

	pipeWait   = 2 * time.Second // for the pipes, when the plugin has ended
	maxStdout  = 1 << 20
	maxStderr  = 4 << 10
	busyTries  = 5
	busyWait   = 200 * time.Millisecond
	othersMask = 0o002
)

// ErrNotFound is a plugin that is in none of the folders.
var ErrNotFound = errors.New("plugin is not installed")

// Exec is invoke.Exec.
type Exec struct {
	version.PluginDecoder
	Timeout time.Duration // 0: DefaultTimeout
}

// FindInPath returns the path of a plugin. It refuses folders and files that everybody may write to.
func (*Exec) FindInPath(name string, dirs []string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00") {
		return "", fmt.Errorf("find plugin %q: not the name of a plugin", name)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		st, err := os.Stat(path)
		if err != nil || !st.Mode().IsRegular() {
			continue
		}
		folder, err := os.Stat(dir)
		if err != nil {
			continue
		}
		if folder.Mode().Perm()&othersMask != 0 {
			return "", fmt.Errorf("find plugin %q: folder %s is writable by everybody (mode %04o)", name, dir, folder.Mode().Perm())
		}
		if st.Mode().Perm()&othersMask != 0 {
			return "", fmt.Errorf("find plugin %q: %s is writable by everybody (mode %04o)", name, path, st.Mode().Perm())
		}
		if st.Mode().Perm()&0o111 == 0 {
			return "", fmt.Errorf("find plugin %q: %s is not executable (mode %04o)", name, path, st.Mode().Perm())
		}
		return path, nil
	}
	return "", fmt.Errorf("find plugin %q: %w: looked in %s", name, ErrNotFound, strings.Join(dirs, ", "))
}

// ExecPlugin runs a plugin and returns what it wrote to its standard output. The error of a plugin that says what is wrong in the
// form of the specification is a *types.Error.
func (e *Exec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	timeout := e.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("plugin has not ended after %s: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	for try := 1; ; try++ {
		out, err := run(ctx, path, stdin, environ)
		// An installer that is writing the file lets go of it soon.
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyWait):
		}
	}
}

func run(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout head
	var stderr tail
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Dir = environ, "/"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = pipeWait
	err := cmd.Run()
	if stdout.over {
		if cmd.Process != nil {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it started; the plugin itself has ended
		}
		return nil, fmt.Errorf("run %s: %w", path, errTooLong)
	}
	if ctx.Err() != nil && err != nil {
		return nil, fmt.Errorf("run %s: %w%s", path, context.Cause(ctx), stderr.quote())
	}
	if err == nil || errors.Is(err, exec.ErrWaitDelay) && cmd.ProcessState.Success() {
		return stdout.b, nil
	}
	if cmd.ProcessState == nil {
		return nil, fmt.Errorf("run %s: %w", path, err)
	}
	var said types.Error
	if json.Unmarshal(stdout.b, &said) == nil && (said.Msg != "" || said.Code != 0) {
		said.Msg, said.Details = said.Msg[:min(len(said.Msg), maxStderr)], said.Details[:min(len(said.Details), maxStderr)]
		return nil, &said
	}
	return nil, fmt.Errorf("run %s: %s without a CNI error%s", path, cmd.ProcessState, stderr.quote())
}

var errTooLong = errors.New("plugin wrote more than 1 MiB to its standard output")

// head keeps the beginning of a stream and refuses more.
type head struct {
	b    []byte
	over bool
}

func (h *head) Write(p []byte) (int, error) {
	if h.over = len(h.b)+len(p) > maxStdout; h.over {
		return 0, errTooLong
	}
	h.b = append(h.b, p...)
	return len(p), nil
}

// tail keeps the end of a stream.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-maxStderr):]...)
	t.b = append(t.b[:0], t.b[max(0, len(t.b)-maxStderr):]...)
	return len(p), nil
}

// quote returns the end of an error message.
func (t *tail) quote() string {
	s := strings.TrimSpace(string(t.b))
	if s == "" {
		return ""
	}
	return fmt.Sprintf(": %q", s)
}
