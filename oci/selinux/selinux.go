package selinux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Labels are what the host's policy has for containers.
type Labels struct{ Process, File string }

// ErrNotAllowed means that a path is one of the host's own.
var ErrNotAllowed = errors.New("its label is not to be changed")

const attribute = "security.selinux"

// own are paths that are never relabelled: the host would not work any more.
var own = []string{
	"/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root",
	"/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/log",
}

// Enabled tells whether the kernel enforces, or would enforce, a policy. One that has SELinux and no policy refuses every label of a file system;
// all processes are called kernel there.
func Enabled() bool {
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/selinux", &st) != nil || st.Type != unix.SELINUX_MAGIC {
		return false
	}
	current, err := os.ReadFile("/proc/self/attr/current")
	return err == nil && strings.TrimRight(string(current), "\x00\n") != "kernel"
}

// Read returns the labels of the host's policy, below root; a policy that has none leaves them empty.
func Read(root string) (Labels, error) {
	var l Labels
	config, err := os.ReadFile(filepath.Join(root, "etc/selinux/config"))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("read SELinux policy: %w", err)
	}
	policy := value(config, "SELINUXTYPE")
	if policy == "" || strings.Contains(policy, "/") {
		return l, nil
	}
	contexts, err := os.ReadFile(filepath.Join(root, "etc/selinux", policy, "contexts/lxc_contexts"))
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("read SELinux policy: %w", err)
	}
	return Labels{Process: value(contexts, "process"), File: value(contexts, "file")}, nil
}

// value finds a line "key = value".
func value(text []byte, key string) string {
	for line := range strings.Lines(string(text)) {
		name, v, found := strings.Cut(line, "=")
		if found && strings.TrimSpace(name) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

// Relabel gives a file, or a folder with all that is in it, a label. Symbolic links are labelled themselves and not followed, but path may be one.
func Relabel(ctx context.Context, path, label string) error {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	if slices.Contains(own, resolved) {
		return fmt.Errorf("relabel %s: %w: it is the host's own", path, ErrNotAllowed)
	}
	fd, err := unix.Open(resolved, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		err = relabel(ctx, os.NewFile(uintptr(fd), resolved), label)
	}
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

// relabel labels what f is and all below, and closes f. It goes by descriptors: a container that has the volume already could put a link in a
// folder's place.
func relabel(ctx context.Context, f *os.File, label string) error {
	defer f.Close() //nolint:errcheck // it has been opened for its path alone
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := set(f, label); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	names, err := list(f)
	if err != nil {
		return err
	}
	for _, name := range names {
		child, err := unix.Openat(int(f.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) { // it was removed meanwhile
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: f.Name() + "/" + name, Err: err}
		}
		if err := relabel(ctx, os.NewFile(uintptr(child), f.Name()+"/"+name), label); err != nil {
			return err
		}
	}
	return nil
}

func list(dir *os.File) ([]string, error) {
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir.Name(), Err: err}
	}
	f := os.NewFile(uintptr(fd), dir.Name())
	defer f.Close() //nolint:errcheck // it was only read
	return f.Readdirnames(-1)
}

// set labels one file. One that has the label is left alone, and so is a file system that keeps none.
func set(f *os.File, label string) error {
	name := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	have := make([]byte, len(label)+2)
	if n, err := unix.Getxattr(name, attribute, have); err == nil && strings.TrimRight(string(have[:n]), "\x00") == label {
		return nil
	}
	err := unix.Setxattr(name, attribute, []byte(label), 0)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "label", Path: f.Name(), Err: err}
	}
	return nil
}
