package systemdtest

import (
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"
)

// bus is org.freedesktop.DBus, as far as a client needs it to begin.
type bus struct{}

// Hello gives the client a name.
func (bus) Hello() (string, *dbus.Error) { return ":1.1", nil }

// AddMatch takes any rule: every signal goes to everybody.
func (bus) AddMatch(string) *dbus.Error { return nil }

// calls is org.freedesktop.systemd1.Manager.
type calls struct{ m *Manager }

// property is one of a unit's.
type property struct {
	Name  string
	Value dbus.Variant
}

// auxiliary is a unit that comes with another one.
type auxiliary struct {
	Name       string
	Properties []property
}

func failure(name, text string) *dbus.Error {
	return dbus.NewError("org.freedesktop.systemd1."+name, []any{text})
}

// StartTransientUnit starts a scope.
func (c calls) StartTransientUnit(name, _ string, properties []property, _ []auxiliary) (dbus.ObjectPath, *dbus.Error) {
	m := c.m
	m.wait()
	m.trim()
	all := map[string]any{}
	for _, p := range properties {
		all[p.Name] = p.Value.Value()
	}
	m.mu.Lock()
	if m.units[name] != nil {
		m.mu.Unlock()
		return "", failure("UnitExists", "Unit "+name+" was already loaded or has a fragment file.")
	}
	err := m.startScope(name, all)
	m.mu.Unlock()
	if err != nil {
		return "", dbus.MakeFailedError(err)
	}
	return m.job(name, "done"), nil
}

// StopUnit stops a unit behind the call.
func (c calls) StopUnit(name, _ string) (dbus.ObjectPath, *dbus.Error) {
	c.m.wait()
	if !c.m.known(name) {
		return "", failure("NoSuchUnit", "Unit "+name+" not loaded.")
	}
	c.m.stop(name)
	return c.m.job(name, "done"), nil
}

// ResetFailedUnit has nothing to do: no unit fails here.
func (c calls) ResetFailedUnit(string) *dbus.Error { return nil }

// properties is org.freedesktop.DBus.Properties of the manager and of all units.
type properties struct{ m *Manager }

// Get answers with the state of the unit that the message's path names.
func (p properties) Get(message dbus.Message, _, name string) (dbus.Variant, *dbus.Error) {
	var path dbus.ObjectPath
	if v, ok := message.Headers[dbus.FieldPath]; ok {
		path, _ = v.Value().(dbus.ObjectPath)
	}
	if name != "ActiveState" {
		return dbus.Variant{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", nil)
	}
	p.m.wait()
	p.m.trim()
	state := "inactive"
	if p.m.known(unescape(strings.TrimPrefix(string(path), unitFolder+"/"))) {
		state = "active"
	}
	return dbus.MakeVariant(state), nil
}

// unescape undoes sd_bus_path_encode(3).
func unescape(name string) string {
	var out strings.Builder
	for i := 0; i < len(name); i++ {
		if name[i] == '_' && i+2 < len(name) {
			if n, err := strconv.ParseUint(name[i+1:i+3], 16, 8); err == nil {
				out.WriteByte(byte(n))
				i += 2
				continue
			}
		}
		out.WriteByte(name[i])
	}
	return out.String()
}
