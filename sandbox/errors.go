package sandbox

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
)

// Errors that a caller may decide on.
var (
	ErrNotFound       = errors.New("not found")
	ErrNameInUse      = errors.New("name is in use") // the text names the ID that has it
	ErrInvalid        = errors.New("invalid request")
	ErrState          = errors.New("not in the state for this") // the text names the state
	ErrUnknownHandler = errors.New("unknown runtime handler")
	ErrHandlerMissing = errors.New("runtime handler cannot be used") // its program is missing or broken; it may come
	ErrNotRecursive   = errors.New("runtime handler makes no recursively read-only mounts")
	ErrExhausted      = errors.New("resource is exhausted")
	ErrTimeout        = errors.New("timed out")
	ErrClosing        = errors.New("the daemon is ending") // the cause of contexts that end with the daemon
)

// classify adds the sentinel that the errors of the packages below stand for.
func classify(err error) error {
	for _, c := range []struct{ below, ours error }{
		{cgroup.ErrInvalid, ErrInvalid},
		{cgroup.ErrNotSupported, ErrInvalid},
		{cgroup.ErrFull, ErrExhausted},
		{cni.ErrInvalid, ErrInvalid},
		{cni.ErrNotReady, ErrState},
		{cni.ErrPortInUse, ErrState},
		{cni.ErrExhausted, ErrExhausted},
		{monitor.ErrExited, ErrState},
		{monitor.ErrNotFound, ErrState},
		{monitor.ErrTooOld, ErrState},
		{monitor.ErrSlow, ErrExhausted},
		{unix.ENOSPC, ErrExhausted},
	} {
		if errors.Is(err, c.below) && !errors.Is(err, c.ours) {
			return fmt.Errorf("%w: %w", c.ours, err)
		}
	}
	return err
}
