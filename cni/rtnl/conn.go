package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of one netlink exchange.
const (
	maxBatch       = 128 // requests of one datagram: the answers to twice as many fit into the receive buffer that sockets have
	receiveBuffer  = 64 << 10
	receiveTimeout = 20 // seconds: an answer is queued before the send returns, so only a lost one takes that long
	dumpTries      = 100
	dumpPause      = time.Millisecond
)

// Flags of an acknowledgement, include/uapi/linux/netlink.h.
const (
	nlmFCapped  = 0x100
	nlmFAckTLVs = 0x200
	nlmsgerrMsg = 1
)

// Request is one rtnetlink message, without its header.
type Request struct {
	What   string       // verb phrase that starts the error: "add address 10.88.0.5/16"
	Type   uint16       // RTM_*
	Flags  uint16       // NLM_F_*, besides REQUEST and ACK
	Body   []byte       // family header and attributes
	Ignore []unix.Errno // answers that count as success
}

// Conn is a rtnetlink socket. Close it when done.
type Conn struct {
	mu  sync.Mutex
	fd  int // negative: closed
	seq uint32
	in  []byte
	out []byte
}

// Dial opens a socket in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	return &Conn{fd: fd}, nil
}

func socket() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	// Both options only make answers shorter and errors clearer: a kernel without them is fine.
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: receiveTimeout})
	return fd, nil
}

// DialIn opens a socket in the network namespace target and runs there, when it is not nil, which may open files of that
// namespace's /proc/sys/net; it must not start goroutines or block. home is the namespace of the process.
//
// The visit is made on the caller's thread: handing it to another costs more than all that is done there. A thread that cannot come
// home must not run anything else, so DialIn panics then, with the thread locked to its goroutine; it ends with it.
func DialIn(target, home int, there func() error) (*Conn, error) {
	runtime.LockOSThread()
	if err := unix.Setns(target, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("enter network namespace: %w", os.NewSyscallError("setns", err))
	}
	fd, err := socket()
	if err == nil && there != nil {
		err = there()
	}
	if back := unix.Setns(home, unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("return from network namespace: %v", back))
	}
	runtime.UnlockOSThread()
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return nil, err
	}
	return &Conn{fd: fd}, nil
}

// Close closes the socket. It must not run at the same time as Do.
func (c *Conn) Close() error {
	if c == nil || c.fd < 0 {
		return nil
	}
	fd := c.fd
	c.fd = -1
	return unix.Close(fd)
}

// Closed reports whether the Conn can be used no more: Close was called, or an exchange was cut off. What the kernel still had to
// say then would hold up the next one.
func (c *Conn) Closed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fd < 0
}

// Do sends the requests, up to 128 in one datagram, and waits for all answers. The error joins those of the requests that failed, in
// order; the others are done all the same. After an error of the socket itself, requests may be left undone, and the Conn is closed.
func (c *Conn) Do(requests ...Request) error {
	_, err := c.exchange(requests)
	return err
}

// Get is Do for requests that return messages: the bodies of all answers, headers cut off.
func (c *Conn) Get(requests ...Request) ([][]byte, error) {
	return c.exchange(requests)
}

// dump returns the messages of a list that did not change while the kernel told it. One that did may lack what was there all the time
// (Documentation/userspace-api/netlink/intro.rst, "Dump consistency"), so it is asked for again.
func (c *Conn) dump(r Request) (bodies [][]byte, err error) {
	r.Flags |= unix.NLM_F_DUMP
	for range dumpTries {
		if bodies, err = c.exchange([]Request{r}); !errors.Is(err, errInterrupted) {
			return bodies, err
		}
		time.Sleep(dumpPause)
	}
	return nil, err
}

