package agent

import (
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor/wire"
)

// attach gives a client the output of a container from now on, and a descriptor to write its input to. It answers when the container's
// streams have ended, or when the client has not kept up; a connection that closes before ends it.
func (a *Agent) attach(conn *wire.Conn, m *wire.Message) (wire.Coder, error) {
	var r wire.Attach
	if err := wire.Decode(m.Body, &r); err != nil || len(r.Present) != len(m.Descriptors) {
		return nil, wire.ErrMalformed
	}
	c, err := a.find(r.ContainerID)
	if err != nil {
		return nil, err
	}
	input, err := a.inputOf(c, &r)
	if err != nil {
		return nil, err
	}
	slow := make(chan struct{}, len(m.Descriptors))
	for i, fd := range m.Descriptors {
		m.Descriptors[i] = -1
		which := 0
		if r.Present[i] == wire.ExecStderr {
			which = 1
		}
		if which >= len(c.streams) { // a terminal has one stream
			unix.Close(fd)
			continue
		}
		t := &tap{fd: fd, slow: func() { slow <- struct{}{} }}
		c.streams[which].attach(t)
		defer c.streams[which].detach(t)
	}
	dropBody(m)
	started := wire.Message{Verb: wire.AnswerStarted, Body: wire.Encode(&wire.ID{ContainerID: c.id})}
	if input >= 0 {
		started.Descriptors = []int{input}
	}
	err = conn.Send(started)
	closeIf(input)
	if err != nil {
		return nil, err
	}
	select {
	case <-c.ended:
		return &wire.ID{}, nil
	case <-slow:
		return nil, &wire.Failure{Kind: wire.FailedSlow}
	case <-hangup(conn):
		return nil, &wire.Failure{Text: "connection closed"}
	}
}

// inputOf duplicates what a client writes the container's input to: the write end of its stdin, or its terminal's master. It is -1 when
// there is none, or it was not asked for.
func (a *Agent) inputOf(c *container, r *wire.Attach) (fd int, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.exited {
		return -1, &wire.Failure{Kind: wire.FailedExited}
	}
	if !r.Input {
		return -1, nil
	}
	if len(c.streams) > 1 {
		return duplicate(c.input)
	}
	raw, err := c.streams[0].from.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := raw.Control(func(master uintptr) { fd, err = duplicate(int(master)) })
	if failed != nil {
		return -1, failed
	}
	return fd, err
}

// closeStdin ends a container's input: it sees the end of file once those who are attached have closed theirs as well. A terminal has no
// such end. It is idempotent.
func (a *Agent) closeStdin(m wire.Message) (wire.Coder, error) {
	c, err := a.named(m)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	closeIf(c.input)
	c.input = -1
	return &wire.ID{}, nil
}
