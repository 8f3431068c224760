package engine

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// busyboxRoot makes a root file system of Debian's busybox-static.
func busyboxRoot(t *testing.T) Mount {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces and mounts")
	}
	dir := t.TempDir()
	lower := filepath.Join(dir, "lower")
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(lower, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	if err := os.WriteFile(filepath.Join(lower, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, applet := range []string{"sh", "cat", "ls", "id", "sleep", "true", "grep", "mount", "env", "stat", "chmod"} {
		if err := os.Link(filepath.Join(lower, "bin/busybox"), filepath.Join(lower, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Mount{Type: "overlay", Options: []string{"lowerdir+=" + lower, "upperdir=" + dir + "/upper", "workdir=" + dir + "/work"}}
}

const allCapabilities = 1<<41 - 1

// held are the capabilities that the tests themselves hold.
func held(t *testing.T) uint64 {
	t.Helper()
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		t.Fatal(err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
}

func testPlan(t *testing.T, args ...string) *Plan {
	caps := held(t)
	return &Plan{
		Rootfs: busyboxRoot(t),
		NewPID: true,
		Mounts: []Mount{
			{Type: "proc", Source: "proc", Target: "/proc", NoSymlinks: true},
			{Type: "tmpfs", Source: "tmpfs", Target: "/dev", Options: []string{"mode=755"}, NoSymlinks: true},
			{Type: "devpts", Source: "devpts", Target: "/dev/pts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
			{Type: "sysfs", Source: "sysfs", Target: "/sys", Set: unix.MOUNT_ATTR_RDONLY, NoSymlinks: true},
			{Type: "mqueue", Source: "mqueue", Target: "/dev/mqueue"},
		},
		Devices:     []Device{{Path: "/dev/null", Mode: unix.S_IFCHR | 0o666, Major: 1, Minor: 3}},
		Links:       []Link{{"/dev/fd", "/proc/self/fd"}},
		Masked:      []string{"/proc/keys", "/sys/firmware", "/proc/scsi", "/no/such"},
		Readonly:    []string{"/proc/sys", "/no/such"},
		Directories: []string{"/data/deep"},
		Process: Process{
			Args: args, Env: []string{"PATH=/bin", "A=b"}, Cwd: "/", User: User{Umask: 0o22},
			Capabilities: Capabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
	}
}

// execOutput runs a process in the container of c, and returns what it prints.
func execOutput(t *testing.T, c Child, pr *Process) string {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pidns, err := os.Open("/proc/" + strconv.Itoa(c.PID) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	e, err := Exec(pr, Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd())}, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), -1})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := finish(t, e, r)
	return out
}

// output starts plan and returns what it prints and its wait status.
func output(t *testing.T, plan *Plan) (string, unix.WaitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
	w.Close()
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return finish(t, c, r)
}

func finish(t *testing.T, c Child, r io.Reader) (string, unix.WaitStatus) {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(c.PID, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	unix.Close(c.PIDFD)
	return string(b), ws
}

func TestStartRunsTheProcess(t *testing.T) {
	plan := testPlan(t, "sh", "-c", "echo pid $$; pwd; id -u; id -G; env; ls -l /dev/fd/; ls -d /data/deep; exit 3")
	plan.Process.UID, plan.Process.GID, plan.Process.Groups = 1000, 2000, []uint32{3000}
	plan.Process.Cwd = "/tmp"
	out, ws := output(t, plan)
	if ws.ExitStatus() != 3 {
		t.Errorf("exit status %v, want 3; output:\n%s", ws, out)
	}
	for _, want := range []string{"pid 1\n", "/tmp\n", "\n1000\n", "2000 3000", "A=b", "/data/deep"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	if n := strings.Count(out, " -> "); n != 3 {
		t.Errorf("%d descriptors are open in the container, want 3:\n%s", n, out)
	}
	if list := mountsOf(t, t.Name()); len(list) > 0 {
		t.Errorf("the host has mounts: %q", list)
	}
}

func hostMounts(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestStartHidesAndProtectsPaths(t *testing.T) {
	out, _ := output(t, testPlan(t, "sh", "-c", "cat /proc/keys; ls /sys/firmware; ls /proc/scsi; echo x > /proc/sys/kernel/domainname; cat /proc/mounts"))
	if !strings.Contains(out, "Read-only file system") {
		t.Errorf("/proc/sys is writable:\n%s", out)
	}
	for _, path := range []string{"/proc/keys", "/sys/firmware"} {
		if !strings.Contains(out, " "+path+" ") {
			t.Errorf("%s is not masked:\n%s", path, out)
		}
	}
	if strings.Contains(out, "ext4") {
		t.Errorf("a mount of the host is still there:\n%s", out)
	}
}

func TestStartSetsCapabilities(t *testing.T) {
	plan := testPlan(t, "grep", "Cap", "/proc/self/status")
	plan.Process.Capabilities = Capabilities{Bounding: 0x3, Effective: 0x1, Permitted: 0x3}
	plan.Process.NoNewPrivs = true
	out, _ := output(t, plan)
	// root: execve gives what the bounding set allows
	for _, want := range []string{"CapInh:\t0000000000000000", "CapBnd:\t0000000000000003", "CapAmb:\t0000000000000000"} {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}

func TestStartReportsTheStepThatFailed(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Plan)
		want   string
		errno  error
	}{
		{"missing command", func(p *Plan) { p.Process.Args = []string{"nope"} }, `exec "nope": executable file not found`, unix.ENOENT},
		{"not executable", func(p *Plan) { p.Process.Args = []string{"/etc"} }, `exec "/etc": permission denied`, unix.EACCES},
		{"cwd through a magic link", func(p *Plan) { p.Process.Cwd = "/proc/self/fd/7" }, `change to directory`, unix.ELOOP},
		{"missing source", func(p *Plan) {
			p.Mounts = append(p.Mounts, Mount{Type: "bind", Source: "/no/such", Target: "/x"})
		}, `open mount source "/no/such"`, unix.ENOENT},
		{"bad option", func(p *Plan) { p.Mounts[1].Options = []string{"nonsense=1"} }, `make file system tmpfs`, unix.EINVAL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			plan := testPlan(t, "true")
			tc.change(plan)
			_, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
			if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, tc.errno) {
				t.Errorf("Start = %v, want %q (%v)", err, tc.want, tc.errno)
			}
		})
	}
}

func TestExecJoinsTheContainer(t *testing.T) {
	c, err := Start(testPlan(t, "sleep", "1000"), Cgroups{Unified: -1}, Stdio{-1, -1, -1})
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
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pr := &Process{Args: []string{"sh", "-c", "ls /proc | grep -x 1; ls /; exit 5"}, Env: []string{"PATH=/bin"}, Cwd: "/"}
	e, err := Exec(pr, Target{PIDFD: c.PIDFD, PIDNamespace: int(pidns.Fd())}, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, ws := finish(t, e, r)
	if ws.ExitStatus() != 5 || !strings.HasPrefix(out, "1\n") || !strings.Contains(out, "data") {
		t.Errorf("exec: status %v, output:\n%s", ws, out)
	}
}

func TestTerminal(t *testing.T) {
	plan := testPlan(t, "sh", "-c", "test -t 0 && test -c /dev/console && echo is a terminal > /dev/console")
	plan.Process.Terminal = true
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(c.Master), "master")
	defer master.Close()
	out, _ := io.ReadAll(master) // EIO: the last one who had it open is gone
	if string(out) != "is a terminal\r\n" {
		t.Errorf("the terminal shows %q", out)
	}
	unix.Wait4(c.PID, nil, 0, nil)
	unix.Close(c.PIDFD)
}

func TestInitReapsAndHolds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces and mounts")
	}
	c, err := StartInit(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c.PIDFD)
	out, err := exec.Command("ls", "-l", "/proc/"+strconv.Itoa(c.PID)+"/fd").Output()
	if err != nil || strings.Contains(string(out), "->") {
		t.Errorf("the init holds descriptors: %s %v", out, err)
	}
	plan := testPlan(t, "sh", "-c", "(sleep 0.2 &) ; cat /proc/1/comm; ls -di /proc/self/ns/pid; exit 0")
	plan.NewPID, plan.PIDNamespace = false, "/proc/"+strconv.Itoa(c.PID)+"/ns/pid"
	got, ws := output(t, plan)
	if ws.ExitStatus() != 0 || !strings.HasPrefix(got, "pod-init\n") {
		t.Errorf("in the shared namespace: %v %q", ws, got)
	}
	unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	if _, err := unix.Wait4(c.PID, nil, 0, nil); err != nil {
		t.Error(err)
	}
}

func BenchmarkStart(b *testing.B) {
	plan := testPlanB(b)
	for b.Loop() {
		c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
		if err != nil {
			b.Fatal(err)
		}
		unix.Wait4(c.PID, nil, 0, nil)
		unix.Close(c.PIDFD)
	}
}

func testPlanB(b *testing.B) *Plan {
	dir := b.TempDir()
	os.MkdirAll(dir+"/bin", 0o755)
	program, _ := os.ReadFile("/bin/busybox")
	os.WriteFile(dir+"/bin/true", program, 0o755)
	os.Mkdir(dir+"/proc", 0o755)
	return &Plan{Rootfs: Mount{Type: "bind", Source: dir}, NewPID: true,
		Mounts:  []Mount{{Type: "proc", Target: "/proc"}},
		Process: Process{Args: []string{"/bin/true"}, Cwd: "/", Capabilities: Capabilities{Bounding: allCapabilities &^ (1 << 24)}}}
}

func TestNoSignalIsIgnoredOrBlocked(t *testing.T) {
	signal.Ignore(unix.SIGUSR2, unix.SIGPIPE)
	defer signal.Reset(unix.SIGUSR2, unix.SIGPIPE)
	out, _ := output(t, testPlan(t, "grep", "^Sig[BI]", "/proc/self/status"))
	if out != "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n" {
		t.Errorf("signals of the container:\n%s", out)
	}
}

// An image may have links that dangle, to what a mount is to be on; none leads out of the root.
func TestMountTargetsThroughDanglingLinks(t *testing.T) {
	plan := testPlan(t, "sh", "-c", "cat /run/inside /escape/file; ls /made/deep")
	lower := strings.TrimPrefix(plan.Rootfs.Options[0], "lowerdir+=")
	victim := t.TempDir() + "/victim"
	for link, target := range map[string]string{"var-run": "/run", "escape": victim, "up": "../../../made", "loop": "loop"} {
		if err := os.Symlink(target, filepath.Join(lower, link)); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/var-run/inside", "/escape/file"} {
		plan.Mounts = append(plan.Mounts, Mount{Type: "bind", Source: file, Target: target})
	}
	plan.Directories = []string{"/up/deep"}
	if out, ws := output(t, plan); out != "content\ncontent\n" || ws.ExitStatus() != 0 {
		t.Errorf("status %v, output %q", ws, out)
	}
	if _, err := os.Lstat(victim); err == nil {
		t.Error("something was made on the host")
	}
	plan = testPlan(t, "true")
	lower = strings.TrimPrefix(plan.Rootfs.Options[0], "lowerdir+=")
	os.Symlink("loop", filepath.Join(lower, "loop"))
	plan.Directories = []string{"/loop/x"}
	if _, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("Start through a loop of links = %v, want ELOOP", err)
	}
}
