package cri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrSocketInUse means that somebody answers on the socket's path.
var ErrSocketInUse = errors.New("another process serves this socket")

// dialTimeout bounds how long a socket that was left behind is tried.
const dialTimeout = 500 * time.Millisecond

// Listen makes a unix socket that only root can connect to: it is 0600 from the moment it exists, and every
// connection's credentials are checked (a socket that was passed on, or whose mode somebody changed, is of no use to others).
// A socket that nobody serves is replaced; one that is served is ErrSocketInUse; anything else with that name is an error.
//
// It sets the process's umask for a moment, so it must run before there are goroutines that make files.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	old := unix.Umask(0o177)
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return &rootListener{UnixListener: l.(*net.UnixListener)}, nil
}

// removeStale removes a socket that nobody serves.
func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for an old socket: %w", err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: it exists and is not a socket (%s)", path, st.Mode())
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("listen on %s: %w", path, ErrSocketInUse)
	case !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("listen on %s: %w: %w", path, ErrSocketInUse, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old socket: %w", err)
	}
	return nil
}

// rootListener lets in root and the daemon's own user only.
type rootListener struct{ *net.UnixListener }

// Accept waits for a connection of somebody who may connect; others are closed.
func (l *rootListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if uid, err := peerUID(conn); err == nil && allowed(uid) {
			return conn, nil
		}
		conn.Close()
	}
}

// allowed says whether a process of this user may call.
func allowed(uid uint32) bool { return uid == 0 || int64(uid) == int64(os.Geteuid()) }

// peerUID is the user that connected.
func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, err
	}
	if credErr != nil {
		return 0, credErr
	}
	return cred.Uid, nil
}
