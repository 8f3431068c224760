package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
	"github.com/berthd/berth/test/wait"
)

// binary is the monitor that the tests run.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "monitor")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "berth-monitor")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", binary, "github.com/berthd/berth/cmd/berth-monitor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("build the monitor: %v\n%s", err, out))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// pod is a monitor under test, with folders of its own.
type pod struct {
	*Client
	t       *testing.T
	process *Process
	dir     string
	lower   string
}

func newPod(t *testing.T, change func(*Pod)) *pod {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces and mounts")
	}
	p := &pod{t: t, dir: t.TempDir()}
	p.lower = filepath.Join(p.dir, "lower")
	for _, d := range []string{"lower/bin", "lower/etc", "lower/tmp", "records/c1", "records/c2", "logs"} {
		if err := os.MkdirAll(filepath.Join(p.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	for _, applet := range []string{"sh", "sleep", "cat", "true", "hostname", "seq"} {
		if err := os.WriteFile(filepath.Join(p.lower, "bin", applet), busybox, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	spawner, err := NewSpawner(binary, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer spawner.Close()
	request := Pod{SandboxID: "test", Socket: filepath.Join(p.dir, "monitor.sock"), RecordDir: filepath.Join(p.dir, "records"), NewNet: true, NewIPC: true, NewUTS: true}
	if change != nil {
		change(&request)
	}
	if p.process, err = spawner.Spawn(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	p.Client = Dial(request.Socket)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := p.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
			unix.PidfdSendSignal(int(p.process.PIDFD.Fd()), unix.SIGKILL, nil, 0)
		}
		if _, err := unix.Wait4(p.process.PID, nil, 0, nil); err != nil {
			t.Errorf("wait for the monitor: %v", err)
		}
		p.process.PIDFD.Close()
	})
	return p
}

func (p *pod) context() context.Context {
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	p.t.Cleanup(cancel)
	return ctx
}

func (p *pod) plan(args ...string) *engine.Plan {
	for _, d := range []string{"upper", "work"} {
		os.MkdirAll(filepath.Join(p.dir, d), 0o755)
	}
	const caps = 1<<unix.CAP_KILL | 1<<unix.CAP_CHOWN
	return &engine.Plan{
		Rootfs: engine.Mount{Type: "overlay", Options: []string{"lowerdir+=" + p.lower, "upperdir=" + p.dir + "/upper", "workdir=" + p.dir + "/work"}},
		NewPID: true, Mounts: []engine.Mount{{Type: "proc", Source: "proc", Target: "/proc"}},
		Process: engine.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/", Capabilities: engine.Capabilities{Bounding: caps, Effective: caps, Permitted: caps}},
	}
}

func (p *pod) log() string { return filepath.Join(p.dir, "logs/c1.log") }

func (p *pod) start(args ...string) int {
	p.t.Helper()
	pid, err := p.Start(p.context(), StartRequest{ContainerID: "c1", Plan: p.plan(args...), LogPath: p.log()})
	if err != nil {
		p.t.Fatalf("Start: %v", err)
	}
	return pid
}

// exit waits for the exit of c1.
func (p *pod) exit() Exit {
	p.t.Helper()
	ctx, cancel := context.WithCancel(p.context())
	defer cancel()
	var got Exit
	p.Watch(ctx, func(e Exit) { got = e; cancel() })
	if got.ContainerID == "" {
		p.t.Fatal("no exit was told")
	}
	return got
}

func entries(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		stamp, rest, _ := strings.Cut(line, " ")
		if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil {
			t.Errorf("log entry %q: %v", line, err)
		}
		out = append(out, strings.TrimSuffix(rest, "\n"))
	}
	return out
}

func TestContainerRunsLogsAndExits(t *testing.T) {
	p := newPod(t, func(r *Pod) {
		r.Hostname = "harbour"
		r.Sysctls = [][2]string{{"net.ipv4.ip_unprivileged_port_start", "81"}}
	})
	hello, err := p.Hello(p.context())
	if err != nil || hello.PID != p.process.PID || hello.Version != wire.Version {
		t.Fatalf("Hello = %+v, %v", hello, err)
	}
	pid := p.start("sh", "-c", "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; echo err >&2; printf unfinished; exit 7")
	e := p.exit()
	if e.PID != pid || e.ExitCode != 7 || e.OOMKilled || time.Since(time.Unix(0, e.FinishedAt)) > time.Minute {
		t.Errorf("exit = %+v", e)
	}
	recorded, err := ReadExit(filepath.Join(p.dir, "records/c1", wire.ExitFile))
	if err != nil || recorded != e {
		t.Errorf("recorded %+v, %v; told %+v", recorded, err, e)
	}
	got := strings.Join(entries(t, p.log()), "|")
	for _, want := range []string{"stdout F harbour", "stdout F 81", "stderr F err", "stdout F unfinished"} {
		if !strings.Contains(got, want) {
			t.Errorf("log lacks %q: %s", want, got)
		}
	}
	if err := p.Signal(p.context(), "c1", unix.SIGTERM); !errors.Is(err, ErrExited) {
		t.Errorf("signal after the exit: %v", err)
	}
	if err := errors.Join(p.Forget(p.context(), "c1"), p.Forget(p.context(), "c1")); err != nil {
		t.Error(err)
	}
	if err := p.Signal(p.context(), "c1", unix.SIGTERM); !errors.Is(err, ErrNotFound) {
		t.Errorf("signal after Forget: %v", err)
	}
}

func TestLongLinesAreCut(t *testing.T) {
	p := newPod(t, nil)
	p.start("sh", "-c", "s=$(seq -s '' 1 9000); printf \"$s\"; echo end; echo next")
	p.exit()
	var long strings.Builder
	list := entries(t, p.log())
	for i, e := range list[:len(list)-1] {
		tag, rest, _ := strings.Cut(strings.TrimPrefix(e, "stdout "), " ")
		if want := map[bool]string{true: "P", false: "F"}[i < len(list)-2]; tag != want {
			t.Errorf("entry %d has tag %s, want %s", i, tag, want)
		}
		if tag == "P" && len(rest) != 16<<10 {
			t.Errorf("partial entry %d has %d bytes", i, len(rest))
		}
		long.WriteString(rest)
	}
	if s := long.String(); !strings.HasPrefix(s, "123456") || !strings.HasSuffix(s, "89999000end") || len(s) != 9+180+2700+32004+3 {
		t.Errorf("the long line came out with %d bytes: %.20s...%s", len(s), s, s[len(s)-10:])
	}
	if last := list[len(list)-1]; last != "stdout F next" {
		t.Errorf("last entry %q", last)
	}
}

func TestStartErrorIsTheEnginesAndLeavesNothing(t *testing.T) {
	p := newPod(t, nil)
	_, err := p.Start(p.context(), StartRequest{ContainerID: "c1", Plan: p.plan("no-such"), LogPath: p.log()})
	var e *engine.Error
	if !errors.As(err, &e) || e.Step != engine.StepExec || !errors.Is(err, unix.ENOENT) {
		t.Errorf("Start = %v", err)
	}
	p.start("true") // the ID is free again
	if e := p.exit(); e.ExitCode != 0 {
		t.Errorf("exit = %+v", e)
	}
}

func TestExecRunsAndEndsWithItsCall(t *testing.T) {
	p := newPod(t, nil)
	p.start("sleep", "1000")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	command := func(args ...string) *engine.Process {
		return &engine.Process{Args: args, Env: []string{"PATH=/bin"}, Cwd: "/"}
	}
	status, err := p.Exec(p.context(), ExecRequest{ContainerID: "c1", Process: command("sh", "-c", "echo $$; exit 4"), Stdout: w})
	w.Close()
	b := make([]byte, 100)
	n, _ := r.Read(b)
	if err != nil || status.ExitCode != 4 || n == 0 || string(b[:n]) == "1\n" {
		t.Errorf("ExecSync = %v, %v; output %q", status, err, b[:n])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	long := fmt.Sprint(10_000_000 + os.Getpid())
	if _, err := p.Exec(ctx, ExecRequest{ContainerID: "c1", Process: command("sleep", long)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ExecSync past its deadline = %v", err)
	}
	p.eventually("the exec ends with its call", func() bool {
		out, _ := exec.Command("pgrep", "-f", "^sleep "+long+"$").Output()
		return len(out) == 0
	})
	if err := p.Signal(p.context(), "c1", unix.SIGKILL); err != nil {
		t.Error(err)
	}
	if e := p.exit(); e.ExitCode != 137 {
		t.Errorf("exit = %+v", e)
	}
	if _, err := p.Exec(p.context(), ExecRequest{ContainerID: "c1", Process: command("true")}); !errors.Is(err, ErrExited) {
		t.Errorf("ExecSync in an exited container = %v", err)
	}
}

// Threat B21: a pod that can write to the log folder must not lead the monitor's writes elsewhere.
func TestReopenLogRefusesWhatIsNoLog(t *testing.T) {
	p := newPod(t, nil)
	p.start("sleep", "1000")
	victim := filepath.Join(p.dir, "victim")
	if err := os.WriteFile(victim, []byte("intact"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		plant func() error
	}{
		{"symbolic link", func() error { return os.Symlink(victim, p.log()) }},
		{"hard link", func() error { return os.Link(victim, p.log()) }},
		{"FIFO", func() error { return unix.Mkfifo(p.log(), 0o600) }},
		{"folder", func() error { return os.Mkdir(p.log(), 0o700) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			os.Remove(p.log())
			if err := tc.plant(); err != nil {
				t.Fatal(err)
			}
			if err := p.ReopenLog(p.context(), "c1"); err == nil {
				t.Error("ReopenLog took it")
			}
		})
	}
	os.Remove(p.log())
	if err := p.ReopenLog(p.context(), "c1"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "intact" {
		t.Errorf("victim = %q", b)
	}
}

func TestSharedPIDNamespace(t *testing.T) {
	p := newPod(t, func(r *Pod) { r.SharedPID = true })
	hello, err := p.Hello(p.context())
	if err != nil || hello.PIDNSInit == 0 {
		t.Fatalf("Hello = %+v, %v", hello, err)
	}
	plan := p.plan("sh", "-c", "cat /proc/1/comm; echo $$")
	plan.NewPID, plan.PIDNamespace = false, fmt.Sprintf("/proc/%d/ns/pid", hello.PIDNSInit)
	if _, err := p.Start(p.context(), StartRequest{ContainerID: "c1", Plan: plan, LogPath: p.log()}); err != nil {
		t.Fatal(err)
	}
	p.exit()
	if got := entries(t, p.log()); len(got) != 2 || got[0] != "stdout F pod-init" || got[1] == "stdout F 1" {
		t.Errorf("log = %q", got)
	}
}

// A birth that hangs, as on a network file system that is gone, holds up no other container.
func TestExitIsToldDuringABirth(t *testing.T) {
	p := newPod(t, nil)
	fifo := filepath.Join(p.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	hanging := p.plan("true")
	hanging.Rootfs = engine.Mount{Type: "bind", Source: p.lower}
	hanging.NewPID, hanging.PIDNamespace = false, fifo
	p.start("sleep", "0.5")
	failed := make(chan error)
	go func() {
		_, err := p.Start(p.context(), StartRequest{ContainerID: "c2", Plan: hanging})
		failed <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	told := false
	p.Watch(ctx, func(Exit) { told = true; cancel() })
	if !told {
		t.Error("the exit was not told")
	}
	f, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := <-failed; err == nil {
		t.Error("Start took a FIFO for a namespace")
	}
	if list := p.children(); list != "" {
		t.Errorf("the monitor has children: %s", list)
	}
}

// A start whose call ends either has come about, and its caller was told, or leaves nothing.
func TestStartThatIsCancelledLeavesNothing(t *testing.T) {
	p := newPod(t, nil)
	if _, err := p.Hello(p.context()); err != nil {
		t.Fatal(err)
	}
	files := p.descriptors()
	plan := p.plan("sleep", "1000")
	for i := range 200 { // so that it takes its time
		plan.Mounts = append(plan.Mounts, engine.Mount{Type: "tmpfs", Source: "tmpfs", Target: fmt.Sprint("/tmp/", i)})
	}
	started, cancelled := 0, 0
	for i := range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i)*300*time.Microsecond)
		id := fmt.Sprint("c", i)
		_, err := p.Start(ctx, StartRequest{ContainerID: id, Plan: plan, LogPath: p.log()})
		cancel()
		if err == nil {
			started++
			if err := p.Signal(p.context(), id, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			p.exit()
			if err := p.Forget(p.context(), id); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Start = %v", err)
		}
		cancelled++
		p.eventually("the start is undone", func() bool {
			hello, err := p.Hello(p.context())
			return err == nil && len(hello.Containers) == 0 && p.children() == ""
		})
	}
	t.Logf("%d started, %d were cancelled", started, cancelled)
	if started == 0 {
		p.start("true")
	}
	p.eventually("no descriptor is left", func() bool { return p.descriptors() <= files+8 }) // the last container's
}

// children are the processes of all the monitor's threads; "" also where the kernel does not tell.
func (p *pod) children() (list string) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.process.PID))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		list += string(b)
	}
	return list
}

// eventually waits for what comes about by itself.
func (p *pod) eventually(what string, ok func() bool) {
	p.t.Helper()
	if !wait.Until(20*time.Second, 5*time.Millisecond, ok) {
		p.t.Fatal(what, ": it does not come about")
	}
}

// The limits that the container does not set are the host's.
func TestContainerMayDumpCore(t *testing.T) {
	p := newPod(t, nil)
	pid := p.start("sleep", "1000")
	var own, got unix.Rlimit
	if err := errors.Join(unix.Prlimit(0, unix.RLIMIT_CORE, nil, &own), unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &got)); err != nil || own != got {
		t.Errorf("limit on core files %v, want %v; %v", got, own, err)
	}
}

// Threat B31: what a container writes and executes does not stay in the monitor.
func TestMemoryStaysFlat(t *testing.T) {
	p := newPod(t, nil)
	p.start("sh", "-c", "seq 1 100000; sleep 1; seq 1 1200000; sleep 1000")
	execs := func(n int) {
		for range n {
			if _, err := p.Exec(p.t.Context(), ExecRequest{ContainerID: "c1", Process: &engine.Process{Args: []string{"/bin/true"}, Cwd: "/"}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	logged := func(size int64) {
		if !wait.Until(time.Minute, 10*time.Millisecond, func() bool {
			st, err := os.Stat(p.log())
			return err == nil && st.Size() >= size
		}) {
			t.Fatalf("the log does not come to %d bytes", size)
		}
	}
	execs(200)
	logged(4 << 20)
	before, files := p.resident(), p.descriptors()
	execs(1000)
	logged(50 << 20)
	defer func() {
		if t.Failed() {
			t.Logf("the monitor has %d KiB and %d descriptors, had %d and %d", p.resident(), p.descriptors(), before, files)
		}
	}()
	p.eventually("its memory is as before", func() bool { return p.resident() <= before+2<<10 })
	p.eventually("its descriptors are as before", func() bool { return p.descriptors() <= files+2 })
}

// resident is the monitor's memory in KiB.
func (p *pod) resident() int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.process.PID))
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var size int
	if n, _ := fmt.Sscan(rest, &size); n != 1 || err != nil {
		p.t.Fatalf("no VmRSS in %q, %v", b, err)
	}
	return size
}

func (p *pod) descriptors() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.process.PID))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(list)
}

