// Package floor measures what the kernel alone costs for a pod of one container, for an exec and for the pod's end.
//
// A pod is: network, IPC and UTS namespaces, pinned; a veth pair on a bridge with an address and a route; a cgroup folder in each
// hierarchy; an overlay mount; a process in new PID and mount namespaces that makes a default container's mounts and devices, masks
// what is to be masked, changes its root and calls execve. An exec is: joining cgroups and namespaces, dropping
// capabilities, execve, and waiting for the end. The end is: killing, deleting the link, unmounting, removing folders.
//
// There is no daemon, no record and no image. Nothing can be faster on the same machine, so berth's latencies are quoted as multiples
// of these, measured in the same run.
//
// # Needs
//
// Root, and gcc for the process that stands for the container (child.c): a program without a runtime is a part of the floor.
package floor
