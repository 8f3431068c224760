// Package wire is the protocol between the daemon and a pod's monitor.
//
// What it is. A stream socket; each call is a connection of its own, so calls do not wait for each other and a call
// ends when its connection does. A message is a header of eight bytes (length of the body, version, verb, number of
// descriptors, little endian), a body of package codec, and descriptors by SCM_RIGHTS. A request has a verb below
// 128; the monitor answers AnswerDone or AnswerFailed. VerbWatch has an answer for every exit, and no end.
//
// Versions. A monitor lives as long as its pod, which is longer than a daemon: the newest daemon speaks to the
// monitors of all supported releases. A monitor that does not know a verb says so by name. A field that an older monitor must
// not miss is not sent to one: package monitor asks for the version first (ErrTooOld).
//
// Files. The socket is STATE/pods/SANDBOX/monitor.sock, mode 0600. Both ends check that the peer is root.
//
// Imports. No package net: this is a part of the monitor, of which every pod has one.
package wire
