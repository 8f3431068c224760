// Package hangup catches SIGHUP as soon as Go code runs: it imports next to nothing, so it is initialized before the libraries of the daemon are, and
// a request to reload that comes while they are does not end the process.
package hangup

import (
	"os"
	"os/signal"
	"syscall"
)

// C gets the signals; several that nobody has taken yet are one.
var C = make(chan os.Signal, 1)

func init() { signal.Notify(C, syscall.SIGHUP) }
