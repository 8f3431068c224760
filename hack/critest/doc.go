// Command critest runs the CRI's own conformance tests against a fresh berthd, in several random orders:
//
//	go run ./hack/critest [-seeds N] [-focus REGEXP] [-skip REGEXP] [-handler NAME] [-websocket] [-show] [-programs DIR] [SEED...]
//	go run ./hack/critest -collect DIR
//
// The program critest must be on PATH. Images are made here of Debian's packages (images.go) and served from a loopback registry that stands
// in for registry.k8s.io, k8s.gcr.io and gcr.io, so nothing but Debian's archive is asked, and only for packages that are missing.
//
// With -handler, an OCI runtime of that name on PATH makes the containers, such as runc.
//
// After the orders of all specs comes one more round, of the streaming specs over WebSocket; with -websocket every order streams over that.
//
// -collect puts what images are made of into a folder and -programs uses it, for a place where nothing can be downloaded: the guest of hack/uml.
//
// Each order is one run with one printed seed: the same seed gives the same order. After each run everything must be as before. The
// output of a run with a failure is kept, and its path printed.
//
// # Exit status
//
// 0 if every spec passed in every order, 1 if one failed, 2 if critest could not be run.
package main
