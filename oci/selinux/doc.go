// Package selinux finds out what SELinux is to containers on this host, and labels files for them.
//
// # Terms
//
// A label is user:role:type:level. Processes and files of a pod have the same level, with two categories that no other pod has: that keeps pods
// from each other's files. What labels a container has is package spec's to say.
//
// # Files
//
//	/sys/fs/selinux                                   mounted where SELinux is enabled
//	/etc/selinux/config                               names the policy
//	/etc/selinux/POLICY/contexts/lxc_contexts         the policy's labels for containers
//
// # Concurrency
//
// All functions may be called at once.
//
// # Errors
//
// ErrNotAllowed: a path that the host itself lives in is not relabelled. File systems that keep no labels are left alone.
package selinux
