// Package streamingtest has a streaming.Runtime for tests, and the suite that every one must pass.
//
// The suite says what package streaming relies on. It needs a container with a shell and the usual tools, and a pod that reaches the
// loopback that the test listens on: the fake's container is this host, and a pod with the host's network is such a pod.
package streamingtest
