// Package agent is the inside of a pod's monitor: the process that is the parent of the pod's containers.
//
// What it is. Run sets the pod up (hostname, kernel parameters, the init of a shared pid namespace), then serves
// the verbs of package wire until it is told to shut down. A container's life here is: start, run, exit, forget.
//
// Files. It writes the containers' logs in the CRI's format, and RecordDir/CONTAINER/exit for each exit: the record is
// on disk before anybody is told.
//
// Concurrency. One goroutine a connection, one a stream of a container, one that reaps. Agent.mu guards the tables;
// Agent.births keeps the reaper from children that are not yet in them.
//
// Errors. A request that fails answers with wire.Failure and changes nothing. A log that cannot be written loses lines
// and counts them; it never holds up its container.
//
// Size. Every pod has one of these processes: no package that pulls in net, encoding or reflection belongs here.
package agent
