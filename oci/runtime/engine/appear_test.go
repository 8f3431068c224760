package engine

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sharing is a plan in the pid namespace of an init.
func sharing(t *testing.T, args ...string) (*Plan, Child) {
	t.Helper()
	plan := testPlan(t, args...)
	c, err := StartInit(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
		end(c)
	})
	plan.NewPID, plan.PIDNamespace = false, "/proc/"+strconv.Itoa(c.PID)+"/ns/pid"
	return plan, c
}

// A container with CAP_SYS_PTRACE makes the init of its pod do what it likes, so the kernel must refuse the init everything.
func TestInitMayDoNothing(t *testing.T) {
	_, c := sharing(t)
	status, err := os.ReadFile("/proc/" + strconv.Itoa(c.PID) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		name, _, _ := strings.Cut(want, "\t")
		if strings.Contains(string(status), "\n"+name) && !strings.Contains(string(status), "\n"+want+"\n") { // a kernel may have no seccomp
			t.Errorf("the init's status lacks %q:\n%s", want, status)
		}
	}
	if list, err := os.ReadDir("/proc/" + strconv.Itoa(c.PID) + "/root/"); err != nil || len(list) > 0 {
		t.Errorf("the init's root holds %v, %v", list, err)
	}
}

// What a container of a shared pid namespace is made of, and the helper of older kernels, has nothing of the host when it is seen there.
func TestStartAppearsWithoutTheHost(t *testing.T) {
	canary, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer canary.Close()
	host, err := os.Stat("/")
	if err != nil {
		t.Fatal(err)
	}
	plan, init := sharing(t, "/bin/true")
	pidns, err := os.Open(plan.PIDNamespace)
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	var stop atomic.Bool
	var watching sync.WaitGroup
	var seen atomic.Int32
	watching.Go(func() {
		for !stop.Load() {
			for _, pid := range nested() {
				if info, err := os.Stat("/proc/" + pid + "/root/"); err == nil && os.SameFile(info, host) {
					t.Error("a process appeared with the host's root")
					return
				}
				list, _ := filepath.Glob("/proc/" + pid + "/fd/*")
				for _, fd := range list {
					if to, err := os.Readlink(fd); err == nil && to == canary.Name() {
						t.Error("a process appeared with a descriptor of its maker's")
						return
					}
				}
				seen.Add(1)
			}
		}
	})
	proc := &Mount{Type: "proc", Source: "proc", Target: "/proc"}
	begun := time.Now()
	for (time.Since(begun) < 2*time.Second || seen.Load() == 0) && time.Since(begun) < time.Minute && !t.Failed() {
		c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
		if err != nil {
			t.Fatal(err)
		}
		end(c)
		fd, err := procByChild(proc, int(pidns.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile("/proc/self/fd/" + strconv.Itoa(fd) + "/1/comm"); err != nil || string(text) != "pod-init\n" {
			t.Fatalf("the namespace's first process is %q, %v", text, err)
		}
		unix.Close(fd)
	}
	stop.Store(true)
	watching.Wait()
	if seen.Load() == 0 {
		t.Error("nothing was seen")
	}
	if err := unix.PidfdSendSignal(init.PIDFD, 0, nil, 0); err != nil {
		t.Errorf("the init has ended: %v", err)
	}
}

// The process that appears late is the terminal's, and as it is to be.
func TestTerminalInSharedNamespace(t *testing.T) {
	plan, _ := sharing(t, "sh", "-c", "trap 'echo hung up' HUP; echo $(cat /proc/1/comm) $(id -u) > /dev/tty; test -c /dev/console; echo $?")
	plan.Process.Terminal, plan.Process.UID = true, 7
	plan.Devices = append(plan.Devices, Device{Path: "/dev/tty", Mode: unix.S_IFCHR | 0o666, Major: 5})
	c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1})
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(c.Master), "master")
	defer master.Close()
	out, _ := io.ReadAll(master) // EIO: the last one who had it open is gone
	if string(out) != "pod-init 7\r\n0\r\n" {
		t.Errorf("the terminal shows %q", out)
	}
	end(c)
}

// Another container swaps a folder of a shared volume while one with a volume below that folder starts: the volume is where the path leads at that
// moment, read-only as it was asked for.
func TestSwappedFolderTakesNoAttributeAway(t *testing.T) {
	volume, source := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(volume+"/dir/shm", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev", volume+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", source, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(source, unix.MNT_DETACH)
	if err := unix.Mount("", source, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	marker := filepath.Base(source)
	if err := os.Mkdir(source+"/"+marker, 0o755); err != nil {
		t.Fatal(err)
	}
	plan := testPlan(t, "grep", "/"+marker+" ", "/proc/self/mountinfo")
	plan.Mounts = append(plan.Mounts,
		Mount{Type: "tmpfs", Source: "tmpfs", Target: "/dev/shm"},
		Mount{Type: "bind", Source: volume, Target: "/vol"},
		Mount{Type: "bind", Source: source + "/" + marker, Target: "/vol/dir/shm", Recursive: true, Propagation: unix.MS_SLAVE, Set: unix.MOUNT_ATTR_RDONLY})
	swap(t, volume, "dir", "link")
	started := 0
	for begun := time.Now(); (time.Since(begun) < 3*time.Second || started == 0 && time.Since(begun) < time.Minute) && !t.Failed(); {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c, err := Start(plan, Cgroups{Unified: -1}, Stdio{-1, int(w.Fd()), int(w.Fd())})
		w.Close()
		if err == nil {
			out, _ := finish(t, c, r)
			if f := strings.Fields(out); strings.Count(out, "\n") != 1 || len(f) < 7 || !strings.HasPrefix(f[5], "ro,") || strings.Contains(out, " shared:") {
				t.Errorf("the volume is mounted as %q", out)
			}
			started++
		}
		r.Close()
	}
	if started == 0 {
		t.Error("no container started")
	}
}

// A start that fails before anything is cloned keeps nothing.
func TestFailedStartLeavesNoDescriptors(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	shared, _ := sharing(t, "/bin/true")
	hooked := testPlan(t, "/bin/true")
	hooked.Pauses = Created
	for _, plan := range []*Plan{shared, hooked} {
		plan.Mounts = append(plan.Mounts, Mount{Type: "bind", Source: "/no/such", Target: "/x"})
		before := 0
		for i := range 20 {
			if _, err := StartAsking(plan, Cgroups{Unified: -1}, Stdio{-1, -1, -1}, func(Point, Child) error { return nil }); err == nil {
				t.Fatal("Start with a source that is not there succeeded")
			}
			if i == 4 {
				before = count()
			}
		}
		if after := count(); after >= before+15 {
			t.Errorf("%d descriptors after 15 starts that failed, %d before", after, before)
		}
	}
}

// Who traces a process before execve writes reports in its place, and gets no other process of the host for it.
func TestReportsNameOneChild(t *testing.T) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	for _, pid := range []uint32{uint32(os.Getpid()), 1} {
		report := [2]uint32{born, pid}
		if _, err := unix.Write(pipe[1], unsafe.Slice((*byte)(unsafe.Pointer(&report)), 8)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Close(pipe[1])
	c := Child{PID: 1 << 30, PIDFD: -1}
	_, err := (&program{}).reports(pipe[0], &c)
	defer unix.Close(c.PIDFD)
	if err == nil || c.PID != os.Getpid() {
		t.Errorf("after two births: process %d, %v", c.PID, err)
	}
}
