package store

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// loadPause is between two tries to read the records in a Shortage.
const loadPause = 50 * time.Millisecond

// Tests change these.
var (
	openFile     = os.OpenFile     // opens a record
	loadPatience = 5 * time.Second // of Load, in a Shortage
)

var shortages = []syscall.Errno{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR, unix.EAGAIN, unix.ENOBUFS}

// Shortage tells whether an error says only that the daemon or the host is short of something now, and so nothing of what was asked for.
func Shortage(err error) bool {
	return slices.ContainsFunc(shortages, func(e syscall.Errno) bool { return errors.Is(err, e) })
}
