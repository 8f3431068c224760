// Package kubelet tests berth under the real kubelet, without an API server: pods are files in a folder, the kubelet is a process of the
// test's own, and what it does and sees is asked of its HTTPS API.
//
//	make test-kubelet
//
// # The kubelet
//
// Build compiles k8s.io/kubernetes/cmd/kubelet at Version from a module that it writes into a temporary folder, and keeps the program in
// the user's cache folder (XDG_CACHE_HOME, ~/.cache) below berth-kubelet; nothing of it is in this repository.
//
// # The jail
//
// The kubelet writes kernel parameters and paths that no option moves. So it runs in a mount namespace in which /var/log, /var/lib and those
// parameters are its own; Enter makes that, and must be the first thing that the test's main function calls. Only the kubelet's root
// folder is shared with the host: what it mounts there for pods (memory-backed volumes, subPath) is seen by berth. Its cgroups are below
// one of the test's own in each hierarchy.
//
// # Checks
//
// A scenario is a pod with what must become of it. All run at once, on one kubelet and one berthd; then berthd is killed ten times under
// them; then their files are removed, and with them every trace on the host.
package kubelet
