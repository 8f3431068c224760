// Package snapshottest is what every snapshotter must pass, and the tools to say what a stack of layers ought to be.
//
// Run is the conformance suite. Unpack is the reference: a sequential unpack by plain paths, written for being read, not
// for hostile layers and not for speed; its rules are those in package layer's documentation. Tree describes a directory tree
// in lines that two equal trees have in common. Layer writes layers.
//
// Root is needed for all but Layer.
package snapshottest
