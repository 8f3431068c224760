package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// Bounds of an exec.
const (
	maxExecOutput = 16 << 20               // bytes of a stream that are kept (CRI: ExecSyncResponse)
	drainTimeout  = 200 * time.Millisecond // how long a process that the command left behind may hold the answer up
	execEnd       = 2 * time.Second        // how long a killed command may take to be gone
)

// ExecSync runs a command in a running container and returns its output and exit code. After timeout (0: none), or when ctx ends, all that
// it started is killed. What it leaves behind on purpose runs on, and does not hold the answer up.
// Errors: ErrNotFound, ErrState (the container does not run), ErrInvalid (the command cannot be executed), ErrTimeout, ctx's.
func (m *Manager) ExecSync(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (ExecResult, error) {
	c, err := m.recoveredContainer(ctx, containerID)
	if err != nil {
		return ExecResult{}, err
	}
	result, err := m.execSync(ctx, c, cmd, timeout)
	if err != nil {
		return ExecResult{}, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return result, nil
}

func (m *Manager) execSync(ctx context.Context, c *container, cmd []string, timeout time.Duration) (result ExecResult, err error) {
	rec := m.containerRecord(c)
	if rec.State != store.Running {
		return result, fmt.Errorf("it is %s, not Running: %w", rec.State, ErrState)
	}
	client, err := m.monitorOf(c.pod)
	if err != nil {
		return result, err
	}
	process, err := m.execProcess(c, cmd)
	if err != nil {
		return result, err
	}
	group, err := m.cfg.Cgroups.Child(rec.Cgroup, "exec-"+newID()[:16])
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, group.Close(), m.sweepExecs(c, group.Path)) }()
	stdout, err := newCapture()
	if err != nil {
		return result, err
	}
	defer stdout.close()
	stderr, err := newCapture()
	if err != nil {
		return result, err
	}
	defer stderr.close()

	call, cancel := ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		call, cancel = context.WithTimeoutCause(ctx, timeout, ErrTimeout)
	}
	defer cancel()
	status, err := client.ExecSync(call, monitor.ExecRequest{ContainerID: c.id, Process: process, Cgroups: group.Dirs, CgroupKill: group.Kill,
		Stdout: stdout.write, Stderr: stderr.write})
	if err != nil {
		if call.Err() != nil {
			err = context.Cause(call)
			if errors.Is(err, ErrTimeout) {
				err = fmt.Errorf("command did not end within %v: %w", timeout, ErrTimeout)
			}
		}
		return result, errors.Join(startFault(err), m.endExec(ctx, group))
	}
	out, errOut := stdout.drain(), stderr.drain()
	return ExecResult{Stdout: <-out, Stderr: <-errOut, ExitCode: status.ExitCode}, nil
}

// execProcess is the command as the engine needs it.
func (m *Manager) execProcess(c *container, cmd []string) (*engine.Process, error) {
	made, err := m.specOf(c)
	if err != nil {
		return nil, err
	}
	process, err := spec.ExecProcess(made, spec.Exec{Args: cmd})
	if err != nil {
		return nil, err
	}
	return runtime.CompileExec(made, process)
}

// endExec kills all that an exec started.
func (m *Manager) endExec(ctx context.Context, group *cgroup.Group) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execEnd)
	defer cancel()
	if err := m.cfg.Cgroups.Kill(group.Path); err != nil {
		return err
	}
	return m.cfg.Cgroups.Wait(ctx, group.Path)
}

// sweepExecs removes the cgroup of an exec, and those of earlier ones that still had processes then.
func (m *Manager) sweepExecs(c *container, path string) error {
	c.exec.Lock()
	defer c.exec.Unlock()
	var left []string
	var errs []error
	for _, p := range append(c.exec.leftovers, path) {
		gone, err := m.cfg.Cgroups.RemoveChild(p)
		if err != nil {
			errs = append(errs, err)
		} else if !gone {
			left = append(left, p)
		}
	}
	c.exec.leftovers = left
	return errors.Join(errs...)
}

// capture is a pipe whose end is read into memory, up to maxExecOutput; the rest is read and dropped, so that the writer never waits.
type capture struct {
	read, write *os.File
	done        chan []byte
}

var scratch = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

func newCapture() (*capture, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	c := &capture{read: r, write: w, done: make(chan []byte, 1)}
	go func() { c.done <- c.collect() }()
	return c, nil
}

// collect reads until the last writer has closed the pipe, or the deadline that drain sets.
func (c *capture) collect() []byte {
	var kept bytes.Buffer
	buf := scratch.Get().(*[]byte)
	defer scratch.Put(buf)
	for {
		n, err := c.read.Read(*buf)
		kept.Write((*buf)[:min(n, maxExecOutput-kept.Len())])
		if err != nil { // io.EOF, or the deadline
			return kept.Bytes()
		}
	}
}

// drain lets the reader end: when all writers are gone, or a little later.
func (c *capture) drain() <-chan []byte {
	c.write.Close()
	c.read.SetReadDeadline(time.Now().Add(drainTimeout)) //nolint:errcheck // pipes have deadlines
	return c.done
}

// close ends the reader in any case.
func (c *capture) close() {
	c.write.Close()
	c.read.Close()
}
