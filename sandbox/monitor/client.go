package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// ErrNotFound means that the monitor has no such container.
var ErrNotFound = errors.New("container is not known to its monitor")

// ErrExited means that the container is there and its first process has ended.
var ErrExited = errors.New("container has exited")

// ErrTooOld means that an older berth started the pod's monitor, which does not know what it is asked for. It lives as long as the pod.
var ErrTooOld = errors.New("the pod's monitor is of an older berth, which could not do this: run the pod anew")

// Exit is how a container ended.
type Exit = wire.Exit

// ContainerState is what a monitor knows of one container.
type ContainerState = wire.Container

// Command is how another OCI runtime makes a process.
type Command = wire.Command

// Hello is what a monitor tells of itself.
type Hello = wire.Hello

// ReadExit reads a container's exit record. Errors: fs.ErrNotExist, wire.ErrCorrupt.
func ReadExit(path string) (Exit, error) { return wire.ReadExit(path) }

// StartRequest is a container to start. The descriptors stay the caller's.
type StartRequest struct {
	ContainerID string
	Plan        *engine.Plan
	Cgroups     []*os.File // one folder a hierarchy, named by its path
	LogPath     string     // "" keeps no log
	LogIsReal   bool       // no part of LogPath may be a symbolic link
	// Command has another runtime make the container; RuntimeGroup is the cgroup that its program runs in, or nil.
	Command      Command
	RuntimeGroup *os.File
	// Sysctls are pairs of a kernel parameter and its value, of the pod's namespaces.
	Sysctls [][2]string
	// Paused is told of each point of the plan at which the start waits; the start goes on when it returns nil, and else is undone.
	Paused func(ctx context.Context, at Paused) error
}

// Paused is a point at which a start waits.
type Paused = wire.Paused

// MapsUsers says whether a monitor knows user namespaces. One that does not would leave them out.
func MapsUsers(h Hello) error {
	if h.Version < wire.MapsUsers {
		return fmt.Errorf("a pod with a user namespace: %w", ErrTooOld)
	}
	return nil
}

// Client speaks to the monitor at one socket.
type Client struct {
	socket  string
	version atomic.Uint64 // the monitor's; 0 before the first Hello
}

// Dial returns a client. It does not connect: each call does.
func Dial(socket string) *Client { return &Client{socket: socket} }

// Hello returns when the pod is set up, or with what kept it from it.
func (c *Client) Hello(ctx context.Context) (Hello, error) {
	var h Hello
	err := c.call(ctx, wire.Message{Verb: wire.VerbHello}, &h)
	if err == nil {
		c.version.Store(h.Version)
	}
	return h, err
}

// need returns ErrTooOld if the monitor speaks no protocol of at least this version, in which what came.
func (c *Client) need(ctx context.Context, version uint64, what string) error {
	have := c.version.Load()
	if have == 0 && version > 1 {
		h, err := c.Hello(ctx)
		if err != nil {
			return err
		}
		have = h.Version
	}
	if have < version && version > 1 {
		return fmt.Errorf("%s: %w (it speaks version %d of the protocol, this needs %d)", what, ErrTooOld, have, version)
	}
	return nil
}

// confines returns ErrTooOld if the monitor would run the process without the AppArmor profile that it is to have.
func (c *Client) confines(ctx context.Context, pr *engine.Process) error {
	const since, sinceSELinux = 4, 8
	if pr.SELinux != "" {
		return c.need(ctx, sinceSELinux, "SELinux label "+pr.SELinux)
	}
	if pr.AppArmor == "" {
		return nil
	}
	return c.need(ctx, since, "AppArmor profile "+pr.AppArmor)
}

// mapsUsers tells whether a plan has a user namespace, or mounts whose owners are mapped.
func mapsUsers(p *engine.Plan) bool {
	return p.Users != nil || slices.ContainsFunc(p.Mounts, func(m engine.Mount) bool { return len(m.UIDs) > 0 })
}

