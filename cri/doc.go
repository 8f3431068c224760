// Package cri serves the Kubernetes Container Runtime Interface: RuntimeService and ImageService of cri-api v1 over a unix socket.
//
// It is the only place that knows gRPC. A call is validated here, given to sandbox or imageservice (which know nothing of each
// other: composing an image with a sandbox is this package's work), and the answer is put into the CRI's messages.
//
// Terms are those of api.proto: sandbox, container, image, handler. A reference is what a user writes for an image; an image ID
// is the digest of the image's configuration, and it is the image_ref and image_id of every answer.
//
// # Calls
//
// One interceptor stands before every call: it names the call's objects in the contextual logger, logs the outcome with code
// and duration (never the request: an environment is a secret), turns a panic into Internal, and turns errors into codes
// by the one table in errors.go. What is not built answers Unimplemented with the sentence in unimplemented.go.
// The answer of ExecSync may be 16 MiB, most of it on disk; it is read from there as gRPC sends it (execanswer.go).
//
// Only root may call: the socket is 0600 and each connection's SO_PEERCRED is looked at as well. Messages are at most 16 MiB.
//
// # Concurrency
//
// A Server is safe for any number of concurrent calls; it keeps no state of its own. Lists and statuses are answered from
// the memory of sandbox and imageservice.
//
// # Files
//
// Listen makes the socket that it is given, and nothing else.
//
// # Errors
//
// The message of a status is the chain of the error. A registry that cannot be reached is code Unknown and begins with
// RegistryUnavailable: the kubelet looks for that string and, in cri-client's PullImage, only at that code.
package cri
