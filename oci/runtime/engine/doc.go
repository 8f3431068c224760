// Package engine makes a container's first process, and the processes of an exec, with the kernel alone.
//
// What it is. The caller hands in a Plan (a container, compiled by package runtime from a runtime-spec) or a Process
// (an exec). The engine opens everything that can be opened beforehand as descriptors, writes the rest down as a list of
// system calls, clones, and lets the child run that list until execve. No Go code runs in the child but one
// nosplit loop: no thread counts against the container's pids limit, no heap against its memory limit.
//
// Terms. A program is the list; an operation is one system call with its arguments, some of which are results of
// earlier ones; a step is the sentence that an operation's error is reported with.
//
// User namespaces. A plan with one has the owners of its layers and volumes mapped by mounts, and its /dev made by the caller's
// process. The child joins the namespace before it makes others, and for a pid namespace clones a second time; from then on it
// is root there and nobody on the host. All that root of the host must do is done before: scores, limits, sources, devices.
//
// Concurrency. Start and Exec may be called from many goroutines. The clone itself holds syscall.ForkLock.
//
// Errors. An Error names the step, the object and the errno. After an error no process is left.
//
// Imports. Nothing but x/sys/unix and the standard library's core: this package is the greater part of the monitor,
// of which every pod has one.
package engine
