// Package cgroup makes, limits, kills and removes the control groups of containers.
//
// # Terms
//
// A hierarchy is one mounted cgroup tree: a host has one per version 1 controller (or pair of them), or a single version 2
// tree, or, when hybrid, both. The unified hierarchy is the version 2 one. A path names the same cgroup in every
// hierarchy, absolute and clean, as the CRI's cgroup_parent does: /kubepods/pod7/4f2a. A leaf is the cgroup of one
// container; what stands above it are its ancestors. The own tree of a daemon is /berth, or /berth-INST.
//
// A Driver makes all of them by their files (cgroupfs), or has systemd make, for each pod, a scope in the slice that is its parent: there the leaves
// are made by files as well, because the scope is delegated. A holder is a process of a scope's that does nothing.
//
// # Files
//
//	/sys/fs/cgroup/...              the mounted hierarchies, as /proc/self/mountinfo names them
//	PATH in every hierarchy         one container; own tree: /berth[-INST]/SANDBOX/CONTAINER
//	PATH/exec-ID, unified only      one exec, without controllers of its own, so that cgroup.kill ends all that it started
//	                                (every hierarchy when an OCI runtime that is a program of its own joins it, or there is no unified one)
//	/berth[-INST]/monitors          the monitors, with a small cpu weight and no limit
//	/berth[-INST]/runtime-NAME      unified only: the processes of such a program while it works on a container or an exec
//
// With systemd /berth[-INST] is berth[-INST].slice, the last two are in its scope berth-[INST-]monitors.scope, and a pod's is
//
//	SLICE/berth-[INST-]SANDBOX.scope           SLICE: the own tree, or the path of the slice that a pod names
//	SLICE/berth-[INST-]SANDBOX.scope/hold      its holder
//
// # Systemd
//
// What systemd keeps of a scope is Delegate and that it has no limits: nothing that it writes, at a reload, at a re-execution or for another unit, is written
// here, and nothing below the scope is written by systemd. The pod's limits are the slice's, which the kubelet sets. Systemd ends a scope when its last
// process ends, and takes all below it away, so a holder keeps it while the pod is there: not the monitor, a process with threads, which must not count against
// the limits above. Monitors have a scope of their own. Systemd is asked to start a scope and told to stop it; nothing else depends on its being there: what
// hangs, or is restarted with its bus, holds up no container that is there, and a scope whose holder is killed ends by itself.
//
// The files are written here, not by a library: creating and limiting one container over ten hierarchies takes 0.36 ms this way, and
// 0.55 ms through containerd/cgroups for the nine of version 1 (BenchmarkCreate, BenchmarkLibrary), which leaves out the unified
// leaf and the inherited cpuset. Its compiler of version 2 device rules is not used either: see deviceProgram.
//
// # Ownership
//
// A cgroup that berth did not make is never removed or limited. Two things in a foreign ancestor are written because nothing can
// run below it otherwise, both as runc does: a version 1 cpuset without cpus or mems takes its parent's, and a version 2 ancestor
// has the missing controllers enabled in cgroup.subtree_control, the root too (hugetlb on a hybrid host). That stays: nobody can tell who else has come
// to use them. Ancestors that are missing are listed by Missing, recorded by the
// caller, made by Create, and given back with RemoveEmpty, which ends scopes, and slices that are empty, too.
//
// # Concurrency
//
// A Driver may be used from several goroutines; calls on one path must not overlap, except for Kill, Wait and readers.
// Create tolerates that RemoveEmpty takes an ancestor away meanwhile.
//
// # Errors
//
// ErrInvalid: the path cannot name a cgroup. ErrFull: no more cgroups may be made there. ErrNotSupported: the kernel or the mounted hierarchies lack what was asked for. Removing,
// killing and waiting for what is not there is nil.
package cgroup
