package systemdtest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// Names of the interfaces and of the object that are served.
const (
	busInterface     = "org.freedesktop.DBus"
	managerInterface = "org.freedesktop.systemd1.Manager"
	propertyGetter   = "org.freedesktop.DBus.Properties"
	managerPath      = dbus.ObjectPath("/org/freedesktop/systemd1")
	unitFolder       = "/org/freedesktop/systemd1/unit"
)

// Manager is a systemd.
type Manager struct {
	Socket string

	mount    string // of the unified hierarchy
	listener net.Listener
	serving  sync.WaitGroup
	ending   chan struct{}

	mu    sync.Mutex
	units map[string]*unit
	conns []*dbus.Conn
	jobs  uint32
	mute  bool          // no job's end is told
	hung  chan struct{} // no call is answered before it is closed; nil: all are
	held  int           // calls that are not answered
}

// Start starts one, which ends with the test.
func Start(t testing.TB) *Manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus") // an address holds no long path
	if err != nil {
		t.Fatal(err)
	}
	m := &Manager{Socket: filepath.Join(dir, "bus"), units: map[string]*unit{}, ending: make(chan struct{})}
	m.mount, err = findUnified()
	if err == nil {
		m.listener, err = net.Listen("unix", m.Socket)
	}
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	m.serving.Go(m.acceptAll)
	m.serving.Go(func() {
		for !m.over() {
			m.trim()
			pause()
		}
	})
	t.Cleanup(func() {
		close(m.ending)
		m.listener.Close()
		m.disconnect()
		m.serving.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return m
}

// Address is what DBUS_SYSTEM_BUS_ADDRESS says.
func (m *Manager) Address() string { return "unix:path=" + m.Socket }

func pause() { time.Sleep(5 * time.Millisecond) }

func (m *Manager) over() bool {
	select {
	case <-m.ending:
		return true
	default:
		return false
	}
}

func (m *Manager) acceptAll() {
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.serving.Go(func() {
			ready := make(chan struct{})
			defer close(ready)
			served, err := accept(conn, ready)
			if err == nil {
				err = m.export(served)
			}
			if err != nil {
				conn.Close()
			}
		})
	}
}

func (m *Manager) export(conn *dbus.Conn) error {
	for path, object := range map[string]any{busInterface: bus{}, managerInterface: calls{m}} {
		at := managerPath
		if path == busInterface {
			at = "/org/freedesktop/DBus"
		}
		if err := conn.Export(object, at, path); err != nil {
			return err
		}
	}
	if err := errors.Join(conn.Export(properties{m}, managerPath, propertyGetter), conn.ExportSubtree(properties{m}, unitFolder, propertyGetter)); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.over() {
		return conn.Close()
	}
	m.conns = append(m.conns, conn)
	return nil
}

// disconnect ends all connections.
func (m *Manager) disconnect() {
	m.mu.Lock()
	conns := m.conns
	m.conns = nil
	m.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}

// Reexecute does what a re-execution does to its clients: all are let go.
func (m *Manager) Reexecute() { m.disconnect() }

// Mute keeps the ends of jobs to itself from now on, as of those that were under way over a re-execution.
func (m *Manager) Mute() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mute = true
}

// Hang answers no call until Resume.
func (m *Manager) Hang() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hung = make(chan struct{})
}

// Resume ends Hang.
func (m *Manager) Resume() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.hung)
	m.hung = nil
}

// Held is how many calls have not been answered for Hang.
func (m *Manager) Held() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.held
}

// wait waits until calls are answered.
func (m *Manager) wait() {
	m.mu.Lock()
	hung := m.hung
	if hung != nil {
		m.held++
	}
	m.mu.Unlock()
	if hung != nil {
		select {
		case <-hung:
		case <-m.ending:
		}
	}
}

// Stop ends a unit as an operator does.
func (m *Manager) Stop(name string) { m.stop(name) }

// Units lists the names of the units that are there, which have this suffix.
func (m *Manager) Units(suffix string) (names []string) {
	m.trim()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.units {
		if strings.HasSuffix(name, suffix) {
			names = append(names, name)
		}
	}
	return names
}

// Property is what a scope was started with, as fmt prints it.
func (m *Manager) Property(unit, name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.units[unit]; u != nil {
		return fmt.Sprint(u.properties[name])
	}
	return ""
}

// job tells everybody that a job has ended, a moment later.
func (m *Manager) job(unit, result string) dbus.ObjectPath {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.jobs++
	id, mute := m.jobs, m.mute
	path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", id))
	m.serving.Go(func() {
		pause()
		m.mu.Lock()
		conns := m.conns
		m.mu.Unlock()
		for _, c := range conns {
			if !mute {
				c.Emit(managerPath, managerInterface+".JobRemoved", id, path, unit, result)
			}
		}
	})
	return path
}
