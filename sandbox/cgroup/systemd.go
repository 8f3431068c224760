package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// unitTimeout bounds one start or stop of a unit, with all its repetitions.
const unitTimeout = 15 * time.Second

// jobPoll is how often a unit is looked at besides the signal that tells of its job's end: systemd sends none of a job that it forgot over a re-execution.
const jobPoll = 250 * time.Millisecond

// Connect makes a connection to systemd, which ends with ctx.
type Connect func(ctx context.Context) (*systemd.Conn, error)

// busTimeout bounds how long the system's bus may take to answer.
const busTimeout = 2 * time.Second

// SystemBus connects by the system's bus, and directly to systemd where there is no bus, or one that hangs.
func SystemBus(ctx context.Context) (*systemd.Conn, error) {
	bus, end := context.WithCancel(ctx)
	patience := time.AfterFunc(busTimeout, end)
	conn, err := systemd.NewSystemConnectionContext(bus)
	if err == nil && patience.Stop() {
		return conn, nil
	}
	end()
	conn, direct := systemd.NewSystemdConnectionContext(ctx)
	if direct == nil {
		return conn, nil
	}
	return nil, errors.Join(err, direct)
}

// CheckSystemd is nil when systemd is the init of this host (sd_booted(3)).
func CheckSystemd() error {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return fmt.Errorf("systemd is not the init: %w", err)
	}
	return nil
}

// manager speaks to systemd. A connection that ends, with the bus or with a re-execution, is made anew.
type manager struct {
	connect Connect
	life    context.Context //nolint:containedctx // of the connections
	end     context.CancelFunc

	mu   sync.Mutex
	conn *systemd.Conn
}

func newManager(connect Connect) *manager {
	m := &manager{connect: connect}
	m.life, m.end = context.WithCancel(context.Background())
	return m
}

func (m *manager) close() {
	m.end()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop()
}

// drop forgets the connection. Preconditions: mu held.
func (m *manager) drop() {
	if m.conn != nil {
		m.conn.Close()
		m.conn = nil
	}
}

// connected is the connection, made if need be.
func (m *manager) connected(ctx context.Context) (*systemd.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil && m.conn.Connected() {
		return m.conn, nil
	}
	m.drop()
	life, end := context.WithCancel(m.life)
	stop := context.AfterFunc(ctx, end) // an init that hangs does not answer
	conn, err := m.connect(life)
	if err != nil || !stop() {
		end()
		return nil, errors.Join(err, ctx.Err())
	}
	m.conn = conn
	return conn, nil
}

// call speaks to systemd, again and again until ctx ends when nobody is there to answer for the moment.
func (m *manager) call(ctx context.Context, do func(*systemd.Conn) error) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		conn, err := m.connected(ctx)
		if err == nil {
			err = do(conn)
		}
		if err == nil || !absent(err) && ctx.Err() == nil { // who has not answered in time may do so over another connection
			return err
		}
		m.mu.Lock()
		if m.conn == conn {
			m.drop()
		}
		m.mu.Unlock()
		if sleep(ctx, pause) != nil {
			return fmt.Errorf("speak to systemd: %w", err)
		}
	}
}

// absent tells errors that pass: systemd is executing itself anew, or its bus is started again, which another call may have noticed first and let the
// connection go that both share.
func absent(err error) bool {
	for _, gone := range []error{dbus.ErrClosed, net.ErrClosed, io.EOF, io.ErrUnexpectedEOF, unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE, unix.ENOENT} {
		if errors.Is(err, gone) {
			return true
		}
	}
	switch errorName(err) {
	case "org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected", "org.freedesktop.DBus.Error.ServiceUnknown",
		"org.freedesktop.DBus.Error.NameHasNoOwner", "org.freedesktop.DBus.Error.NoServer", "org.freedesktop.DBus.Error.TimedOut":
		return true
	}
	return false
}

// errorName is what systemd calls an error.
func errorName(err error) string {
	var e dbus.Error
	var p *dbus.Error
	switch {
	case errors.As(err, &e):
		return e.Name
	case errors.As(err, &p):
		return p.Name
	}
	return ""
}

// States of a unit that matter here (org.freedesktop.systemd1(5), ActiveState); whatever else there is passes.
const (
	unitActive = "active"
	unitFailed = "failed"
	unitGone   = "inactive"
)

// state is a unit's. One that systemd does not know is inactive.
func (m *manager) state(ctx context.Context, unit string) (state string, err error) {
	err = m.call(ctx, func(c *systemd.Conn) error {
		p, err := c.GetUnitPropertyContext(ctx, unit, "ActiveState")
		if err == nil {
			state, _ = p.Value.Value().(string)
		}
		return err
	})
	if errorName(err) == "org.freedesktop.systemd1.NoSuchUnit" || errorName(err) == "org.freedesktop.DBus.Error.UnknownObject" {
		return unitGone, nil
	}
	if err != nil {
		return "", fmt.Errorf("ask for the state of unit %s: %w", unit, err)
	}
	return state, nil
}

