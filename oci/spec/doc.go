// Package spec turns what a container is asked to be into what it is: CRI configuration, image configuration and facts about
// the host go in, a runtime specification comes out.
//
// It is pure: it opens no file, reads no clock and knows no process, so that the same input gives the same bytes and golden
// files tell the truth. What it needs to know of the host comes in as values; package host, below it, gathers them.
//
// # Terms
//
// The request is the kubelet's: policy, to be obeyed or refused with the rule that it breaks. The image is hostile: its
// user, environment, working directory, volumes, and its passwd and group files. Image has a type of its own, and no byte
// of it reaches a mount's source, a cgroup path, a hook or an annotation; a fuzz test holds that.
//
// # What the specification leaves out
//
// The namespaces net, ipc and uts: the monitor that runs the container is in them. The hostname and sysctls: they are the
// pod's. Annotations: none of a pod's or an image's may become a runtime's special key (CVE-2024-3154). Hooks. And the
// devices that runtime-spec config-linux.md#default-devices prescribes: the engine makes those for every container.
//
// # Rules
//
// Where the CRI is silent, containerd's behaviour is the rule, with these exceptions. A request that names no masked or
// read-only paths gets the defaults, unless it is privileged or the pod has a user namespace. run_as_user beside run_as_username is refused. IDs are
// decimal digits up to 2^31-1, and a number is never looked up as a name. A namespace mode that does not fit the pod's
// gives way to the pod's. A passwd or group line with an ID that is no number counts as not there.
//
// What the host cannot give degrades by rule, and a Note says so: a capability that the daemon lacks is withheld, an
// oom_score_adj below the daemon's own and a resource limit above the hard one are clamped, a limit whose controller is
// missing is dropped.
//
// A pod with a user namespace shares no pid and no ipc namespace with the host, and mounts nothing there; with the host's network it sees the
// host's sysfs. All capabilities can be had in it; IDs
// that it does not map are refused.
//
// # Errors
//
// *InvalidError names the field, its value and the rule. It never holds the value of an environment variable.
//
// # Concurrency
//
// All functions may be called at once. Results share no memory with the input (CVE-2021-21334).
package spec
