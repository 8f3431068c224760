// Package plugin runs CNI plugins for libcni.
//
// A plugin runs in a process group of its own. When its context ends, or Timeout has passed, the whole group is killed; a
// descendant that has left the group and holds the pipes open is not waited for. At most 1 MiB of its standard output counts, and
// of its standard error the last 4 KiB are in the error.
//
// A plugin is looked for by name in folders that nobody but their owner and group may write to.
//
// An Exec may be used from several goroutines.
package plugin
