package agent

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// find notes which namespaces the process has that an exec joins. The process is a child of the agent that nobody has reaped, so the number is its
// own. The caller holds Agent.mu.
//
// A child that waits before its root changes is not yet in a pid namespace that others are in, and what is executed beside it, a hook, is not either:
// both have the host's root still.
func (c *container) find(plan *engine.Plan, pid int) {
	if plan.Users != nil {
		c.namespaces |= unix.CLONE_NEWUSER
	}
	if plan.NewCgroup {
		c.namespaces |= unix.CLONE_NEWCGROUP
	}
	closeIf(c.pidns)
	c.pidns = -1
	if !plan.NewPID && plan.PIDNamespace == "" {
		return
	}
	var err error
	if c.pidns, err = unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		c.pidns = unknownNamespace
	}
}

// pause tells the caller that the container's process waits, and waits itself until it may go on. Execs can be made meanwhile.
func (a *Agent) pause(c *container, plan *engine.Plan, conn *wire.Conn, at wire.Paused, gone <-chan struct{}) error {
	resumed := make(chan struct{})
	a.mu.Lock()
	closeIf(c.pidfd) // of a child that stood back for its own
	var err error
	c.pidfd, err = unix.PidfdOpen(at.PID, 0)
	c.find(plan, at.PID)
	c.waits = resumed
	a.mu.Unlock()
	if err != nil {
		return err
	}
	if err := conn.Send(wire.Message{Verb: wire.AnswerPaused, Body: wire.Encode(&at)}); err != nil {
		return err
	}
	select {
	case <-resumed:
		return nil
	case <-gone:
	}
	a.mu.Lock()
	c.waits = nil
	a.mu.Unlock()
	return &wire.Failure{Text: "connection closed"}
}

// resume lets a start that waits go on.
func (a *Agent) resume(m wire.Message) (wire.Coder, error) {
	var id wire.ID
	if err := wire.Decode(m.Body, &id); err != nil {
		return nil, err
	}
	c, err := a.findWaiting(id.ContainerID)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.waits != nil {
		close(c.waits)
		c.waits = nil
	}
	return &wire.ID{}, nil
}

// findWaiting returns a container whose start waits.
func (a *Agent) findWaiting(containerID string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c, ok := a.containers[containerID]; ok && c.waits != nil {
		return c, nil
	}
	return nil, &wire.Failure{Kind: wire.FailedNotFound}
}