// scope is what a scope is started with.
type scope struct {
	name, slice, about string
	weight             uint64 // of the processors; 0: the default
	signal             int32  // what ends it when it is told to stop; 0: SIGTERM
	pid                int    // its first process
}

// properties hand all of the cgroup below the scope over (Delegate), which leaves nothing in it for systemd to write, and set no limit: those of a pod are
// the slice's above, which the kubelet keeps. systemd's own bound of tasks for every unit is taken away.
func (s *scope) properties() []systemd.Property {
	property := func(name string, value any) systemd.Property {
		return systemd.Property{Name: name, Value: dbus.MakeVariant(value)}
	}
	all := []systemd.Property{
		property("Description", s.about), property("Slice", s.slice), property("PIDs", []uint32{uint32(s.pid)}), property("Delegate", true),
		property("DefaultDependencies", false), property("CollectMode", "inactive-or-failed"), property("TasksMax", uint64(math.MaxUint64)),
	}
	for _, name := range []string{"CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"} {
		all = append(all, property(name, true))
	}
	if s.weight != 0 {
		all = append(all, property("CPUWeight", s.weight))
	}
	if s.signal != 0 {
		all = append(all, property("KillSignal", s.signal))
	}
	return all
}

// start starts a scope and returns when it is there. ran tells that one of that name had been there already, with processes of its own.
func (m *manager) start(ctx context.Context, s *scope) (ran bool, err error) {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		done := make(chan string, 1)
		err = m.call(ctx, func(c *systemd.Conn) error {
			_, err := c.StartTransientUnitContext(ctx, s.name, "fail", s.properties(), done)
			return err
		})
		switch name := errorName(err); {
		case err == nil:
			err = m.await(ctx, s.name, unitActive, done)
			return false, err
		case name != "org.freedesktop.systemd1.UnitExists" && name != "org.freedesktop.systemd1.TransactionIsDestructive":
			return false, fmt.Errorf("start unit %s: %w", s.name, err)
		}
		// It is still ending, or has failed, or a call whose answer was lost has started it.
		state, serr := m.state(ctx, s.name)
		if serr != nil {
			return false, serr
		}
		if state == unitActive {
			return true, nil
		}
		if state == unitFailed {
			if err := m.reset(ctx, s.name); err != nil {
				return false, err
			}
		}
		if sleep(ctx, pause) != nil {
			return false, fmt.Errorf("start unit %s, which is %s: %w", s.name, state, err)
		}
	}
}

// reset has systemd forget that a unit failed.
func (m *manager) reset(ctx context.Context, unit string) error {
	err := m.call(ctx, func(c *systemd.Conn) error { return c.ResetFailedUnitContext(ctx, unit) })
	if err != nil && errorName(err) != "org.freedesktop.systemd1.NoSuchUnit" {
		return fmt.Errorf("reset unit %s: %w", unit, err)
	}
	return nil
}

// stop stops a unit and returns when it is not there. What is not there is nil.
func (m *manager) stop(ctx context.Context, unit string) error {
	done := make(chan string, 1)
	err := m.call(ctx, func(c *systemd.Conn) error {
		_, err := c.StopUnitContext(ctx, unit, "replace", done)
		return err
	})
	if name := errorName(err); name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil
	}
	if err != nil {
		return fmt.Errorf("stop unit %s: %w", unit, err)
	}
	return m.await(ctx, unit, unitGone, done)
}

// await waits for the end of a unit's job, by its signal or by the state that it is to bring.
func (m *manager) await(ctx context.Context, unit, want string, done <-chan string) error {
	poll := time.NewTicker(jobPoll)
	defer poll.Stop()
	for {
		select {
		case result := <-done:
			if result != "done" && result != "skipped" {
				return fmt.Errorf("unit %s: its job ended with %q", unit, result)
			}
			return nil
		case <-poll.C:
			if state, err := m.state(ctx, unit); err == nil && (state == want || want == unitGone && state == unitFailed) {
				return nil
			}
		case <-ctx.Done():
			return fmt.Errorf("wait for unit %s: %w", unit, ctx.Err())
		}
	}
}

// expandSlice is the path of a slice's cgroup: its name holds those of the slices above it (systemd.slice(5)).
func expandSlice(name string) string {
	stem, _ := strings.CutSuffix(name, sliceSuffix)
	var path strings.Builder
	for i, c := range stem + "-" {
		if c == '-' {
			path.WriteString("/" + stem[:i] + sliceSuffix)
		}
	}
	return path.String()
}
