// Package cnitest helps to test what uses networks: a Fake in memory, a plugin that does what a script says, namespaces to attach,
// and the suite that every cni.Network must pass.
//
// It is for tests only. What it makes on the host is gone when the test ends.
package cnitest
