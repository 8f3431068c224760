// Command berth-monitor is started by berthd, once a pod; see package agent. It is of no use on its own.
package main

import (
	"fmt"
	"os"

	"github.com/berthd/berth/sandbox/monitor/agent"
)

// socket is the descriptor on which berthd passes the listening socket.
const socket = 3

const usage = `berth-monitor --pod ID

Holds the namespaces of one pod, starts its containers, writes their logs and keeps their exit codes.
berthd starts it, with the pod's set-up on standard input and the listening socket as descriptor 3.
See berth-monitor(8).
`

func main() {
	if len(os.Args) == 2 && (os.Args[1] == "--help" || os.Args[1] == "-h") {
		fmt.Print(usage)
		return
	}
	if len(os.Args) != 3 || os.Args[1] != "--pod" {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := agent.Run(os.Stdin, socket); err != nil {
		fmt.Fprintln(os.Stderr, "berth-monitor:", err)
		os.Exit(1)
	}
}
