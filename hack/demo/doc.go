// Command demo shows berth's main job on this machine, a line a step with the time that it took:
//
//	make demo
//
// It starts berthd on its defaults (/var/lib/berth, /run/berth), makes an image of two layers around a small web server, serves it from
// a registry on loopback, pulls it, runs a pod of two containers with a host port, fetches the page by the pod's address and by the
// host port, runs a command in it, shows its log, kills berthd while the page is served on, starts berthd again, removes
// everything, and checks that nothing is left. Then it measures pods beside the kernel's floor.
//
// It needs root, and refuses to start when a berthd serves the default socket.
package main
