package layer

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

var (
	// ErrInvalid says that the layer itself is at fault: the tar is malformed, or an entry asks for what no layer may have.
	ErrInvalid = errors.New("invalid layer")
	// ErrLimit says that the layer passed a bound of Limits.
	ErrLimit = errors.New("layer limit exceeded")
)

// invalid makes an error that is ErrInvalid.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// nameError says what of the layer failed, with its name shortened: names are hostile and may be a megabyte long.
func nameError(what, name string, err error) error {
	if len(name) > 256 {
		name = name[:256] + "..."
	}
	for _, errno := range []error{unix.ENAMETOOLONG, unix.ELOOP} {
		if errors.Is(err, errno) && !errors.Is(err, ErrInvalid) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return fmt.Errorf("%s %q: %w", what, name, err)
}

// tarError tells what the tar reader finds wrong with the tar, which is ErrInvalid, from what the stream below it says.
func (a *applier) tarError(err error) error {
	if a.in.failed != nil {
		return fmt.Errorf("read tar: %w", a.in.failed)
	}
	return fmt.Errorf("read tar: %w: %w", ErrInvalid, err)
}