func TestSetupErrorIsTold(t *testing.T) {
	p := newPod(t, func(r *Pod) { r.Sysctls = [][2]string{{"net.no.such", "1"}} })
	if _, err := p.Hello(p.context()); err == nil || !strings.Contains(err.Error(), "net.no.such") {
		t.Errorf("Hello = %v, want the kernel parameter that is not there", err)
	}
}

// Threats A1, B1, B31: the monitor cannot be read, and what runs is a copy that nothing can change.
func TestMonitorIsSealed(t *testing.T) {
	p := newPod(t, nil)
	if _, err := p.Hello(p.context()); err != nil {
		t.Fatal(err)
	}
	exe := fmt.Sprintf("/proc/%d/exe", p.process.PID)
	if f, err := os.OpenFile(exe, os.O_WRONLY, 0); err == nil {
		_, err = f.Write([]byte("x"))
		f.Close()
		if err == nil {
			t.Error("the running binary can be overwritten")
		}
	}
	f, err := os.Open(exe)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if want := unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL; err != nil || seals&want != want {
		t.Errorf("seals = %#x, %v", seals, err)
	}
	// The files of a process that is not dumpable belong to root whoever it runs as; here that shows nothing, so its
	// name stands for protect having run.
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.process.PID))
	if err != nil || string(name) != "berth-monitor\n" {
		t.Errorf("the monitor's name is %q, %v", name, err)
	}
}

