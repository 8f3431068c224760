package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// execEnd is how long a killed command may take to be gone.
const execEnd = 2 * time.Second

// ExecSync runs a command in a running container and returns its output and exit code. After timeout (0: none), or when ctx ends, all that
// it started is killed. What it leaves behind on purpose runs on, and does not hold the answer up. The caller closes the result.
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
	call, cancel := ctx, context.CancelFunc(func() {})
	if timeout > 0 {
		call, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("command did not end within %v: %w", timeout, ErrTimeout))
	}
	defer cancel()
	stdout, stderr := capture{folder: m.cfg.Root}, capture{folder: m.cfg.Root}
	result.ExitCode, err = m.execStreams(call, c, cmd, Streams{Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		go func() { // a Write may still be under way, which waits for the disk as long as that does not answer
			stdout.output().Close()
			stderr.output().Close()
		}()
		return ExecResult{}, err
	}
	result.Stdout, result.Stderr = stdout.output(), stderr.output()
	return result, nil
}

// Exec runs a command in a running container with a client's streams, and returns its exit code when it has ended and its output is delivered.
// When ctx ends, or the client takes no more output, all that it started is killed. What it leaves behind on purpose runs on, and does not hold
// the answer up. The end of Stdin is the end of the command's input; with a terminal there is none.
// Errors: ErrNotFound, ErrState (the container does not run), ErrInvalid (the command cannot be executed), ctx's, a Writer's.
func (m *Manager) Exec(ctx context.Context, containerID string, cmd []string, s Streams) (exitCode int32, err error) {
	c, err := m.recoveredContainer(ctx, containerID)
	if err != nil {
		return 0, err
	}
	if exitCode, err = m.execStreams(ctx, c, cmd, s); err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return exitCode, nil
}

func (m *Manager) execStreams(ctx context.Context, c *container, cmd []string, s Streams) (exitCode int32, err error) {
	rec := m.containerRecord(c)
	if rec.State != store.Running {
		return 0, fmt.Errorf("it is %s, not Running: %w", rec.State, ErrState)
	}
	client, err := m.monitorOf(c.pod)
	if err != nil {
		return 0, err
	}
	process, err := m.execProcess(c, spec.Exec{Args: cmd, Terminal: s.Terminal})
	if err != nil {
		return 0, err
	}
	call, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	t := &transfer{client: s, failed: cancel}
	defer t.close()
	request := monitor.ExecRequest{ContainerID: c.id, Started: t.started}
	if err := t.prepare(call, process, &request); err != nil {
		return 0, err
	}
	by := m.handlerOf(c.pod)
	x, err := by.exec(c, process, &request)
	if err != nil {
		return 0, classify(by.execFault(c, nil, err))
	}
	defer func() { err = errors.Join(err, m.closeExec(c, x)) }()
	status, err := client.Exec(call, request)
	if err != nil {
		if call.Err() != nil {
			err = context.Cause(call)
		} else {
			err = by.execFault(c, x, err)
		}
		return 0, errors.Join(startFault(err), m.endExec(ctx, x))
	}
	return status.ExitCode, t.deliver(call)
}

// execProcess is the command as the container would run it.
func (m *Manager) execProcess(c *container, command spec.Exec) (*specs.Process, error) {
	made, err := m.specOf(c)
	if err != nil {
		return nil, err
	}
	return spec.ExecProcess(made, command)
}

// execution is what one exec has on the host.
type execution struct {
	group *cgroup.Group // of its processes
	// Of an exec by another runtime: the cgroup of its program, and the folder with its files.
	program *cgroup.Group
	folder  string
}

// endExec kills all that an exec started: another runtime's program first, which puts processes into the cgroup of the exec.
func (m *Manager) endExec(ctx context.Context, x *execution) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execEnd)
	defer cancel()
	for _, group := range []*cgroup.Group{x.program, x.group} {
		if group == nil {
			continue
		}
		if err := m.cfg.Cgroups.Kill(group.Path); err != nil {
			return err
		}
		if err := m.cfg.Cgroups.Wait(ctx, group.Path); err != nil {
			return err
		}
	}
	return nil
}

// closeExec takes away what an exec had on the host, but for a cgroup in which something runs on.
func (m *Manager) closeExec(c *container, x *execution) error {
	var errs []error
	if x.group != nil {
		errs = append(errs, x.group.Close(), m.sweepExecs(c, x.group.Path))
	}
	if x.program != nil {
		errs = append(errs, x.program.Close(), m.cfg.Cgroups.RemoveEmpty(x.program.Path))
	}
	if x.folder != "" {
		errs = append(errs, external.Remove(x.folder))
	}
	return errors.Join(errs...)
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
