// Package adjust has the stage between a container's specification and the engine: what others than the request say about a container.
//
// # What it is
//
// Package spec makes a specification from request, image and host alone. Then adjusters change it, in order: the devices that the request names
// (package cdi), plugins of the node (package nri), hooks of the node (package hooks), classes (package classes). What comes out is held
// against what the engine has (runtime.Check), recorded, and handed to the engine or to another runtime. Nothing of the container exists yet: an
// adjuster that fails refuses the container.
//
// # Terms
//
// An adjuster changes the specification of one Container. It is trusted as the operator is; what it passes on from a request is not.
//
// # Concurrency
//
// Adjusters are called for many containers at once.
//
// # Errors
//
// *spec.InvalidError for a value of the request. Everything else is about the node.
package adjust
