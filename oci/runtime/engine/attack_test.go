package engine

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lowerOf is the image of a testPlan.
func lowerOf(p *Plan) string { return strings.TrimPrefix(p.Rootfs.Options[0], "lowerdir+=") }

// swap exchanges two names until the test's end.
func swap(t *testing.T, dir, a, b string) {
	t.Helper()
	var stop atomic.Bool
	var done sync.WaitGroup
	done.Go(func() {
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, a), unix.AT_FDCWD, filepath.Join(dir, b), unix.RENAME_EXCHANGE)
		}
	})
	t.Cleanup(func() { stop.Store(true); done.Wait() })
}

// Threats A5, A6: another container swaps a folder of a shared volume for a link to the host's canary, by its path and by
// "..", while containers with mounts below that folder start.
func TestSwappedVolumeLeadsNowhere(t *testing.T) {
	volume, victim, source := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(source+"/f", []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": victim, "up": strings.Repeat("../", 20) + victim[1:]} {
		if err := os.Mkdir(filepath.Join(volume, "dir-"+link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(volume, link)); err != nil {
			t.Fatal(err)
		}
	}
	plan := testPlan(t, "/bin/true")
	plan.Mounts = append(plan.Mounts,
		Mount{Type: "bind", Source: volume, Target: "/vol"},
		Mount{Type: "bind", Source: source, Target: "/vol/dir-link/y"},
		Mount{Type: "bind", Source: source + "/f", Target: "/vol/dir-link/deep/file"},
		Mount{Type: "bind", Source: source, Target: "/vol/dir-up/y"},
		Mount{Type: "tmpfs", Source: "tmpfs", Target: "/vol/dir-up/z"})
	plan.Directories = []string{"/vol/dir-link/cwd", "/vol/dir-up/cwd"}
	plan.Process.Cwd = "/vol/dir-up/cwd"
	swap(t, volume, "dir-link", "link")
	swap(t, volume, "dir-up", "up")
	started := 0
	for begun := time.Now(); time.Since(begun) < 4*time.Second || started == 0 && time.Since(begun) < time.Minute; {
		c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
		if err != nil {
			continue // a start may lose the race, the host may not
		}
		started++
		end(c)
	}
	if started == 0 {
		t.Error("no container started")
	}
	if list, err := os.ReadDir(victim); err != nil || len(list) > 0 {
		t.Errorf("the host's folder holds %v, %v", list, err)
	}
	if list := mountsOf(t, victim, volume, source); len(list) > 0 {
		t.Errorf("the host has mounts: %q", list)
	}
}

// mountsOf are the host's mounts with one of the paths in their line. Others come and go: the host is not the test's alone.
func mountsOf(t *testing.T, paths ...string) (list []string) {
	t.Helper()
	for line := range strings.Lines(hostMounts(t)) {
		if slices.ContainsFunc(paths, func(path string) bool { return strings.Contains(line, path) }) {
			list = append(list, line)
		}
	}
	return list
}

// openat2(2): with RESOLVE_IN_ROOT a ".." fails with EAGAIN when anything on the host is renamed or mounted meanwhile.
func TestBusyHostDoesNotFailStarts(t *testing.T) {
	plan := testPlan(t, "/bin/true")
	link := "real"
	for range 60 {
		link = "../a/" + link
	}
	if err := os.MkdirAll(lowerOf(plan)+"/a/real", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(link, lowerOf(plan)+"/a/link"); err != nil {
		t.Fatal(err)
	}
	plan.Process.Cwd, plan.Readonly = "/a/link", []string{"/a/link"}
	busy := t.TempDir()
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(busy, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	swap(t, busy, "a", "b")
	for until := time.Now().Add(2 * time.Second); time.Now().Before(until); {
		c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
		if err != nil {
			t.Fatalf("Start: %v", err)
		}
		end(c)
	}
}

// Threats A7, A11, A12: folders that the image made links, to one of the host's and to one of its own.
func TestImageLinksLeadNowhere(t *testing.T) {
	for _, name := range []string{"proc", "sys", "dev"} {
		t.Run(name, func(t *testing.T) {
			victim := t.TempDir()
			for _, to := range []string{victim, "/etc"} {
				plan := testPlan(t, "/bin/true")
				if err := os.Symlink(to, filepath.Join(lowerOf(plan), name)); err != nil {
					t.Fatal(err)
				}
				if c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); err == nil {
					end(c)
					t.Errorf("Start took a link to %s for %s", to, name)
				}
			}
			if list, _ := os.ReadDir(victim); len(list) > 0 {
				t.Errorf("the host's folder holds %v", list)
			}
		})
	}
}

// Threats A8, A9, A12: on a volume at /dev somebody else has made the null device and the console links into the kernel's file systems.
func TestLinksOfAVolumeOnDevAreNotTaken(t *testing.T) {
	volume := t.TempDir()
	for _, name := range []string{"null", "console"} {
		if err := os.Symlink("/proc/sys/kernel/core_pattern", filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	plan := testPlan(t, "stat", "-c", "%t:%T", "/proc/keys")
	plan.Mounts = append(plan.Mounts[:1:1], Mount{Type: "bind", Source: volume, Target: "/dev"},
		Mount{Type: "devpts", Source: "devpts", Target: "/dev/pts", Options: []string{"newinstance", "ptmxmode=0666"}})
	plan.Masked = plan.Masked[:1]
	if out, ws := output(t, plan); out != "1:3\n" || ws.ExitStatus() != 0 {
		t.Errorf("what hides a file is device %q, status %d", out, ws.ExitStatus())
	}
	plan.Process.Terminal = true
	if c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); !errors.Is(err, unix.ELOOP) {
		end(c)
		t.Errorf("Start with a terminal and a console that is a link = %v, want ELOOP", err)
	}
}

// Threats A8, A11: what is mounted on /dev keeps its content, however the image spells the folder.
func TestVolumeOnDevIsNotFilled(t *testing.T) {
	for _, tc := range []struct {
		name  string
		plant func(plan *Plan) error
	}{
		{"folder", func(plan *Plan) error { return os.Mkdir(lowerOf(plan)+"/dev", 0o755) }},
		{"nothing there", func(*Plan) error { return nil }},
		{"link to what is missing", func(plan *Plan) error {
			plan.Mounts = append(plan.Mounts[:1:1], plan.Mounts[3:4]...) // no file systems below /dev
			return os.Symlink("/elsewhere", lowerOf(plan)+"/dev")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := testPlan(t, "/bin/true")
			if err := tc.plant(plan); err != nil {
				t.Fatal(err)
			}
			volume := t.TempDir()
			core := "/proc/sys/kernel/core_pattern"
			if err := os.Symlink(core, volume+"/null"); err != nil {
				t.Fatal(err)
			}
			if err := os.Lchown(volume+"/null", 7, 7); err != nil {
				t.Fatal(err)
			}
			plan.Mounts = append(plan.Mounts, Mount{Type: "bind", Source: volume, Target: "/dev"})
			c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
			if err == nil {
				end(c)
			}
			list, _ := os.ReadDir(volume)
			var st unix.Stat_t
			if err := unix.Lstat(volume+"/null", &st); err != nil || st.Uid != 7 || len(list) != 1 {
				t.Errorf("the volume holds %v, null belongs to %d, %v", list, st.Uid, err)
			}
		})
	}
}

// Threat A2: no number of a descriptor is a way out, by itself or through a link.
func TestCwdThroughDescriptors(t *testing.T) {
	plan := testPlan(t, "/bin/true")
	for n := 3; n < 30; n++ {
		path := "/proc/self/fd/" + strconv.Itoa(n)
		os.Remove(lowerOf(plan) + "/out")
		if err := os.Symlink(path, lowerOf(plan)+"/out"); err != nil {
			t.Fatal(err)
		}
		for _, cwd := range []string{path, "/out", path + "/..", "/proc/1/root"} {
			plan.Process.Cwd = cwd
			if c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); err == nil {
				end(c)
				t.Errorf("Start in %s succeeded", cwd)
			}
		}
	}
}

// Threat A14.
func TestNonRootHasNoCapabilities(t *testing.T) {
	plan := testPlan(t, "grep", "^Cap[IPEA]", "/proc/self/status")
	plan.Process.UID, plan.Process.GID = 1000, 1000
	out, _ := output(t, plan)
	if strings.Count(out, "\t0000000000000000\n") != 4 {
		t.Errorf("capabilities of user 1000:\n%s", out)
	}
}

// A bind mount that says nothing of propagation gives the host nothing back.
func TestBindsDoNotPropagateToTheHost(t *testing.T) {
	plan := testPlan(t, "/bin/true")
	shared := t.TempDir()
	if err := unix.Mount("tmpfs", shared, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(shared, unix.MNT_DETACH)
	if err := unix.Mount("", shared, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"volume", "root/bin", "root/proc"} {
		if err := os.MkdirAll(filepath.Join(shared, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(shared+"/root/bin/true", program, 0o755); err != nil {
		t.Fatal(err)
	}
	plan.Rootfs = Mount{Type: "bind", Source: shared + "/root"}
	plan.Mounts = append(plan.Mounts, Mount{Type: "bind", Source: shared + "/volume", Target: "/volume"},
		Mount{Type: "tmpfs", Source: "tmpfs", Target: "/volume/below"})
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err == nil {
		end(c)
	}
	if list := mountsOf(t, shared); err != nil || len(list) != 1 {
		t.Errorf("Start = %v; the host has mounts: %q", err, list)
	}
}

// Threats A2, A3, A13, A14 for what is executed in a running container.
func TestExecGetsNothingOfTheHost(t *testing.T) {
	plan := testPlan(t, "sleep", "1000")
	if err := os.Symlink("/proc/self/fd/9", lowerOf(plan)+"/out"); err != nil {
		t.Fatal(err)
	}
	inherited, err := unix.Dup(2) // stays open across execve
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	defer end(c)
	defer unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	if list, err := os.ReadDir("/proc/" + strconv.Itoa(c.PID) + "/fd"); err != nil || len(list) != 3 {
		t.Errorf("the container holds descriptors %v, %v", list, err)
	}
	pidns, err := os.Open("/proc/" + strconv.Itoa(c.PID) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	target := Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd())}
	run := func(cwd string) (string, error) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		pr := &Process{Args: []string{"/bin/sh", "-c", "/bin/ls -l /proc/$$/fd; /bin/grep -E '^(Uid|Cap)' /proc/self/status"}, Cwd: cwd,
			User: User{UID: 1, GID: 1}}
		e, err := Exec(pr, target, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
		w.Close()
		if err != nil {
			return "", err
		}
		out, _ := finish(t, e, r)
		return out, nil
	}
	out, err := run("/")
	if err != nil || strings.Count(out, " -> ") != 3 || strings.Count(out, "\t0000000000000000\n") != 5 || !strings.Contains(out, "Uid:\t1\t1\t1\t1\n") {
		t.Errorf("exec: %v\n%s", err, out)
	}
	cwds := []string{"/out", "/proc/1/root", "/proc/1/cwd"}
	for n := 3; n < 30; n++ {
		cwds = append(cwds, "/proc/self/fd/"+strconv.Itoa(n))
	}
	for _, cwd := range cwds {
		if out, err := run(cwd); err == nil {
			t.Errorf("exec in %s succeeded:\n%s", cwd, out)
		}
	}
}

// Threat A4, CVE-2016-9962: a process that appears in a container's pid namespace is open to whoever has CAP_SYS_PTRACE in there, from its
// first moment. It has the container's root then, and nothing of the monitor's.
func TestExecAppearsWithoutTheHost(t *testing.T) {
	canary, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer canary.Close()
	plan := testPlan(t, "sleep", "1000")
	plan.NewCgroup = true
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	defer end(c)
	defer unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	proc := "/proc/" + strconv.Itoa(c.PID)
	pidns, err := os.Open(proc + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	root, err := os.Stat(proc + "/root")
	if err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var watching sync.WaitGroup
	var seen atomic.Int32
	watching.Go(func() {
		for !stop.Load() {
			for _, pid := range nested() {
				if info, err := os.Stat("/proc/" + pid + "/root"); err == nil && !os.SameFile(info, root) {
					t.Errorf("a process appeared with another root than the container's")
				}
				list, _ := filepath.Glob("/proc/" + pid + "/fd/*")
				for _, fd := range list {
					if to, err := os.Readlink(fd); err == nil && to == canary.Name() {
						t.Errorf("a process appeared with a descriptor of its maker's: %s", fd)
					}
				}
				seen.Add(1)
			}
		}
	})
	target := Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd()), Namespaces: unix.CLONE_NEWCGROUP}
	pr := &Process{Args: []string{"/bin/true"}, Cwd: "/"}
	for begun := time.Now(); (time.Since(begun) < 4*time.Second || seen.Load() == 0 && time.Since(begun) < time.Minute) && !t.Failed(); {
		e, err := Exec(pr, target, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
		if err != nil {
			t.Fatal(err)
		}
		end(e)
	}
	stop.Store(true)
	watching.Wait()
	if seen.Load() == 0 {
		t.Error("nothing was seen")
	}
}

// nested lists children of this process that are in another pid namespace, but for its first process.
func nested() (pids []string) {
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		children, _ := os.ReadFile(f)
		for _, pid := range strings.Fields(string(children)) {
			status, _ := os.ReadFile("/proc/" + pid + "/status")
			_, rest, _ := strings.Cut(string(status), "NSpid:")
			line, _, _ := strings.Cut(rest, "\n")
			if ids := strings.Fields(line); len(ids) == 2 && ids[1] != "1" {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func BenchmarkExec(b *testing.B) {
	plan := testPlanB(b)
	plan.Process.Args = []string{"/bin/sleep", "1000"}
	os.Link(plan.Rootfs.Source+"/bin/true", plan.Rootfs.Source+"/bin/sleep")
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		b.Fatal(err)
	}
	defer end(c)
	defer unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	pidns, err := os.Open("/proc/" + strconv.Itoa(c.PID) + "/ns/pid")
	if err != nil {
		b.Fatal(err)
	}
	defer pidns.Close()
	target := Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd())}
	for b.Loop() {
		e, err := Exec(&Process{Args: []string{"/bin/true"}, Cwd: "/"}, target, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
		if err != nil {
			b.Fatal(err)
		}
		end(e)
	}
}

// What hides a path, and what stands for streams that nobody asked for, is the null device. A container's root may change its own, and not the host's.
func TestNullDeviceOfTheHostStaysAsItIs(t *testing.T) {
	var before, after unix.Stat_t
	if err := unix.Stat("/dev/null", &before); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Chmod("/dev/null", before.Mode&0o7777) })
	const change = `for f in /proc/keys /proc/self/fd/0; do chmod 1666 $f && echo changed $f; echo x >$f && cat $f; done 2>/dev/null; echo done`
	plan := testPlan(t, "sh", "-c", change+"; sleep 1000")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), -1})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer end(c)
	defer unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	out := make([]byte, 5)
	if n, err := io.ReadFull(r, out); string(out) != "done\n" {
		t.Errorf("the container says %q, %v", out[:n], err)
	}
	process := &Process{Args: []string{"/bin/sh", "-c", change}, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: plan.Process.Capabilities}
	if out := execOutput(t, c, process); out != "done\n" {
		t.Errorf("an exec says %q", out)
	}
	if err := unix.Stat("/dev/null", &after); err != nil || after.Mode != before.Mode || after.Uid != before.Uid {
		t.Errorf("the host's null device has mode %o, had %o, %v", after.Mode, before.Mode, err)
	}
}
