package agent

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor/wire"
)

// dialTimeout bounds one address: a listener whose queue is full does not answer.
const dialTimeout = 20 * time.Second

// dial answers with a connection to a port of the pod's loopback: the monitor is in the pod's network namespace, and where a socket is
// made, there it belongs for good. The second address is for servers that listen on the first one not.
func (a *Agent) dial(conn *wire.Conn, m wire.Message) {
	var r wire.Dial
	if err := wire.Decode(m.Body, &r); err != nil || r.Port <= 0 || r.Port > 1<<16-1 {
		reply(conn, nil, wire.ErrMalformed)
		return
	}
	gone := hangup(conn)
	fd, errno := connect(unix.AF_INET, &unix.SockaddrInet4{Port: r.Port, Addr: [4]byte{127, 0, 0, 1}}, gone)
	if errno != 0 {
		var second unix.Errno
		if fd, second = connect(unix.AF_INET6, &unix.SockaddrInet6{Port: r.Port, Addr: [16]byte{15: 1}}, gone); second != 0 {
			reply(conn, nil, &wire.Failure{Kind: wire.FailedDial, Text: "port " + strconv.Itoa(r.Port) + " of 127.0.0.1 and ::1", Errno: int(errno)})
			return
		}
	}
	defer unix.Close(fd)
	conn.Send(wire.Message{Verb: wire.AnswerDone, Body: wire.Encode(&wire.ID{}), Descriptors: []int{fd}})
}

// connect connects a socket, until the timeout or until gone is closed.
func connect(family int, to unix.Sockaddr, gone <-chan struct{}) (int, unix.Errno) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, errno(err)
	}
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return -1, errno(err)
	} else if err == nil {
		return fd, 0
	}
	f := os.NewFile(uintptr(fd), "connection") // for the poller
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, unix.EIO
	}
	f.SetDeadline(time.Now().Add(dialTimeout))
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-gone:
			f.SetDeadline(time.Unix(1, 0))
		case <-done:
		}
	}()
	own, failed := -1, unix.ETIMEDOUT
	raw.Write(func(fd uintptr) bool {
		// The first call is before the socket was waited for; without a peer it is not connected yet.
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil || code != 0 {
			failed = unix.Errno(code)
			return true
		}
		if _, err := unix.Getpeername(int(fd)); err != nil {
			return false
		}
		if own, err = duplicate(int(fd)); err != nil {
			failed = errno(err)
		}
		return true
	})
	if own < 0 {
		return -1, failed
	}
	return own, 0
}