// Start starts a container and returns its first process once it has executed. On an error no process is left, or what is being made is
// undone as soon as it can be: ctx may end while the monitor waits for a file system.
func (c *Client) Start(ctx context.Context, r StartRequest) (pid int, err error) {
	if err := c.confines(ctx, &r.Plan.Process); err != nil {
		return 0, err
	}
	if len(r.Command.Args) > 0 {
		if err := c.need(ctx, 3, "start a container by another runtime"); err != nil {
			return 0, err
		}
	}
	if mapsUsers(r.Plan) {
		if err := c.need(ctx, wire.MapsUsers, "start a container with mapped users"); err != nil {
			return 0, err
		}
	}
	if slices.ContainsFunc(r.Plan.Mounts, func(m engine.Mount) bool { return m.Type == engine.TypeImage }) {
		if err := c.need(ctx, 6, "start a container that mounts an image"); err != nil {
			return 0, err
		}
	}
	if r.Plan.Pauses != 0 || r.Plan.HostRoot != "" {
		if err := c.need(ctx, wire.RunsHooks, "start a container with hooks"); err != nil {
			return 0, err
		}
	}
	if pr := &r.Plan.Process; len(pr.Scheduler) > 0 || pr.IOPriority != 0 || len(r.Sysctls) > 0 {
		if err := c.need(ctx, 9, "start a container with a scheduling policy, an I/O priority or kernel parameters"); err != nil {
			return 0, err
		}
	}
	body := wire.Start{ContainerID: r.ContainerID, Plan: *r.Plan, LogPath: r.LogPath, LogIsReal: r.LogIsReal, Command: r.Command}
	for _, s := range r.Sysctls {
		body.Sysctls = append(body.Sysctls, wire.Sysctl{Key: s[0], Value: s[1]})
	}
	m := wire.Message{Verb: wire.VerbStart}
	for _, f := range r.Cgroups {
		body.Cgroups = append(body.Cgroups, f.Name())
		m.Descriptors = append(m.Descriptors, int(f.Fd()))
	}
	if r.RuntimeGroup != nil {
		body.Command.InGroup = true
		m.Descriptors = append(m.Descriptors, int(r.RuntimeGroup.Fd()))
	}
	m.Body = wire.Encode(&body)
	var started wire.Exit // only its PID
	err = c.converse(ctx, m, conversation{into: &started, end: letEnd, paused: func(at Paused) error {
		if err := r.Paused(ctx, at); err != nil {
			return err
		}
		return c.callID(ctx, wire.VerbContinue, r.ContainerID)
	}})
	return started.PID, err
}

// Signal sends sig to a container's first process.
func (c *Client) Signal(ctx context.Context, containerID string, sig unix.Signal) error {
	return c.call(ctx, wire.Message{Verb: wire.VerbSignal, Body: wire.Encode(&wire.Signal{ContainerID: containerID, Signal: int(sig)})}, &wire.ID{})
}

// ReopenLog makes the container's log anew at its path, as after a rotation.
func (c *Client) ReopenLog(ctx context.Context, containerID string) error {
	return c.callID(ctx, wire.VerbReopenLog, containerID)
}

// Forget makes the monitor drop what it knows of a container that has exited. It is idempotent.
func (c *Client) Forget(ctx context.Context, containerID string) error {
	return c.callID(ctx, wire.VerbForget, containerID)
}

// Shutdown ends the monitor. It returns when the monitor has agreed; the process ends right after.
func (c *Client) Shutdown(ctx context.Context) error { return c.callID(ctx, wire.VerbShutdown, "") }

