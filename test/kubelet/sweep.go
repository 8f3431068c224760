package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Names of what a test process makes on the host end in its PID, so that a later one knows what is nobody's any more.
const (
	cgroupPrefix = "kubelettest-"
	folderPrefix = "k"
)

var folders = regexp.MustCompile(`^(/.*/bt[0-9]+/` + folderPrefix + `([0-9]+))(/|$)`)

// CgroupRoot is the root of the kubelet's cgroups of this test process.
func CgroupRoot() string { return "/" + cgroupPrefix + strconv.Itoa(os.Getpid()) }

// Folder is the kubelet's folder below that of a test of this process.
func Folder(dir string) string { return filepath.Join(dir, folderPrefix+strconv.Itoa(os.Getpid())) }

// Sweep takes away what tests left that were killed: processes in the kubelet's cgroups, those, and mounts. Their kubelets ended with them.
func Sweep() error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	var errs []error
	left := map[string]bool{}
	for _, tree := range trees {
		found, err := filepath.Glob(filepath.Join(tree, cgroupPrefix+"*"))
		errs = append(errs, err)
		for _, dir := range found {
			if root := filepath.Base(dir); over(strings.TrimPrefix(root, cgroupPrefix)) {
				left["/"+root] = true
				errs = append(errs, killAll(dir))
			}
		}
	}
	for root := range left {
		errs = append(errs, removeCgroups(root))
	}
	mounts, err := Mounts("/")
	errs = append(errs, err)
	for _, at := range slices.Backward(mounts) {
		if m := folders.FindStringSubmatch(at); m != nil && over(m[2]) {
			errs = append(errs, unmount(at))
		}
	}
	return errors.Join(errs...)
}

// over tells whether no process has a PID.
func over(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && errors.Is(unix.Kill(n, 0), unix.ESRCH)
}

// killAll kills the processes in a cgroup folder and below.
func killAll(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		text, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("end what is in %s: %w", dir, err)
	}
	return nil
}

func unmount(at string) error {
	if err := unix.Unmount(at, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
		return fmt.Errorf("unmount %s: %w", at, err)
	}
	return nil
}
