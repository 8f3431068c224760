package engine

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// newUsers makes a user namespace that maps n IDs to those from first on.
func newUsers(t *testing.T, first, n uint32) *UserNamespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces and mounts")
	}
	if err := ProbeUserNamespaces(t.TempDir(), t.TempDir()); errors.Is(err, ErrNotSupported) {
		t.Skipf("this kernel lacks what user namespaces need: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	ids := []IDMap{{Outside: first, Length: n}}
	fds, err := NewNamespaces(ids, ids)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return &UserNamespace{UIDs: ids, GIDs: ids, Descriptor: fds[0]}
}

func usersPlan(t *testing.T, u *UserNamespace, args ...string) *Plan {
	plan := testPlan(t, args...)
	plan.Users = u
	plan.Devices[0].UID, plan.Devices[0].GID = u.Root()
	// The pod's sysfs and mqueue belong to namespaces that this test does not have.
	plan.Mounts = plan.Mounts[:3]
	return plan
}

func TestUserNamespace(t *testing.T) {
	u := newUsers(t, 200000, 65536)
	plan := usersPlan(t, u, "sh", "-c", `id -u; id -G; cat /proc/self/uid_map /proc/self/setgroups; stat -c '%u %a %n' /bin /bin/busybox /dev /dev/null /proc /data/deep; echo x > /dev/null && echo made > /tmp/f && stat -c %u /tmp/f; exit 3`)
	plan.Process.Groups = []uint32{7}
	out, ws := output(t, plan)
	want := "0\n0 7\n         0     200000      65536\nallow\n0 755 /bin\n0 755 /bin/busybox\n0 755 /dev\n0 666 /dev/null\n65534 555 /proc\n0 755 /data/deep\n0\n"
	if out != want || ws.ExitStatus() != 3 {
		t.Errorf("status %v, output:\n%s\nwant:\n%s", ws, out, want)
	}
	upper := strings.TrimPrefix(plan.Rootfs.Options[1], "upperdir=")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(upper, "tmp/f"), &st); err != nil || st.Uid != 0 {
		t.Errorf("on disk the container's file belongs to %d, %v", st.Uid, err)
	}
	if list := mountsOf(t, t.Name()); len(list) > 0 {
		t.Errorf("the host has mounts: %q", list)
	}
}

func TestExecInUserNamespace(t *testing.T) {
	u := newUsers(t, 200000, 65536)
	c, err := Start(usersPlan(t, u, "sleep", "1000"), Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
		unix.Wait4(c.PID, nil, 0, nil)
		unix.Close(c.PIDFD)
	}()
	var st unix.Stat_t
	if err := unix.Stat("/proc/"+strconv.Itoa(c.PID), &st); err != nil || st.Uid != 200000 {
		t.Errorf("on the host the process belongs to %d, %v", st.Uid, err)
	}
	pidns, err := os.Open("/proc/" + strconv.Itoa(c.PID) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pr := &Process{Args: []string{"sh", "-c", "id -u; cat /proc/self/uid_map; ls /; echo x > /dev/stderr; exit 5"}, Env: []string{"PATH=/bin"}, Cwd: "/", User: User{UID: 1000, GID: 1000}}
	target := Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd()), Namespaces: unix.CLONE_NEWUSER, Users: u}
	e, err := Exec(pr, target, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, ws := finish(t, e, r)
	if ws.ExitStatus() != 5 || !strings.HasPrefix(out, "1000\n         0     200000      65536\n") {
		t.Errorf("exec: status %v, output:\n%s", ws, out)
	}
}

// What a kernel does that takes layers by their names only.
func TestMappedLayersByNames(t *testing.T) {
	u := newUsers(t, 200000, 65536)
	before := namesLayers.Swap(true)
	t.Cleanup(func() { namesLayers.Store(before) })
	plan := usersPlan(t, u, "sh", "-c", "stat -c %u / /every /layers; set -- /layers/*; echo $#; echo changed >/every; cat /every; stat -c %u /every")
	manyLayers(t, plan, 40)
	plan.Rootfs.Options = append(plan.Rootfs.Options, "index=off", "volatile")
	if out, ws := output(t, plan); out != "0\n0\n0\n40\nchanged\n0\n" || ws.ExitStatus() != 0 {
		t.Errorf("status %v, output %q", ws, out)
	}
	if list := mountsOf(t, t.Name()); len(list) > 0 {
		t.Errorf("the host has mounts: %q", list)
	}
}

