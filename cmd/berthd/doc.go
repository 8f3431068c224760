// Command berthd is the daemon: it serves the Kubernetes CRI on a unix socket.
//
// It reads its flags and its configuration, takes the locks of its two folders, makes the socket, opens images, network
// and sandboxes, and serves. It may be killed at any moment: pods run on in their monitors, and the next berthd picks them up.
//
//	berthd [--root DIR] [--state DIR] [--socket PATH] [--config FILE] [--v N] [--version]
//	berthd config default | check [FILE] | manual
//
// Several can run on one host, each with folders, a socket and a bridge of its own.
//
// # Files
//
//	/etc/berth/config.toml   the configuration, read when it is there; every key has a default, see keys.go
//	/etc/berth/config.toml.d drop-ins, *.toml, in the order of their names
//	/etc/berth/certs.d       registries' mirrors and certificates, HOST/hosts.toml
//	/etc/cni/net.d           CNI configurations; with none of them the built-in bridge serves
//	/var/lib/berth           --root: images, records, writable layers, addresses; survives a reboot
//	/var/lib/berth/lock      held while a berthd serves this root
//	/run/berth               --state: sockets and pins
//	/run/berth/lock          held while a berthd serves this state
//	/run/berth/berth.sock    --socket: the CRI
//
// # Signals
//
// SIGTERM and SIGINT end the daemon and leave pods alone. SIGHUP takes a changed configuration over, all or nothing, see reloader; it never ends the
// daemon, in whatever phase of its life.
//
// # Environment
//
// With NOTIFY_SOCKET set (systemd, Type=notify) it sends READY=1 once calls are answered, RELOADING=1 and READY=1 around a reload, and
// STOPPING=1.
//
// # Exit status
//
// 0 after a signal, 1 when it could not start or serve, 2 for a wrong flag.
package main
