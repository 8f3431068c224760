// Command berth shows people what berthd runs, and pulls images.
//
//	berth [--socket PATH] COMMAND
//
//	berth status         whether pods can be run, and what is there
//	berth pull IMAGE     pull an image, with a bar for each layer
//	berth images         list images
//	berth pods           list pods
//	berth ps [-a]        list running, or all, containers
//	berth logs CONTAINER print a container's log
//	berth completion     make a shell's completion
//
// It talks to berthd's CRI socket and to nothing else; only logs reads a file, the one that the container's status names. Lists are
// tables for people, or JSON with -o json, whose keys stay what they are.
//
// # Environment
//
// BERTH_SOCKET is the socket when --socket is not given.
//
// # Files
//
//	/run/berth/berth.sock   the socket when neither says otherwise
//
// # Exit status
//
// 0 when it worked, 1 when it did not or, for status, when pods cannot be run, 2 for a wrong command line.
package main