// Threat B1: should the way to the socket be open, the monitor still answers nobody but root.
func TestMonitorAnswersRootOnly(t *testing.T) {
	p := newPod(t, nil)
	for path, mode := range map[string]os.FileMode{filepath.Dir(p.dir): 0o755, p.dir: 0o755, filepath.Join(p.dir, "monitor.sock"): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	somebody := engine.UserNamespace{UIDs: []engine.IDMap{{Outside: 1000, Length: 1}}, GIDs: []engine.IDMap{{Outside: 1000, Length: 1}}}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// By the folder's descriptor: the way to where the tests are may be closed to others, or too long.
	folder, err := os.Open(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	err = somebody.Impersonate(func() error {
		return unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/monitor.sock", folder.Fd())})
	})
	if err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	unix.SetNonblock(fd, true)
	conn, err := wire.NewConn(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Send(wire.Message{Verb: wire.VerbHello}) // it may be closed already
	if m, err := conn.Receive(); err == nil {
		t.Errorf("the monitor answers user 1000 by %v", m.Verb)
	}
}

// What an older monitor would leave out without a word is not asked of it.
func TestOlderMonitorsAreNotAskedForMore(t *testing.T) {
	p := newPod(t, nil)
	p.start("sleep", "100")
	p.version.Store(1)
	process := &engine.Process{Args: []string{"true"}, Cwd: "/"}
	process.Terminal = true
	_, err := p.Exec(p.context(), ExecRequest{ContainerID: "c1", Process: process})
	if !errors.Is(err, ErrTooOld) {
		t.Errorf("exec with a terminal = %v, want ErrTooOld", err)
	}
	if err := Dial(p.socket).need(p.context(), wire.Version, "what it can do"); err != nil {
		t.Errorf("need of what the monitor speaks = %v", err)
	}
}

func TestPodWithUserNamespace(t *testing.T) {
	ids := []engine.IDMap{{Outside: 200000, Length: 65536}}
	p := newPod(t, func(r *Pod) {
		r.Hostname, r.SharedPID, r.UIDs, r.GIDs = "harbour", true, ids, ids
		r.Sysctls = [][2]string{{"kernel.shm_rmid_forced", "1"}, {"net.ipv4.ip_unprivileged_port_start", "81"}, {"kernel.domainname", "sea"}}
	})
	hello, err := p.Hello(p.context())
	if err != nil {
		t.Fatal(err)
	}
	mine := func(pid int, name string) bool {
		a, errA := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
		b, errB := os.Readlink("/proc/self/ns/" + name)
		if err := errors.Join(errA, errB); err != nil {
			t.Fatal(err)
		}
		return a == b
	}
	for name, want := range map[string]bool{"user": true, "mnt": true, "pid": true, "net": false, "ipc": false, "uts": false} {
		if mine(hello.PID, name) != want {
			t.Errorf("%s: the monitor is in the host's: %t, want %t", name, !want, want)
		}
		if !mine(os.Getpid(), name) {
			t.Errorf("%s: the spawner's process is elsewhere", name)
		}
	}
	if mine(hello.PIDNSInit, "user") {
		t.Error("the pod's init is in the host's user namespace")
	}
	plan := p.plan("sh", "-c", "hostname; cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/domainname; sleep 1000")
	plan.Users = &engine.UserNamespace{UIDs: ids, GIDs: ids}
	if _, err := p.Start(p.context(), StartRequest{ContainerID: "c1", Plan: plan, LogPath: p.log()}); err != nil {
		t.Fatal(err)
	}
	wait.Until(30*time.Second, 5*time.Millisecond, func() bool { return len(entries(t, p.log())) >= 4 })
	if got := strings.Join(entries(t, p.log()), "|"); got != "stdout F harbour|stdout F 1|stdout F 81|stdout F sea" {
		t.Errorf("log: %s", got)
	}
	// A monitor without the namespace says so, and does not run the container as the host's root.
	without := newPod(t, nil)
	if _, err := without.Start(without.context(), StartRequest{ContainerID: "c1", Plan: plan}); err == nil || !strings.Contains(err.Error(), "no user namespace") {
		t.Errorf("a container with a user namespace in a pod without: %v", err)
	}
}

// A crowd of callers waits for a monitor that is slow, and is not sent away.
func TestManyCallersWait(t *testing.T) {
	p := newPod(t, nil)
	if _, err := p.Hello(p.context()); err != nil {
		t.Fatal(err)
	}
	signal := func(sig unix.Signal) {
		if err := unix.PidfdSendSignal(int(p.process.PIDFD.Fd()), sig, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	defer signal(unix.SIGCONT)
	for i := range 600 {
		conn, err := wire.Connect(filepath.Join(p.dir, "monitor.sock"))
		if err != nil {
			t.Fatalf("caller %d: %v", i, err)
		}
		defer conn.Close()
	}
}
