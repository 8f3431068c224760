package snapshot

import (
	"bytes"
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
	root, err := s.openStack(ctx, diffIDs)
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

// CheckVolume tells whether a path of the published stack can be mounted by itself: it leads, with links as in ReadFile, to a folder or a
// regular file. A path that leads to nothing is fs.ErrNotExist, to anything else ErrNotRegular.
func (s *Store) CheckVolume(ctx context.Context, diffIDs []digest.Digest, path string) error {
	root, err := s.openStack(ctx, diffIDs)
	if err != nil {
		return fmt.Errorf("look at %q: %w", path, err)
	}
	defer root.Close()
	fd, st, err := findIn(root, path)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("look at %q: %w: %w", path, ErrNotRegular, err)
	}
	if err != nil {
		return fmt.Errorf("look at %q: %w", path, err)
	}
	unix.Close(fd)
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFDIR && kind != unix.S_IFREG {
		return fmt.Errorf("look at %q: %w", path, ErrNotRegular)
	}
	return nil
}

// openStack opens the root of the published stack.
func (s *Store) openStack(ctx context.Context, diffIDs []digest.Digest) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	c, err := s.stack(diffIDs)
	var folders []string
	if err == nil {
		folders = c.folders()
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return s.openFolders(folders)
}

// findIn opens what is at path in root, without effect on it.
func findIn(root *os.File, path string) (fd int, st unix.Stat_t, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err = unix.Openat2(int(root.Fd()), path, &how)
	for err == unix.EAGAIN || err == unix.EINTR {
		fd, err = unix.Openat2(int(root.Fd()), path, &how)
	}
	if err == unix.ENOTDIR {
		return -1, st, fs.ErrNotExist
	}
	if err != nil {
		return -1, st, err
	}
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
		err = fs.ErrNotExist // a whiteout
	}
	if err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

func readIn(root *os.File, path string, max int64) ([]byte, error) {
	fd, st, err := findIn(root, path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, ErrNotRegular
	case st.Size > max:
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, st.Size, max)
	}
	f, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	content := bytes.NewBuffer(make([]byte, 0, st.Size+bytes.MinRead)) // at once: growing would take several times as much
	_, err = content.ReadFrom(io.LimitReader(f, max+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if int64(content.Len()) > max {
		return nil, fmt.Errorf("%w: at most %d bytes are read", ErrTooLarge, max)
	}
	return content.Bytes(), nil
}