// Watch calls exited for every exit, first for those that were before. It returns when ctx or the connection ends.
func (c *Client) Watch(ctx context.Context, exited func(Exit)) error {
	conn, stop, err := c.open(ctx, cut)
	if err != nil {
		return err
	}
	defer stop()
	if err := conn.Send(wire.Message{Verb: wire.VerbWatch}); err != nil {
		return fmt.Errorf("watch exits: %w", err)
	}
	for {
		m, err := conn.Receive()
		if err != nil {
			return fmt.Errorf("watch exits: %w", errors.Join(err, ctx.Err()))
		}
		var e Exit
		if err := answer(m, &e); err != nil {
			return fmt.Errorf("watch exits: %w", err)
		}
		exited(e)
	}
}

func (c *Client) callID(ctx context.Context, verb wire.Verb, containerID string) error {
	return c.call(ctx, wire.Message{Verb: verb, Body: wire.Encode(&wire.ID{ContainerID: containerID})}, &wire.ID{})
}

// call makes one request on a connection of its own and decodes the answer.
func (c *Client) call(ctx context.Context, request wire.Message, into wire.Coder) error {
	return c.converse(ctx, request, conversation{into: into, end: cut})
}

// cut makes what waits on a connection return.
func cut(conn *wire.Conn) { conn.SetDeadline(time.Unix(1, 0)) }

// conversation is what a call does with its connection.
type conversation struct {
	into    wire.Coder       // the last answer's body
	end     func(*wire.Conn) // called when the context ends
	started func(fds []int)  // takes the descriptors of an AnswerStarted
	done    func(fds []int)  // takes those of an AnswerDone; nil: it has none
	paused  func(Paused) error
}

// converse makes one request on a connection of its own and takes the answers to the last.
func (c *Client) converse(ctx context.Context, request wire.Message, talk conversation) error {
	conn, stop, err := c.open(ctx, talk.end)
	if err != nil {
		return err
	}
	defer stop()
	if err = conn.Send(request); err == nil {
		err = talk.listen(conn)
	} else {
		err = fmt.Errorf("call monitor: %w", err)
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("call monitor: %w", context.Cause(ctx))
	}
	return err
}

func (t *conversation) listen(conn *wire.Conn) error {
	for {
		m, err := conn.Receive()
		if err != nil {
			return fmt.Errorf("call monitor: %w", err)
		}
		switch {
		case m.Verb == wire.AnswerPaused && t.paused != nil:
			var at Paused
			err := wire.Decode(m.Body, &at)
			if err == nil {
				err = t.paused(at)
			}
			if err != nil {
				letEnd(conn)
				conn.Receive() //nolint:errcheck // what was begun is undone by then
				return err
			}
			continue
		case m.Verb == wire.AnswerStarted && t.started != nil:
			t.started(m.Descriptors)
			continue
		case m.Verb == wire.AnswerDone && t.done != nil:
			t.done(m.Descriptors)
			m.Descriptors = nil
		}
		return answer(m, t.into)
	}
}

// open connects; when ctx ends, end is called.
func (c *Client) open(ctx context.Context, end func(*wire.Conn)) (*wire.Conn, func(), error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("call monitor: %w", context.Cause(ctx))
	}
	conn, err := wire.Connect(c.socket)
	if err != nil {
		return nil, nil, err
	}
	if uid, err := conn.PeerUID(); err != nil || uid != 0 {
		conn.Close()
		return nil, nil, fmt.Errorf("monitor at %s belongs to user %d: %w", c.socket, uid, errors.Join(unix.EPERM, err))
	}
	unwatch := context.AfterFunc(ctx, func() { end(conn) })
	return conn, func() { unwatch(); conn.Close() }, nil
}

func answer(m wire.Message, into wire.Coder) error {
	m.CloseDescriptors()
	switch m.Verb {
	case wire.AnswerDone:
		return wire.Decode(m.Body, into)
	case wire.AnswerFailed:
		var f wire.Failure
		if err := wire.Decode(m.Body, &f); err != nil {
			return err
		}
		switch f.Kind {
		case wire.FailedNotFound:
			return ErrNotFound
		case wire.FailedExited:
			return ErrExited
		case wire.FailedSlow:
			return ErrSlow
		}
		return &f
	}
	return wire.ErrMalformed
}
