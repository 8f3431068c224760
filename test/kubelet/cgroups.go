package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/wait"
)

const cgroupDir = "/sys/fs/cgroup"

// hierarchies are the folders of the host's cgroup trees.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(filepath.Join(cgroupDir, "cgroup.controllers")); err == nil {
		return []string{cgroupDir}, nil
	}
	entries, err := os.ReadDir(cgroupDir)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var all []string
	for _, e := range entries {
		dir := filepath.Join(cgroupDir, e.Name())
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err == nil && e.IsDir() {
			all = append(all, dir)
		}
	}
	return all, nil
}

// makeCgroups makes the kubelet's root in every hierarchy; the kubelet itself makes what is below.
func makeCgroups(root string) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		dir := filepath.Join(tree, root)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make the kubelet's cgroup: %w", err)
		}
		if filepath.Base(tree) != "cpuset" {
			continue
		}
		for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // empty in a new folder, which takes no process then
			value, err := os.ReadFile(filepath.Join(tree, name))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), value, 0o644)
			}
			if err != nil {
				return fmt.Errorf("make the kubelet's cgroup: %w", err)
			}
		}
	}
	return nil
}

// Cgroups lists the folders below a root, in every hierarchy, parents first.
func Cgroups(root string) ([]string, error) {
	trees, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, tree := range trees {
		top := filepath.Join(tree, root)
		err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			if err == nil && e.IsDir() && path != top {
				all = append(all, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("list the kubelet's cgroups: %w", err)
		}
	}
	return all, nil
}

// removeCgroups removes the root and all below it. What is killed may take a moment to leave.
func removeCgroups(root string) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	wait.Until(time.Minute, 50*time.Millisecond, func() bool {
		dirs, listErr := Cgroups(root)
		errs := []error{listErr}
		for _, tree := range trees {
			dirs = slices.Insert(dirs, 0, filepath.Join(tree, root))
		}
		for _, dir := range slices.Backward(dirs) {
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
			}
		}
		err = errors.Join(errs...)
		return err == nil
	})
	return err
}
