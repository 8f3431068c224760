// Package registrytest is a container registry for tests and demonstrations: images are made in memory, pushed with one
// call, and served on 127.0.0.1:0 by the distribution-spec's pull half. It can be scripted to misbehave.
//
//	reg, err := registrytest.Start(registrytest.Options{})
//	defer reg.Close()
//	pushed, err := reg.Push("demo/web", "1", registrytest.Image{
//		Layers: []registrytest.Layer{{Files: []registrytest.File{{Name: "bin/web", Mode: 0o755, Body: web}}}},
//		Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/web"}},
//	})
//	// pushed.Ref is 127.0.0.1:PORT/demo/web:1, pushed.ImageID what PullImage must return.
//
// # Faults
//
// A Fault names the requests that it applies to (a method and a part of the path) and what goes wrong with them: a
// status, a redirect, a reset or a stall at byte N, a flipped byte, a lie about the length. Faults can be limited to
// the next N requests, and are tried in the order in which they were added.
//
// # Concurrency
//
// All methods of Registry can be called at any time, also while it serves.
//
// # When not to use it
//
// It keeps everything in memory and has no push over HTTP.
package registrytest
