package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Version is the newest protocol that this code speaks. It rises when a verb or a field gains a meaning that an older
// peer must not miss; fields that it may miss are only appended (package codec).
//
//	1  the first
//	2  AnswerStarted: terminals of execs; user namespaces
//	3  Command: other runtimes
//	4  AppArmor profiles of containers and execs
//	5  VerbAttach, VerbCloseStdin, VerbDial
//	6  mounts of images
//	7  hooks: AnswerPaused, VerbContinue, Exec.Waiting
//	8  SELinux labels of containers and execs
//	9  scheduling and kernel parameters of containers
const Version = 9

// RunsHooks is the version that brought hooks. An older monitor would not wait for them.
const RunsHooks = 7

// MapsUsers is the version that brought user namespaces and mapped owners. An older monitor would leave them out.
const MapsUsers = 2

// Verb is what a message asks for.
type Verb uint8

// The verbs. Numbers are never used again.
const (
	VerbHello Verb = iota + 1
	VerbStart
	VerbSignal
	VerbReopenLog
	VerbExec
	VerbWatch
	VerbForget
	VerbShutdown
	VerbAttach
	VerbCloseStdin
	VerbDial
	VerbContinue
)

// Answers stand where a request has its verb.
const (
	AnswerDone    Verb = 128
	AnswerFailed  Verb = 129
	AnswerStarted Verb = 130 // what was asked for goes on; another answer ends it
	AnswerPaused  Verb = 131 // a start waits for VerbContinue
)

// Limits of a message.
const (
	maxBody        = 16 << 20
	maxDescriptors = 64
	headerSize     = 8
	controlSize    = unix.SizeofCmsghdr + 4*maxDescriptors // CmsgSpace: a multiple of the alignment already
)

// ErrMalformed means that the peer does not speak the protocol.
var ErrMalformed = errors.New("malformed monitor message")

// Message is one frame.
type Message struct {
	Version uint16
	Verb    Verb
	Body    []byte
	// Descriptors were received with the message, or are sent with it. The receiver closes them.
	Descriptors []int
}

// CloseDescriptors closes what was received.
func (m *Message) CloseDescriptors() {
	for _, fd := range m.Descriptors {
		unix.Close(fd)
	}
	m.Descriptors = nil
}

// Conn is one connection; it is for one reader and one writer at a time.
type Conn struct {
	file *os.File
	raw  syscall.RawConn

	header  [headerSize]byte // of the message that is received, and its descriptors
	control [controlSize]byte
}

// NewConn takes over the non-blocking socket fd.
func NewConn(fd int) (*Conn, error) {
	f := os.NewFile(uintptr(fd), "monitor connection")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &Conn{file: f, raw: raw}, nil
}

// Close ends the connection; a blocked Send or Receive returns.
func (c *Conn) Close() error { return c.file.Close() }

// CloseWrite tells the peer that nothing more comes; it may still answer.
func (c *Conn) CloseWrite() error {
	var failed error
	err := c.raw.Control(func(fd uintptr) { failed = unix.Shutdown(int(fd), unix.SHUT_WR) })
	return errors.Join(err, failed)
}

// SetDeadline bounds Send and Receive; the zero time takes the bound away.
func (c *Conn) SetDeadline(t time.Time) error { return c.file.SetDeadline(t) }

// PeerUID returns the user of the process at the other end, as of connect (unix(7), SO_PEERCRED).
func (c *Conn) PeerUID() (uint32, error) {
	var uid uint32
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed == nil {
			uid = cred.Uid
		}
	})
	return uid, errors.Join(err, failed)
}

