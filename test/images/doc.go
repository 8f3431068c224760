// Package images makes the layers of test images from programs of this machine, without a container tool: a shell from
// Debian's busybox-static, the tests' own probe, and files.
//
// Everything is deterministic: the same programs give the same digests.
package images
