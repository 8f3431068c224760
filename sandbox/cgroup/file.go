package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// relative turns a checked absolute cgroup path into one below a hierarchy's directory.
func relative(p string) string {
	if rel := strings.TrimPrefix(path.Clean(p), "/"); rel != "" {
		return rel
	}
	return "."
}

func (h *hierarchy) fd() int { return int(h.dir.Fd()) }

func (h *hierarchy) exists(rel string) bool {
	return unix.Faccessat(h.fd(), rel, unix.F_OK, 0) == nil
}

// mkdir makes rel; made tells whether this call did it.
func (h *hierarchy) mkdir(rel string) (made bool, err error) {
	err = retryEINTR(func() error { return unix.Mkdirat(h.fd(), rel, 0o755) })
	switch {
	case errors.Is(err, unix.EEXIST):
		return false, nil
	case errors.Is(err, unix.EAGAIN) && h.v2:
		return false, fmt.Errorf("%w: cgroup.max.descendants or cgroup.max.depth of a cgroup above: %w", ErrFull, err)
	}
	return err == nil, err
}

// removeOne removes one cgroup. EBUSY: it has processes or children. What is not there is nil.
func (h *hierarchy) removeOne(rel string) error {
	if rel == "." {
		return nil
	}
	err := retryEINTR(func() error { return unix.Unlinkat(h.fd(), rel, unix.AT_REMOVEDIR) })
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// write puts value into a control file with one system call, which is what the kernel parses.
func (h *hierarchy) write(rel, file, value string) error {
	if h.journal != nil {
		if err := h.journal.note(h, rel, file, value); err != nil {
			return err
		}
	}
	name := path.Join(rel, file)
	var fd int
	err := retryEINTR(func() (err error) {
		fd, err = unix.Openat(h.fd(), name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	if err == nil {
		err = retryEINTR(func() error { _, err := unix.Write(fd, []byte(value)); return err })
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("write %q to %s: %w", value, path.Join(h.mount, name), err)
	}
	return nil
}

// read returns a control file without its last newline.
func (h *hierarchy) read(rel, file string) (string, error) {
	f, err := h.open(path.Join(rel, file), unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var text strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(int(f.Fd()), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read %s: %w", f.Name(), err)
		}
		if n <= 0 {
			return strings.TrimSuffix(text.String(), "\n"), nil
		}
		text.Write(buf[:n])
	}
}

func (h *hierarchy) open(rel string, flags int) (*os.File, error) {
	var fd int
	err := retryEINTR(func() (err error) {
		fd, err = unix.Openat(h.fd(), rel, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		return err
	})
	name := path.Join(h.mount, rel)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// children lists the cgroups directly below rel. What is not there has none.
func (h *hierarchy) children(rel string) ([]string, error) {
	f, err := h.open(rel, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func retryEINTR(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
