package hostport

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	mdnetlink "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Probe asks the kernel whether it could hold the table, and leaves nothing behind. ErrNotSupported when it could not; any other error
// leaves that open, os.ErrDeadlineExceeded after 2 s.
func (t *Table) Probe() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.connect(probeTimeout)
	if err != nil {
		return err
	}
	cfg := t.cfg
	cfg.Table += "-probe"
	p := New(cfg)
	p.write(c)
	c.DelTable(p.table()) // in the same transaction: the table never shows
	return t.flushTable()
}

// there reports whether the kernel has the table. Preconditions: t.mu held.
func (t *Table) there() (bool, error) {
	c, err := t.connect(answerTimeout)
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.disconnect()
		return false, fmt.Errorf("list nftables tables: %w", supported(err))
	}
	return slices.ContainsFunc(tables, func(x *nftables.Table) bool { return x.Name == t.cfg.Table }), nil
}

// flushTable sends a transaction that writes the whole table. Preconditions: t.mu held.
func (t *Table) flushTable() error {
	all := t.flush()
	if all == nil {
		return nil
	}
	err := supported(first(all))
	if (errors.Is(all, unix.ENOENT) || errors.Is(all, unix.EINVAL)) && !errors.Is(err, ErrNotSupported) {
		// No chain type "nat", or no such expression.
		err = fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return fmt.Errorf("write nftables table %s: %w", t.cfg.Table, err)
}

// first is the error of the first message of a transaction that fails. The kernel answers each one, and those that follow
// miss what that one was to make.
func first(err error) error {
	var joined interface{ Unwrap() []error }
	for errors.As(err, &joined) && len(joined.Unwrap()) > 0 {
		err = joined.Unwrap()[0]
	}
	return err
}

// connect returns the connection. It is kept: when one is closed, the kernel waits for a grace period if anything was deleted lately.
// Preconditions: t.mu held.
func (t *Table) connect(timeout time.Duration) (*nftables.Conn, error) {
	if t.conn == nil {
		var socket *mdnetlink.Conn
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *mdnetlink.Conn) error {
			socket = c
			return nil
		}))
		if err != nil {
			return nil, fmt.Errorf("open nftables socket: %w", supported(err))
		}
		t.conn, t.socket = conn, socket
	}
	// A kernel without nftables answers the first message of a transaction only; the wait for the others ends here.
	if err := t.socket.SetDeadline(time.Now().Add(timeout)); err != nil {
		t.disconnect()
		return nil, fmt.Errorf("set deadline of nftables socket: %w", err)
	}
	return t.conn, nil
}

// disconnect forgets the connection, and with it answers that have not been read. Preconditions: t.mu held.
func (t *Table) disconnect() {
	if t.conn != nil {
		_ = t.conn.CloseLasting() // nothing is lost with it
		t.conn, t.socket = nil, nil
	}
}

// flush sends what is queued. After an error the next exchange begins on a new connection. Preconditions: t.mu held.
func (t *Table) flush() error {
	err := t.conn.Flush()
	if err != nil {
		t.disconnect()
	}
	return err
}

// Close closes the connection to the kernel. The table stays.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disconnect()
}

// supported marks the errors that only a kernel without the feature gives.
func supported(err error) error {
	for _, errno := range []unix.Errno{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, errno) {
			return fmt.Errorf("%w: %w", ErrNotSupported, err)
		}
	}
	return err
}
