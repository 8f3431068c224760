// Command bench measures berth, and other CRI runtimes beside it, and prints Markdown tables:
//
//	go run ./hack/bench [-pods N] [-execs N] [-pulls N] [-only NAME,...] [-peer NAME=SOCKET]... [-check]
//
// # What is measured
//
// Pod ready, ExecSync and pod gone, one at a time, beside the kernel's own floor (package floor): all sides take turns, pod by pod and
// exec by exec, so that all see the same machine. Pods a second with several callers. ListContainerStats. The memory (PSS) of the
// runtime's processes, idle and with 50 pods. Pull and unpack of an image of nine layers of this machine's files, from a registry on
// loopback, beside gzip alone. For berth the monitors' memory when they are new and after each has logged 50 MiB and
// served 100 execs, and a crowd of 200 pods that comes, is listed and goes, after which the host must be as before.
//
// # Runtimes
//
// berth is built and started with folders, a socket and a bridge of its own. containerd is too, if it, runc and the CNI plugins are
// installed. CRI-O is measured if it answers at its default socket; so is what -peer names. A runtime that was not started here must pull
// from 127.0.0.1 without TLS; nothing of its own is touched but the images bench/*. -only limits the measurement to some names.
//
// # Check
//
// With -check only berth is measured, and only what has a budget in CI; the exit status is 1 when one is exceeded twice in a row.
//
// # Needs
//
// Root, gcc for the floor, busybox, and 4 GiB of disk below /var/tmp for the pulls.
package main