// Send writes m. Its descriptors travel with the first byte and stay the caller's.
func (c *Conn) Send(m Message) error {
	if len(m.Body) > maxBody || len(m.Descriptors) > maxDescriptors {
		return fmt.Errorf("send %d bytes and %d descriptors: %w", len(m.Body), len(m.Descriptors), ErrMalformed)
	}
	frame := make([]byte, headerSize, headerSize+len(m.Body))
	binary.LittleEndian.PutUint32(frame, uint32(len(m.Body)))
	binary.LittleEndian.PutUint16(frame[4:], Version)
	frame[6], frame[7] = byte(m.Verb), byte(len(m.Descriptors))
	frame = append(frame, m.Body...)
	var rights []byte
	if len(m.Descriptors) > 0 {
		rights = unix.UnixRights(m.Descriptors...)
	}
	for len(frame) > 0 {
		var n int
		var failed error
		err := c.raw.Write(func(fd uintptr) bool {
			n, failed = unix.SendmsgN(int(fd), frame, rights, nil, unix.MSG_NOSIGNAL)
			return failed != unix.EAGAIN && failed != unix.EINTR
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		frame, rights = frame[n:], nil
	}
	return nil
}

// Receive reads one message. At the end of the connection it returns an error that Closed knows, or the socket's.
func (c *Conn) Receive() (Message, error) {
	return c.ReceiveInto(func(size int) []byte { return make([]byte, size) })
}

// ReceiveInto is Receive into memory of the caller's, who is asked for it when the size of a body is known.
func (c *Conn) ReceiveInto(memory func(size int) []byte) (Message, error) {
	header, control := c.header[:], c.control[:]
	m := Message{}
	n, err := c.receive(header, control, &m.Descriptors)
	if err == nil {
		_, err = c.fill(header[n:])
	}
	size := binary.LittleEndian.Uint32(header)
	if err == nil && (size > maxBody || int(header[7]) != len(m.Descriptors)) {
		err = ErrMalformed
	}
	if err == nil {
		m.Version, m.Verb = binary.LittleEndian.Uint16(header[4:]), Verb(header[6])
		if size > 0 {
			m.Body = memory(int(size))
			_, err = c.fill(m.Body)
		}
	}
	if err != nil {
		m.CloseDescriptors()
		return Message{}, err
	}
	return m, nil
}

func (c *Conn) receive(b, control []byte, fds *[]int) (int, error) {
	var n, oobn int
	var failed error
	err := c.raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, failed = unix.Recvmsg(int(fd), b, control, unix.MSG_CMSG_CLOEXEC)
		return failed != unix.EAGAIN && failed != unix.EINTR
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(control[:oobn])
		if err != nil {
			return 0, err
		}
		for i := range messages {
			got, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return 0, err
			}
			*fds = append(*fds, got...)
		}
	}
	if n == 0 {
		return 0, errClosed
	}
	return n, nil
}

var errClosed = errors.New("connection closed by peer")

// Closed tells whether err is the orderly end of a connection.
func Closed(err error) bool { return errors.Is(err, errClosed) || errors.Is(err, unix.ECONNRESET) }

func (c *Conn) fill(b []byte) (int, error) {
	read := 0
	for read < len(b) {
		var stray []int
		n, err := c.receive(b[read:], nil, &stray)
		if err != nil {
			return read, err
		}
		read += n
	}
	return read, nil
}

// backlog is how many callers may wait for a monitor that is slow: one more is sent away. The kernel takes less where its own limit is less.
const backlog = 4096

// Listen makes the socket at path, mode 0600, and returns it listening. A path longer than a socket address may be is
// reached through a descriptor of its folder.
func Listen(path string) (int, error) {
	fd, err := socket()
	if err != nil {
		return -1, err
	}
	err = withAddress(path, func(address *unix.SockaddrUnix) error {
		if err := unix.Bind(fd, address); err != nil {
			return err
		}
		// Nobody can connect before listen, so there is no moment at which the mode is wider.
		if err := unix.Chmod(address.Name, 0o600); err != nil {
			return err
		}
		return unix.Listen(fd, backlog)
	})
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on %s: %w", path, err)
	}
	return fd, nil
}

// Connect connects to the socket at path.
func Connect(path string) (*Conn, error) {
	fd, err := socket()
	if err != nil {
		return nil, err
	}
	err = withAddress(path, func(address *unix.SockaddrUnix) error { return unix.Connect(fd, address) })
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return NewConn(fd)
}

func socket() (int, error) {
	return unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
}

func withAddress(path string, use func(*unix.SockaddrUnix) error) error {
	const longest = 107
	if len(path) <= longest {
		return use(&unix.SockaddrUnix{Name: path})
	}
	slash := len(path) - 1
	for slash > 0 && path[slash] != '/' {
		slash--
	}
	dir, err := unix.Open(path[:slash], unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	return use(&unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d%s", dir, path[slash:])})
}
