package layer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"

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

// entryError names the entry, shortened: names are hostile and may be a megabyte long.
func entryError(hdr *tar.Header, err error) error {
	name := hdr.Name
	if len(name) > 256 {
		name = name[:256] + "..."
	}
	for _, errno := range []error{unix.ENAMETOOLONG, unix.ELOOP} {
		if errors.Is(err, errno) && !errors.Is(err, ErrInvalid) {
			err = fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	return fmt.Errorf("apply entry %q: %w", name, err)
}

// tarError turns the tar reader's errors into ErrInvalid, and leaves those of the stream below it alone.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) {
		return fmt.Errorf("read tar: %w: %w", ErrInvalid, err)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read tar: %w: truncated: %w", ErrInvalid, err)
	}
	return fmt.Errorf("read tar: %w", err)
}
