// Package classes gives containers the block I/O and the cache and memory bandwidth that the classes of their pods stand for.
//
// # Terms
//
// A class is a name that annotations give a container: the container's own annotation, else the pod's for that container, else the pod's for all.
// What a class of block I/O is stands in a file of the operator. A class of service (RDT) is a group of the kernel's, which the operator makes.
//
// # Files
//
// The configured file of block I/O classes, YAML or JSON in the form that other runtimes have, read anew for each container that names a class:
//
//	classes:
//	  slow:
//	  - weight: 80
//	  - devices: [/dev/vd*]
//	    weight: 50
//	    throttleReadBps: 60M
//	    throttleWriteBps: 40M
//	    throttleReadIOPS: 1000
//	    throttleWriteIOPS: 500
//
// And /sys/fs/resctrl/CLASS, the kernel's.
//
// # Concurrency
//
// Adjust may be called at any time.
//
// # Errors
//
// *spec.InvalidError for a class that there is not, and for one of service on a kernel that has none.
package classes
