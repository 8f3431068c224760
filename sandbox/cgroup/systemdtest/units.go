package systemdtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// unit is a scope or a slice that is there.
type unit struct {
	folder     string
	properties map[string]any
}

// findUnified is where the unified hierarchy is mounted.
func findUnified() (string, error) {
	for _, folder := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if err := unix.Statfs(folder, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			return folder, nil
		}
	}
	return "", errors.New("no unified cgroup hierarchy is mounted")
}

// slicePath is where a slice's cgroup is: a-b.slice is in a.slice.
func slicePath(name string) string {
	var path string
	parts := strings.Split(strings.TrimSuffix(name, ".slice"), "-")
	for i := range parts {
		path += "/" + strings.Join(parts[:i+1], "-") + ".slice"
	}
	return path
}

// startScope makes the cgroups of a scope and of the slices above it. Preconditions: mu held.
func (m *Manager) startScope(name string, properties map[string]any) error {
	slice, _ := properties["Slice"].(string)
	pids, _ := properties["PIDs"].([]uint32)
	if slice == "" || len(pids) == 0 {
		return errors.New("a scope needs a slice and a process")
	}
	path := ""
	for part := range strings.SplitSeq(strings.TrimPrefix(slicePath(slice), "/"), "/") {
		path += "/" + part
		if err := os.Mkdir(m.mount+path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if m.units[part] == nil {
			m.units[part] = &unit{folder: m.mount + path}
		}
	}
	folder := m.mount + path + "/" + name
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, pid := range pids {
		if err := os.WriteFile(folder+"/cgroup.procs", []byte(fmt.Sprint(pid)), 0); err != nil {
			return errors.Join(err, os.Remove(folder))
		}
	}
	m.units[name] = &unit{folder: folder, properties: properties}
	return nil
}

// stop kills what a scope has, and takes it away once it is empty. A slice only goes when it is empty: another test's scopes may be in it.
func (m *Manager) stop(name string) {
	m.mu.Lock()
	u := m.units[name]
	m.mu.Unlock()
	if u == nil {
		return
	}
	if strings.HasSuffix(name, ".slice") {
		os.Remove(u.folder)
		m.mu.Lock()
		delete(m.units, name)
		m.mu.Unlock()
		return
	}
	for m.known(name) {
		for _, pid := range members(u.folder) {
			unix.Kill(pid, unix.SIGKILL)
		}
		m.trim()
		pause()
	}
}

func (m *Manager) known(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.units[name] != nil
}

// trim ends the scopes that have become empty.
func (m *Manager) trim() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, u := range m.units {
		if !strings.HasSuffix(name, ".scope") {
			continue
		}
		events, err := os.ReadFile(u.folder + "/cgroup.events")
		if err != nil || strings.Contains(string(events), "populated 0") {
			removeTree(u.folder)
			delete(m.units, name)
		}
	}
}

// members lists the processes of a cgroup and of those below it.
func members(folder string) (pids []int) {
	filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "cgroup.procs" {
			text, _ := os.ReadFile(path)
			for _, word := range strings.Fields(string(text)) {
				if pid, err := strconv.Atoi(word); err == nil {
					pids = append(pids, pid)
				}
			}
		}
		return nil
	})
	return pids
}

func removeTree(folder string) {
	var folders []string
	filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			folders = append(folders, path)
		}
		return nil
	})
	for _, f := range slices.Backward(folders) {
		os.Remove(f)
	}
}
