package selinux

import (
	"context"
	"errors"
	"fmt"
	"io"
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
		err = relabel(ctx, os.NewFile(uintptr(fd), resolved), label, 0)
	}
	if err != nil {
		return fmt.Errorf("relabel %s: %w", path, err)
	}
	return nil
}

// What a container that has the volume already can make of it takes neither all descriptors nor all memory.
const (
	maxDepth = 2048 // folders below each other; no path has more of them (PATH_MAX)
	maxNames = 1000 // that are read at a time
)

// relabel labels what f is and all below, and closes f. It goes by descriptors: a container that has the volume already could put a link in a
// folder's place.
func relabel(ctx context.Context, f *os.File, label string, depth int) error {
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
	if depth == maxDepth {
		return fmt.Errorf("it has more than %d folders below each other", maxDepth)
	}
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: f.Name(), Err: err}
	}
	f.Close() //nolint:errcheck // see above
	dir := os.NewFile(uintptr(fd), f.Name())
	defer dir.Close() //nolint:errcheck // it is only read
	for {
		names, err := dir.Readdirnames(maxNames)
		for _, name := range names {
			if err := relabelEntry(ctx, dir, name, label, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// relabelEntry labels an entry of a folder, and all below it.
func relabelEntry(ctx context.Context, dir *os.File, name, label string, depth int) error {
	path := dir.Name() // for errors
	if len(path) < unix.PathMax {
		path += "/" + name
	}
	child, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) { // it was removed meanwhile
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return relabel(ctx, os.NewFile(uintptr(child), path), label, depth)
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
