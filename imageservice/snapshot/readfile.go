package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// ReadFile reads a regular file of the published stack, of at most max bytes. Symbolic links lead nowhere but into the
// tree. A path that leads to nothing is fs.ErrNotExist, to something else ErrNotRegular, a longer file ErrTooLarge. Nothing but a
// regular file is ever opened: a FIFO cannot block it, a device cannot notice.
func (s *Store) ReadFile(ctx context.Context, diffIDs []digest.Digest, path string, max int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	s.mu.Lock()
	c, err := s.stack(diffIDs)
	var folders []string
	if err == nil {
		folders = c.folders()
	}
	s.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	root, err := s.openFolders(folders)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	defer root.Close()
	content, err := readIn(root, path, max)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	return content, nil
}

func readIn(root *os.File, path string, max int64) ([]byte, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(int(root.Fd()), path, &how)
	for err == unix.EAGAIN || err == unix.EINTR {
		fd, err = unix.Openat2(int(root.Fd()), path, &how)
	}
	if err == unix.ENOTDIR {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFCHR && st.Rdev == 0:
		return nil, fs.ErrNotExist // a whiteout
	case kind != unix.S_IFREG:
		return nil, ErrNotRegular
	case st.Size > max:
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, st.Size, max)
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	content, err := io.ReadAll(io.LimitReader(f, max+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if int64(len(content)) > max {
		return nil, fmt.Errorf("%w: at most %d bytes are read", ErrTooLarge, max)
	}
	return content, nil
}
