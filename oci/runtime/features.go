package runtime

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Features are what a runtime can do on this host of what pods may ask of it by name.
type Features struct {
	RecursiveReadOnlyMounts, UserNamespaces bool
}

// NativeFeatures are the engine's, on this kernel.
func NativeFeatures() Features {
	// mount_setattr(2), Linux 5.12: attributes for a whole tree of mounts. ENOSYS without it; a descriptor that is none tells EBADF.
	err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	return Features{RecursiveReadOnlyMounts: !errors.Is(err, unix.ENOSYS)}
}
