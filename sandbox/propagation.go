package sandbox

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/spec"
)

// mountTable is where the kernel tells of the daemon's mounts.
const mountTable = "/proc/self/mountinfo"

// checkPropagation refuses a mount whose source cannot propagate as asked for: nothing would cross it, and nobody would be told.
// A bidirectional source must lie on a shared mount, one from the host to the container on a shared one or a slave
// (mount_namespaces(7)).
func checkPropagation(field string, m *runtimeapi.Mount) error {
	if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.GetHostPath(), 0, unix.STATX_MNT_ID, &st); err != nil {
		return fmt.Errorf("look at mount source %s: %w", m.GetHostPath(), err)
	}
	table, err := os.ReadFile(mountTable)
	if err != nil {
		return fmt.Errorf("look at mount source %s: %w", m.GetHostPath(), err)
	}
	shared, slave := propagates(string(table), st.Mnt_id)
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if !shared {
			return &spec.InvalidError{Field: field + "host_path", Value: m.GetHostPath(), Rule: "must lie on a shared mount for bidirectional propagation"}
		}
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if !shared && !slave {
			return &spec.InvalidError{Field: field + "host_path", Value: m.GetHostPath(), Rule: "must lie on a shared or a slave mount for propagation from the host"}
		}
	}
	return nil
}

// propagates reads the optional fields of a mount's line (proc_pid_mountinfo(5), field 7).
func propagates(table string, mountID uint64) (shared, slave bool) {
	id := strconv.FormatUint(mountID, 10)
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) < 7 || fields[0] != id {
			continue
		}
		optional := fields[6:]
		if end := slices.Index(optional, "-"); end >= 0 {
			optional = optional[:end]
		}
		for _, f := range optional {
			shared = shared || strings.HasPrefix(f, "shared:")
			slave = slave || strings.HasPrefix(f, "master:")
		}
	}
	return shared, slave
}
