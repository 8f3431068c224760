// Package systemdtest is a systemd for tests on hosts that have another init.
//
// # What it is
//
// A Manager answers on a socket of its own what package cgroup asks org.freedesktop.systemd1(5): it starts and stops scopes and slices, which are
// cgroups of the unified hierarchy and the processes in them, tells the ends of jobs by signals, and ends a scope that has become empty. It speaks as
// the bus does, so that DBUS_SYSTEM_BUS_ADDRESS leads a whole berthd to it.
//
// It can also do what systemd does rarely: go away in the midst of jobs and come back (Reexecute), and end a scope that somebody uses (Stop).
//
// It is not systemd: no limit is set, and properties are only kept.
package systemdtest
