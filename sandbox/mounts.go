package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/spec"
)

// checkMounts checks that what is to be mounted is there, and that its mount is shared where mounts are to be passed on. Where the kernel would only
// do without, the request is refused: what relies on propagation fails later and tells less.
func checkMounts(config *runtimeapi.ContainerConfig) error {
	for i, mount := range config.GetMounts() {
		if mount.GetImage().GetImage() != "" {
			continue
		}
		path := mount.GetHostPath()
		invalid := func(rule string) error {
			return &spec.InvalidError{Field: fmt.Sprintf("config.mounts[%d].host_path", i), Value: path, Rule: rule}
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return invalid("must be there")
		} else if err != nil {
			return fmt.Errorf("look at mount source %s: %w: %w", path, ErrInvalid, err)
		}
		if mount.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
			continue
		}
		shared, slave, err := propagation(path)
		switch {
		case err != nil:
			return fmt.Errorf("look at mount source %s: %w", path, err)
		case mount.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL && !shared:
			return invalid("must be on a shared mount to be mounted with bidirectional propagation")
		case !shared && !slave:
			return invalid("must be on a shared or slave mount to be mounted with propagation")
		}
	}
	return nil
}

// volumes are the IDs of the images that the container mounts, each once.
func volumes(config *runtimeapi.ContainerConfig) []string {
	var ids []string
	for _, mount := range config.GetMounts() {
		if mount.GetImage().GetImage() != "" {
			ids = append(ids, mount.GetImage().GetImageRef())
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// propagation tells how the mount that path is on passes mounts on: it is in a peer group, or receives from one.
func propagation(path string) (shared, slave bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return false, false, err
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, false, err
	}
	id := strconv.FormatUint(st.Mnt_id, 10)
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		for _, tag := range fields[6:] { // optional fields, up to "-" (proc_pid_mountinfo(5))
			if tag == "-" {
				break
			}
			shared = shared || strings.HasPrefix(tag, "shared:")
			slave = slave || strings.HasPrefix(tag, "master:")
		}
		return shared, slave, nil
	}
	return false, false, fmt.Errorf("mount %s is not in /proc/self/mountinfo", id)
}
