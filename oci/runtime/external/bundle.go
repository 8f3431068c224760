package external

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
)

// Names in a bundle's folder and in that of an exec.
const (
	configName  = "config.json"
	processName = "process.json"
	rootfsName  = "rootfs"
	logName     = "log"
	// ConsoleName is the socket for a terminal. It is named to the runtime relative to the folder, because an address holds no long path.
	ConsoleName = "console"
)

// bundleVersion is the runtime-spec's that a bundle keeps to: older programs refuse newer ones by their number alone (crun 1.8).
const bundleVersion = "1.0.2"

// maxReason bounds what is quoted of a runtime's words, in bytes.
const maxReason = 2 << 10

// maxLogLine bounds one line of a runtime's log, in bytes: it may quote a whole command.
const maxLogLine = 4 << 20

// PIDFile is where a runtime writes the process that it made.
func PIDFile(folder string) string { return filepath.Join(folder, "pid") }

// Namespaces are paths of those that the pod has; an empty one is the runtime's own, which the monitor hands on.
type Namespaces struct{ Network, IPC, UTS string }

// Config is the specification as another runtime needs it. It shares memory with s.
func Config(s *specs.Spec, ns Namespaces) *specs.Spec {
	linux := *s.Linux
	linux.Namespaces = append([]specs.LinuxNamespace(nil), s.Linux.Namespaces...)
	for _, n := range []specs.LinuxNamespace{{Type: specs.NetworkNamespace, Path: ns.Network}, {Type: specs.IPCNamespace, Path: ns.IPC},
		{Type: specs.UTSNamespace, Path: ns.UTS}} {
		if n.Path != "" {
			linux.Namespaces = append(linux.Namespaces, n)
		}
	}
	linux.Resources = &specs.LinuxResources{}
	if s.Linux.Resources != nil {
		linux.Resources.Devices = s.Linux.Resources.Devices
	}
	linux.Sysctl = nil // the monitor has set them: a runtime that begins in the pod's namespaces takes these for the host's
	out := *s
	out.Version, out.Linux = bundleVersion, &linux
	out.Root = &specs.Root{Path: rootfsName, Readonly: s.Root.Readonly}
	return &out
}

// Bundle is a container as another runtime reads it.
type Bundle struct {
	Folder      string // mode 0700
	Config      *specs.Spec
	Trees       runtime.Trees
	Directories []string // made in the root when they are missing
}

// RootPath is where the root file system of a bundle is mounted.
func RootPath(folder string) string { return filepath.Join(folder, rootfsName) }

// WriteUnmounted makes the bundle but for its root file system, which is for somebody else to mount at RootPath. What an earlier call left there
// must be gone.
func (b *Bundle) WriteUnmounted() error {
	if err := b.makeFolders(); err != nil {
		return err
	}
	return writeJSON(filepath.Join(b.Folder, configName), b.Config)
}

func (b *Bundle) makeFolders() error {
	for _, folder := range []string{b.Folder, RootPath(b.Folder)} {
		if err := os.Mkdir(folder, 0o700); err != nil {
			return fmt.Errorf("write bundle: %w", err)
		}
	}
	return nil
}

// Write makes the bundle: its folder, the specification, the root file system and what mounts show of images, mounted. What an earlier call left
// there must be gone.
func (b *Bundle) Write() error {
	root, err := runtime.CompileRootfs(b.Trees.Root)
	if err != nil {
		return err
	}
	if err := b.makeFolders(); err != nil {
		return err
	}
	config, err := b.mountImages()
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(b.Folder, configName), config); err != nil {
		return err
	}
	if l := b.Config.Linux; l != nil {
		runtime.Label(&root, l.MountLabel)
	}
	target := RootPath(b.Folder)
	if err := engine.MountRootfs(&root, target); err != nil {
		return err
	}
	if err := engine.CheckRootfs(target); err != nil {
		return err
	}
	return engine.MakeDirectories(target, b.Directories)
}

// mountImages mounts what the specification has of images in the bundle's folder, and returns the specification that binds it from there: other
// runtimes know of no images.
func (b *Bundle) mountImages() (*specs.Spec, error) {
	out := *b.Config
	out.Mounts = slices.Clone(b.Config.Mounts)
	for i := range out.Mounts {
		m := &out.Mounts[i]
		if m.Type != runtime.TypeImage {
			continue
		}
		image, err := b.Trees.CompileImage(*m)
		if err != nil {
			return nil, err
		}
		runtime.Label(&image, b.Config.Linux.MountLabel)
		place := filepath.Join(b.Folder, volumePrefix+strconv.Itoa(i))
		if err := engine.MountImage(&image, place); err != nil {
			return nil, err
		}
		m.Type, m.Source, m.Options = "bind", place, append([]string{"bind"}, m.Options...)
	}
	return &out, nil
}

// ReadConfig reads the specification of a bundle.
func ReadConfig(folder string) (*specs.Spec, error) {
	text, err := os.ReadFile(filepath.Join(folder, configName))
	if err != nil {
		return nil, fmt.Errorf("read bundle: %w", err)
	}
	s := &specs.Spec{}
	if err := json.Unmarshal(text, s); err != nil {
		return nil, fmt.Errorf("read bundle: %s: %w", configName, err)
	}
	return s, nil
}

// WriteExec makes the folder of an exec.
func WriteExec(folder string, process *specs.Process) error {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return fmt.Errorf("write exec: %w", err)
	}
	return writeJSON(filepath.Join(folder, processName), process)
}

func writeJSON(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write bundle: %w", err)
	}
	return nil
}

// Remove unmounts what is mounted and removes a bundle's folder, or that of an exec, with what hooks have left in it. It is idempotent. A root file
// system is not walked into, and what cannot be unmounted is not either.
func Remove(folder string) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		if e.Name() == rootfsName || strings.HasPrefix(e.Name(), volumePrefix) {
			if err := unmount(path); err != nil {
				return err
			}
		}
		switch {
		case !e.IsDir() || e.Name() == rootfsName || strings.HasPrefix(e.Name(), volumePrefix):
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				errs = append(errs, err)
			}
		case strings.HasPrefix(e.Name(), execPrefix):
			errs = append(errs, Remove(path))
		default: // a hook's, which works in the bundle's folder
			errs = append(errs, RemoveState(path))
		}
	}
	if err := os.Remove(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove bundle: %w", err)
	}
	return nil
}

// unmount takes all mounts away that are on top of each other at path.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

const (
	execPrefix   = "exec-"
	volumePrefix = "volume-"
)

// ExecFolder is the folder of an exec, in its container's. Its name begins with exec-.
func ExecFolder(folder, name string) string { return filepath.Join(folder, name) }

// Reason is the last error that a runtime has written into the log of a bundle's folder, or of an exec's; empty when there is none.
func Reason(folder string) string {
	f, err := os.Open(filepath.Join(folder, logName))
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // it was only read
	reason := ""
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxLogLine)
	for lines.Scan() {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(lines.Bytes(), &entry) == nil && (entry.Level == "error" || entry.Level == "fatal") {
			reason = entry.Msg
		}
	}
	return strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
}
