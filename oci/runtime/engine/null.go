package engine

import (
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// null is the null device, opened once and for good.
var null struct {
	sync.Mutex
	fd int
}

// NullDevice returns the null device's descriptor, which stays the engine's. It is the host's, and a container's root owns that: so it is opened in a
// mount that is read-only, where the device can be written to and not be changed. The mount is kept: to end one takes the kernel longer than all of this.
func NullDevice() (int, error) {
	null.Lock()
	defer null.Unlock()
	if null.fd != 0 {
		return null.fd, nil
	}
	mount, err := unix.OpenTree(unix.AT_FDCWD, "/dev/null", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &Error{"open", "/dev/null", errno(err)}
	}
	err = unix.MountSetattr(mount, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	fd := -1
	if err == nil {
		fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(mount), unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		unix.Close(mount)
		return -1, &Error{"open", "/dev/null", errno(err)}
	}
	null.fd = fd
	return fd, nil
}
