package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// stallTimeout is how long a client that was detached because it fell behind may take nothing of what it still gets.
const stallTimeout = 2 * time.Second

// errDetached ends an attachment whose client has nothing more to say.
var errDetached = errors.New("the client's stdin has ended")

// Attach connects a client to the streams of a running container: to what it writes from now on, and to its stdin if it has one. It returns nil
// when the container has exited and the client has all of its output, or when the client's Stdin ends: with the container's StdinOnce and
// no terminal that closes the container's stdin, and the client stays for the output; else the client is detached. A client that leaves
// a container with StdinOnce closes its stdin as well, but the end of the daemon does not.
//
// The container and its log never wait for a client: one that does not take the output is detached once some MiB are waiting for it.
// Errors: ErrNotFound, ErrState (the container does not run), ErrExhausted (the client fell behind), ctx's, a Writer's.
func (m *Manager) Attach(ctx context.Context, containerID string, s Streams) error {
	c, err := m.recoveredContainer(ctx, containerID)
	if err != nil {
		return err
	}
	if err := m.attachTo(ctx, c, s); err != nil {
		return fmt.Errorf("attach to container %s: %w", c.id, err)
	}
	return nil
}

func (m *Manager) attachTo(ctx context.Context, c *container, s Streams) error {
	if rec := m.containerRecord(c); rec.State != store.Running {
		return fmt.Errorf("it is %s, not Running: %w", rec.State, ErrState)
	}
	client, err := m.monitorOf(c.pod)
	if err != nil {
		return err
	}
	call, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if s.Terminal = c.config.GetTty(); s.Terminal {
		s.Stderr = nil // all of it comes by Stdout
	}
	if !c.config.GetStdin() {
		s.Stdin = nil
	}
	a := &attachment{transfer: transfer{client: s, failed: cancel, ended: make(chan struct{})}, manager: m, container: c}
	defer func() {
		if !errors.Is(context.Cause(ctx), ErrClosing) {
			a.endInput()
		}
		a.close()
	}()
	request := monitor.AttachRequest{ContainerID: c.id, Input: s.Stdin != nil || s.Terminal && s.Resize != nil, Started: a.started}
	if err := a.prepare(&request); err != nil {
		return err
	}
	err = client.Attach(call, request)
	a.release()
	if cause := context.Cause(call); cause != nil {
		err = cause
	}
	switch {
	case errors.Is(err, errDetached):
		return nil
	case errors.Is(err, monitor.ErrSlow):
		a.deliver(ctx, stallTimeout) //nolint:errcheck // that it fell behind says more
	case err == nil:
		err = a.deliver(call, 0)
	}
	return classify(err)
}

// attachment is one attached client.
type attachment struct {
	transfer
	manager   *Manager
	container *container
	backlogs  []*backlog
	input     *os.File // the container's stdin, when the client is to end it
}

// prepare makes the ways for the output.
func (a *attachment) prepare(r *monitor.AttachRequest) error {
	for _, out := range []struct {
		name string
		to   io.Writer
		end  **os.File
	}{{"stdout", a.client.Stdout, &r.Stdout}, {"stderr", a.client.Stderr, &r.Stderr}} {
		if out.to == nil {
			continue
		}
		ours, theirs, err := newChannel()
		if err != nil {
			return err
		}
		*out.end = theirs
		a.theirs = append(a.theirs, theirs)
		b := newBacklog(out.to, func(err error) { a.failed(fmt.Errorf("deliver %s: %w", out.name, err)) })
		a.backlogs = append(a.backlogs, b)
		a.outlets = append(a.outlets, carry(ours, b, func(err error) {
			b.end()
			if err != nil {
				a.failed(err)
			}
		}))
	}
	return nil
}

// channelSize is what the monitor can write before the daemon has to read: a monitor does not wait, and a busy host may let the daemon
// wait. Of the kernel's memory it takes what is not read yet.
const channelSize = 16 << 20

// newChannel makes a way for the output of a container. A pipe holds no more than a container writes in some milliseconds.
func newChannel() (ours, theirs *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a channel to the monitor: %w", err)
	}
	unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, channelSize) //nolint:errcheck // it has 200 KiB without
	return os.NewFile(uintptr(pair[0]), "channel"), os.NewFile(uintptr(pair[1]), "channel"), nil
}

// started takes the way to the container's stdin, or its terminal.
func (a *attachment) started(input *os.File) {
	a.release()
	if input == nil {
		return
	}
	a.stdin = input
	if a.client.Terminal && a.client.Resize != nil {
		go a.resize(input)
	}
	if a.client.Stdin == nil {
		return
	}
	if a.container.config.GetStdinOnce() && !a.client.Terminal {
		a.input = input
		a.container.exec.Lock()
		a.container.exec.inputs = append(a.container.exec.inputs, input)
		a.container.exec.Unlock()
	}
	go a.feed(input, a.stdinEnded)
}

// stdinEnded is called when the client's stdin has ended, in a goroutine of its own.
func (a *attachment) stdinEnded() {
	if a.input != nil {
		a.endInput()
		if len(a.outlets) > 0 {
			return
		}
		a.failed(errDetached)
		return
	}
	timer := time.NewTimer(drainTimeout) // for what the container says to the last line
	defer timer.Stop()
	select {
	case <-timer.C:
		a.failed(errDetached)
	case <-a.ended:
	}
}

// endInput closes the container's stdin for all, if the client's end is the end of it.
func (a *attachment) endInput() {
	if a.input == nil {
		return
	}
	c := a.container
	c.exec.Lock()
	inputs := c.exec.inputs
	c.exec.inputs = nil
	c.exec.Unlock()
	for _, f := range inputs {
		f.Close()
	}
	if !slices.Contains(inputs, a.input) {
		return // another client has closed it
	}
	ctx, cancel := context.WithTimeout(a.manager.ctx, callTimeout)
	defer cancel()
	client, err := a.manager.monitorOf(c.pod)
	if err == nil {
		err = client.CloseStdin(ctx, c.id)
	}
	if err != nil && !errors.Is(err, monitor.ErrNotFound) && !errors.Is(err, errNoMonitor) && ctx.Err() == nil {
		a.manager.logger(a.manager.ctx).Error(err, "Could not close a container's stdin", "containerID", c.id)
	}
}

// deliver waits until the client has all that the container wrote; with a limit, no longer than the client goes on to take it.
func (a *attachment) deliver(ctx context.Context, limit time.Duration) error {
	for _, b := range a.backlogs {
		if err := b.wait(ctx, limit); err != nil {
			return err
		}
	}
	return nil
}

// close ends the attachment.
func (a *attachment) close() {
	a.transfer.close()
	for _, b := range a.backlogs {
		b.drop(os.ErrClosed)
	}
}
