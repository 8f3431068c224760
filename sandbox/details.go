package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/store"
)

// Bounds of what is looked at to count a container's descriptors, of which it may have any number.
const (
	maxCountedProcesses = 1000
	maxLookedAt         = 10_000 // descriptors of one process that are looked at for sockets
)

// Details are what is seldom asked for about a running container.
type Details struct {
	cgroup.Details
	Devices     []DeviceIO // nil where nobody counts
	Cgroup      string
	Descriptors uint64 // open files of its processes
	Sockets     uint64 // among them
	OpenFiles   uint64 // soft limit of its first process; Unlimited: none
}

// DeviceIO is what was read from and written to a block device.
type DeviceIO struct {
	cgroup.DeviceIO
	Name string // /dev/vda, or MAJOR:MINOR where it has none
}

// HugepageUsage is of one size of huge pages.
type HugepageUsage = cgroup.HugepageUsage

// ContainerDetails measures a running container by paths: it takes a while longer than ContainerStats. Errors: ErrNotFound, also when it does not
// run.
func (m *Manager) ContainerDetails(containerID string) (Details, error) {
	c, err := m.findContainer(containerID)
	if err != nil {
		return Details{}, err
	}
	rec := m.containerRecord(c)
	if rec.State != store.Running {
		return Details{}, fmt.Errorf("container %s is %s: %w", c.id, rec.State, ErrNotFound)
	}
	read, err := m.cfg.Cgroups.Details(rec.Cgroup)
	if err != nil {
		return Details{}, notFound(err)
	}
	out := Details{Details: read, Cgroup: rec.Cgroup, OpenFiles: openFilesLimit(rec.PID)}
	if read.Devices != nil {
		out.Devices = []DeviceIO{}
	}
	for _, device := range read.Devices {
		out.Devices = append(out.Devices, DeviceIO{DeviceIO: device, Name: m.meters.devices.name(device.Major, device.Minor)})
	}
	pids, err := m.cfg.Cgroups.AllPIDs(rec.Cgroup, maxCountedProcesses)
	if err != nil {
		return Details{}, err
	}
	for _, pid := range pids {
		all, sockets, err := countDescriptors(pid)
		if err != nil {
			return Details{}, fmt.Errorf("count descriptors of container %s: %w", c.id, err)
		}
		out.Descriptors += all
		out.Sockets += sockets
	}
	return out, nil
}

// deviceNames remembers the names of block devices, of which there are few. One that was taken away and given to another device is
// named as before.
type deviceNames struct{ names sync.Map }

func (d *deviceNames) name(major, minor uint32) string {
	number := fmt.Sprintf("%d:%d", major, minor)
	if name, ok := d.names.Load(number); ok {
		return name.(string)
	}
	name := number
	text, err := os.ReadFile(filepath.Join("/sys/dev/block", number, "uevent"))
	if err != nil {
		return name
	}
	for line := range strings.Lines(string(text)) {
		if device, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
			name = "/dev/" + device
		}
	}
	d.names.Store(number, name)
	return name
}

// countDescriptors counts the open files of a process, and the sockets among them. One that has ended, or that the daemon may not look at, has none.
func countDescriptors(pid int) (all, sockets uint64, err error) {
	dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
	if err != nil {
		return 0, 0, ended(err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, 0, ended(err)
	}
	buf := make([]byte, len("socket:"))
	for _, name := range names[:min(len(names), maxLookedAt)] {
		n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
		if err == nil && string(buf[:n]) == "socket:" {
			sockets++
		}
	}
	return uint64(len(names)), sockets, nil
}

// ended is nil for the errors that the end of a process gives.
func ended(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}

// openFilesLimit reads the soft limit of open files (proc_pid_limits(5)); 0 when the process has ended.
func openFilesLimit(pid int) uint64 {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "limits"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		after, ok := strings.CutPrefix(line, "Max open files")
		words := strings.Fields(after)
		if !ok || len(words) < 2 {
			continue
		}
		if words[0] == "unlimited" {
			return Unlimited
		}
		n, _ := strconv.ParseUint(words[0], 10, 64)
		return n
	}
	return 0
}
