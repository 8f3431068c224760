package invariants

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// hierarchy is one mounted cgroup tree.
type hierarchy struct {
	name string // "memory", "unified"
	dir  string
}

// hierarchies lists every mounted cgroup tree of the host once.
func hierarchies() ([]hierarchy, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	var all []hierarchy
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		sep := slices.Index(f, "-")
		if sep < 0 || len(f) < sep+4 || f[3] != "/" {
			continue
		}
		h := hierarchy{dir: f[4]}
		switch f[sep+1] {
		case "cgroup2":
			h.name = "unified"
		case "cgroup":
			h.name = filepath.Base(f[4])
		default:
			continue
		}
		if !slices.ContainsFunc(all, func(o hierarchy) bool { return o.name == h.name }) {
			all = append(all, h)
		}
	}
	return all, nil
}

// trees lists the cgroup folders of the daemon: its own tree, and what carries a sandbox's or container's ID below other parents.
func trees(d Daemon, visit func(h hierarchy, path string) error) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		for _, parent := range append([]string{d.CgroupRoot()}, d.CgroupParents...) {
			err := filepath.WalkDir(h.dir+parent, func(path string, e fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, os.ErrInvalid) {
					return nil
				}
				if err != nil || !e.IsDir() {
					return err
				}
				return visit(h, strings.TrimPrefix(path, h.dir))
			})
			if err != nil && !gone(err) {
				return fmt.Errorf("walk cgroups: %w", err)
			}
		}
	}
	return nil
}

func takeCgroups(d Daemon, items Items) error {
	return trees(d, func(h hierarchy, path string) error {
		items[Item{Cgroup, h.name + ":" + path}] = 1
		return nil
	})
}

// takeProcesses collects processes in the daemon's cgroups and those that name its folders on their command line.
func takeProcesses(d Daemon, items Items) error {
	pids, err := processes(d)
	for pid := range pids {
		items[Item{Process, fmt.Sprintf("%d (%s)", pid, commandLine(pid))}] = 1
	}
	return err
}

// processes maps the PIDs of everything that the daemon started to a cgroup that it is in ("" if in none of the daemon's).
func processes(d Daemon) (map[int]string, error) {
	pids := map[int]string{}
	err := trees(d, func(h hierarchy, path string) error {
		in, err := members(h.dir + path)
		for _, pid := range in {
			pids[pid] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || pid == d.PID {
			continue
		}
		line := commandLine(pid)
		if pids[pid] == "" && isMonitor(line) && (strings.Contains(line, d.State+"/") || strings.Contains(line, d.Root+"/")) {
			pids[pid] = ""
		}
		if d.Instance() != "" && pids[pid] == "" && strings.HasPrefix(line, "berth-hold "+d.marked()+"-") { // in whatever cgroup it was left
			pids[pid] = ""
		}
	}
	delete(pids, d.PID)
	return pids, nil
}

// Monitors lists the PIDs of the daemon's monitors, by the cgroup that they are in.
func Monitors(d Daemon) ([]int, error) {
	all, err := processes(d)
	var pids []int
	for pid, cgroup := range all {
		if within(cgroup, d.monitorScope()+"/monitors") {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, err
}

func isMonitor(commandLine string) bool {
	name, _, _ := strings.Cut(commandLine, " ")
	return strings.Contains(filepath.Base(name), "berth")
}

// members lists the processes of one cgroup folder. A folder that has gone has none.
func members(dir string) ([]int, error) {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		if gone(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("read members: %w", err)
	}
	var pids []int
	for _, f := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func commandLine(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(b), "\x00", " "))
}

// membersByName maps the name of each cgroup folder to the processes in it and below it.
func membersByName(d Daemon) (map[string][]int, error) {
	pids := map[string][]int{}
	err := trees(d, func(h hierarchy, path string) error {
		in, err := members(h.dir + path)
		for _, name := range strings.Split(path, "/") {
			pids[name] = append(pids[name], in...)
		}
		return err
	})
	for name := range pids {
		slices.Sort(pids[name])
		pids[name] = slices.Compact(pids[name])
	}
	return pids, err
}

// CgroupDirs lists the daemon's cgroup folders in every hierarchy, parents first.
func CgroupDirs(d Daemon) ([]string, error) {
	var dirs []string
	err := trees(d, func(h hierarchy, path string) error {
		dirs = append(dirs, h.dir+path)
		return nil
	})
	slices.Sort(dirs)
	return dirs, err
}
