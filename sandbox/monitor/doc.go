// Package monitor starts the monitors of pods and speaks to them.
//
// What it is. A monitor is one process a pod, berth-monitor: it holds the pod's namespaces, starts the pod's containers
// through the native engine or another runtime's command line, writes their logs, and keeps their exit codes. It outlives the daemon. Spawner starts
// monitors from a sealed copy of the binary, so that neither a container nor an upgrade changes one that runs; Client
// speaks the protocol of package wire.
//
// A pod's user namespace owns its net, ipc and uts namespaces. A child of the Spawner's makes all four and ends; the monitor starts in
// three of them and holds the fourth by a descriptor.
//
// Files. STATE/pods/SANDBOX/monitor.sock is the socket, made by Spawn before the process. RecordDir/CONTAINER/exit is
// written by the monitor only; ReadExit reads it.
//
// Concurrency. A Spawner and a Client may be used by many goroutines. Each call is one connection.
//
// Errors. What the engine says comes back as *engine.Error inside the error; ErrNotFound and ErrExited name containers. A
// call whose context ends closes its connection, and the monitor ends what the call began.
package monitor