func TestProbeUserNamespaces(t *testing.T) {
	newUsers(t, 200000, 65536)
	for _, byName := range []bool{false, true} {
		before := namesLayers.Swap(byName)
		dir := t.TempDir()
		err := ProbeUserNamespaces(dir, dir)
		namesLayers.Store(before)
		if left, _ := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("by names %t: %v, left %v", byName, err, left)
		}
	}
	if err := ProbeUserNamespaces(t.TempDir(), "/proc/sys"); !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "/proc/sys") {
		t.Errorf("a folder whose file system does not map owners: %v", err)
	}
	if err := ProbeUserNamespaces("/proc/sys"); !errors.Is(err, ErrNotSupported) {
		t.Errorf("layers on a file system that does not map owners: %v", err)
	}
}

func TestExecTerminalInUserNamespace(t *testing.T) {
	u := newUsers(t, 200000, 65536)
	plan := usersPlan(t, u, "sleep", "1000")
	plan.Devices = append(plan.Devices, Device{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Major: 5})
	plan.Mounts[2].Options = append(plan.Mounts[2].Options, "gid=5")
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
		unix.Wait4(c.PID, nil, 0, nil)
		unix.Close(c.PIDFD)
	}()
	pidns, err := os.Open("/proc/" + strconv.Itoa(c.PID) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	pr := &Process{Args: []string{"sh", "-c", "stat -c '%u %g' /dev/pts/0; echo x > /dev/tty; test -t 0 && echo is a terminal"}, Env: []string{"PATH=/bin"}, Cwd: "/", User: User{UID: 1000, GID: 1000}}
	pr.Terminal = true
	e, err := Exec(pr, Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd()), Namespaces: unix.CLONE_NEWUSER, Users: u}, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(e.PIDFD)
	master := os.NewFile(uintptr(e.Master), "master")
	defer master.Close()
	var got strings.Builder
	b := make([]byte, 100)
	for {
		n, err := master.Read(b)
		got.Write(b[:n])
		if err != nil { // EIO: the last one who had it open is gone
			break
		}
	}
	unix.Wait4(e.PID, nil, 0, nil)
	if got.String() != "1000 5\r\nx\r\nis a terminal\r\n" {
		t.Errorf("the terminal shows %q", got.String())
	}
}

// unifiedCgroup makes a cgroup in the hierarchy of version 2.
func unifiedCgroup(t *testing.T) string {
	t.Helper()
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var st unix.Statfs_t
		if unix.Statfs(root, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		path, err := os.MkdirTemp(root, "berth-test-")
		if err == nil {
			err = os.Chmod(path, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		})
		return path
	}
	t.Skip("this kernel has no cgroup version 2 mounted")
	return ""
}

// The container's first process is born in its cgroup, and the cgroup namespace that it makes belongs to the user namespace: else it could
// not mount its own view.
func TestUnifiedCgroupInUserNamespace(t *testing.T) {
	u := newUsers(t, 200000, 65536)
	dir, err := os.Open(unifiedCgroup(t))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	cgroups := Cgroups{Unified: int(dir.Fd())}
	plan := usersPlan(t, u, "sh", "-c", "grep ^0: /proc/self/cgroup; cat /sys/fs/cgroup/cgroup.procs; echo x > /sys/fs/cgroup/cgroup.kill; sleep 1000")
	plan.NewCgroup = true
	plan.Mounts = append(plan.Mounts, Mount{Type: "tmpfs", Source: "tmpfs", Target: "/sys"}, Mount{Type: "cgroup", Source: "cgroup", Target: "/sys/fs/cgroup"})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := Start(plan, cgroups, Stdio{-1, int(w.Fd()), int(w.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	pidns, err := os.Open("/proc/" + strconv.Itoa(c.PID) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	pr := &Process{Args: []string{"sh", "-c", "grep ^0: /proc/self/cgroup"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	target := Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd()), Namespaces: unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP, Users: u}
	e, err := Exec(pr, target, cgroups, Stdio{-1, int(w.Fd()), int(w.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	unix.Wait4(e.PID, nil, 0, nil)
	unix.Close(e.PIDFD)
	w.Close()
	b := make([]byte, 1000)
	var out string
	for !strings.Contains(out, "denied") || strings.Count(out, "0::/\n") < 2 {
		n, err := r.Read(b)
		if out += string(b[:n]); err != nil {
			break
		}
	}
	unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	unix.Wait4(c.PID, nil, 0, nil)
	unix.Close(c.PIDFD)
	if strings.Count(out, "0::/\n") != 2 || !strings.Contains(out, "1\n") || !strings.Contains(out, "can't create /sys/fs/cgroup/cgroup.kill: Permission denied") {
		t.Errorf("the container sees:\n%s", out)
	}
}