func (c *Conn) exchange(requests []Request) ([][]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var bodies [][]byte
	var errs []error
	for batch := range slices.Chunk(requests, maxBatch) {
		if c.fd < 0 {
			return nil, errors.Join(append(errs, fmt.Errorf("%s: %w", batch[0].What, os.ErrClosed))...)
		}
		a, err := c.send(batch)
		if err != nil {
			_ = c.Close() // answers may still come, or the rest of a list
			return nil, errors.Join(append(errs, err)...)
		}
		bodies, errs = append(bodies, a.bodies...), append(errs, a.errs...)
	}
	return bodies, errors.Join(errs...)
}

// send sends requests in one datagram. An error is the socket's: the conversation was cut off. Preconditions: c.mu held.
func (c *Conn) send(requests []Request) (*answers, error) {
	first := c.seq + 1
	c.out = c.out[:0]
	for _, r := range requests {
		c.seq++
		c.out = appendMessage(c.out, r, c.seq)
	}
	if err := unix.Sendto(c.fd, c.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("%s: %w", requests[0].What, os.NewSyscallError("sendto", err))
	}
	a := &answers{requests: requests, first: first, errs: make([]error, len(requests))}
	if c.in == nil {
		c.in = make([]byte, receiveBuffer)
	}
	for a.done < len(requests) {
		n, err := receive(c.fd, c.in)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", requests[0].What, os.NewSyscallError("recvfrom", err))
		}
		if err := a.take(c.in[:n]); err != nil {
			return nil, fmt.Errorf("%s: %w", requests[0].What, err)
		}
	}
	return a, nil
}

func receive(fd int, buf []byte) (int, error) {
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

func appendMessage(b []byte, r Request, seq uint32) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(r.Body)))
	b = binary.NativeEndian.AppendUint16(b, r.Type)
	b = binary.NativeEndian.AppendUint16(b, r.Flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, r.Body...)
	return pad(b)
}

// answers sorts what comes back to the requests of one batch.
type answers struct {
	requests []Request
	first    uint32 // sequence number of requests[0]
	done     int
	bodies   [][]byte
	errs     []error
}

var (
	errShort       = errors.New("netlink answer is cut short")
	errInterrupted = errors.New("the list changed while it was read")
)

func (a *answers) take(b []byte) error {
	for len(b) >= unix.SizeofNlMsghdr {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.SizeofNlMsghdr || length > len(b) {
			return errShort
		}
		kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		i := binary.NativeEndian.Uint32(b[8:]) - a.first
		body := b[unix.SizeofNlMsghdr:length]
		b = b[min((length+3)&^3, len(b)):]
		if int64(i) >= int64(len(a.requests)) {
			continue // a late answer to an earlier exchange that gave up
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 && kind != unix.NLMSG_ERROR && a.errs[i] == nil {
			a.errs[i] = fmt.Errorf("%s: %w", a.requests[i].What, errInterrupted)
		}
		switch kind {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			a.done++
			if len(body) < 4 {
				break // NLMSG_DONE of an old kernel
			}
			if code := int32(binary.NativeEndian.Uint32(body)); code < 0 {
				a.fail(int(i), unix.Errno(-code), body, flags)
			}
		default:
			a.bodies = append(a.bodies, slices.Clone(body))
		}
	}
	return nil
}

func (a *answers) fail(i int, errno unix.Errno, body []byte, flags uint16) {
	if slices.Contains(a.requests[i].Ignore, errno) {
		return
	}
	if text := kernelText(body, flags); text != "" {
		a.errs[i] = fmt.Errorf("%s: %w (%s)", a.requests[i].What, errno, text)
		return
	}
	a.errs[i] = fmt.Errorf("%s: %w", a.requests[i].What, errno)
}

// kernelText returns the sentence of an extended acknowledgement, or "".
func kernelText(body []byte, flags uint16) string {
	const errorHeader = 4 + unix.SizeofNlMsghdr
	if flags&nlmFAckTLVs == 0 || flags&nlmFCapped == 0 || len(body) < errorHeader {
		return ""
	}
	text := attributes(body[errorHeader:])[nlmsgerrMsg]
	return string(cutZero(text))
}
