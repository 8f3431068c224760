package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxDevices bounds what one folder may hold: no host has as many, a folder that is no /dev may.
const maxDevices = 65536

// skipped are folders below /dev that are file systems of their own, and what management tools keep there.
var skipped = map[string]bool{"pts": true, "shm": true, "fd": true, "mqueue": true, ".lxc": true, ".lxd-mounts": true, ".udev": true}

// Devices returns the device at path, or all below it when it is a folder, with paths that begin with path. What is no
// device is left out, and so are a folder's FIFOs and its console; the list is empty when path is neither. Links are followed
// for path itself only. The error wraps fs.ErrNotExist when there is nothing.
func Devices(path string) ([]specs.LinuxDevice, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("find device: %w", err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, fmt.Errorf("find device: %w", err)
	}
	if !st.IsDir() {
		d, ok, err := device(real, path)
		if err != nil || !ok {
			return nil, err
		}
		return []specs.LinuxDevice{d}, nil
	}
	var out []specs.LinuxDevice
	err = filepath.WalkDir(real, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != real { // unplugged meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			if p != real && skipped[e.Name()] {
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 || e.Name() == "console" {
			return nil
		}
		d, ok, err := device(p, path+p[len(real):])
		if ok {
			out = append(out, d)
		}
		if len(out) > maxDevices {
			return fmt.Errorf("more than %d devices", maxDevices)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list devices below %s: %w", path, err)
	}
	return out, nil
}

// Requested returns what spec.Input.Devices holds for a request, and for the devices that all containers get. A path without a device is left
// out: package spec says what is wrong with it.
func Requested(cfg *runtimeapi.ContainerConfig, all ...*runtimeapi.Device) (map[string][]specs.LinuxDevice, error) {
	wanted := slices.Concat(cfg.GetDevices(), all)
	if len(wanted) == 0 {
		return nil, nil
	}
	out := make(map[string][]specs.LinuxDevice, len(wanted))
	for _, d := range wanted {
		found, err := Devices(d.GetHostPath())
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return nil, err
		}
		out[d.GetHostPath()] = found
	}
	return out, nil
}

// device describes the node at path under the name that it gets. It is false for what is no device.
func device(path, name string) (specs.LinuxDevice, bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
		return specs.LinuxDevice{}, false, nil
	} else if err != nil {
		return specs.LinuxDevice{}, false, fmt.Errorf("find device %s: %w", path, err)
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return specs.LinuxDevice{}, false, nil
	}
	mode := os.FileMode(st.Mode &^ unix.S_IFMT)
	uid, gid := st.Uid, st.Gid
	return specs.LinuxDevice{
		Path: name, Type: kind, FileMode: &mode, UID: &uid, GID: &gid,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
	}, true, nil
}
