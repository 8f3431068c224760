// Package cdi gives containers the devices that their requests name by the Container Device Interface.
//
// # What it is
//
// A device's name, vendor/class=name, is looked up in the CDI specifications of the node, which say what a container needs to use it:
// environment, device nodes, mounts, hooks, groups. All of that goes into the container's specification.
//
// # Files
//
// The specification folders, /etc/cdi and /var/run/cdi by default; a later one wins. They are read anew for each container that names a device,
// and not at all for others: nothing watches them.
//
// # Concurrency
//
// Adjust may be called at any time.
//
// # Errors
//
// *spec.InvalidError for a name that is none, or that no specification has; it says which specifications could not be read.
package cdi
