package sandbox

import (
	"context"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/spec"
)

func create(t *testing.T, m *Manager, r CreateRequest) string {
	t.Helper()
	id, err := m.CreateContainer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func start(t *testing.T, m *Manager, r CreateRequest) string {
	t.Helper()
	id := create(t, m, r)
	if err := m.StartContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return id
}

func exited(t *testing.T, m *Manager, containerID string) Container {
	t.Helper()
	var got Container
	waitFor(t, func() bool {
		var err error
		if got, err = m.Container(containerID); err != nil {
			t.Fatal(err)
		}
		return got.State == ContainerExited
	})
	return got
}

func TestContainerLife(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := create(t, m, createRequest(p, "c", "exit 3"))
	if again := create(t, m, createRequest(p, "c", "exit 3")); again != c {
		t.Errorf("second create gave %s, want %s", again, c)
	}
	if got, _ := m.Container(c); got.State != ContainerCreated || !got.StartedAt.IsZero() || got.SandboxID != p || got.StopSignal != runtimeapi.Signal_SIGNAL_SIGTERM {
		t.Errorf("created: %+v", got)
	}
	if _, err := m.CreateContainer(t.Context(), createRequest(p, "c", "exit 4")); !errors.Is(err, ErrNameInUse) || !strings.Contains(err.Error(), c) {
		t.Errorf("another configuration: %v", err)
	}
	if err := m.StartContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got := exited(t, m, c)
	if got.ExitCode != 3 || got.Reason != ReasonError || got.StartedAt.IsZero() || got.FinishedAt.Before(got.StartedAt) || got.CreatedAt.IsZero() {
		t.Errorf("exited: %+v", got)
	}
	if err := m.StartContainer(t.Context(), c); !errors.Is(err, ErrState) {
		t.Errorf("start of an exited container: %v", err)
	}
	if err := m.StopContainer(t.Context(), c, time.Second); err != nil {
		t.Errorf("stop of an exited container: %v", err)
	}
	if _, err := m.CreateContainer(t.Context(), createRequest(p, "c", "exit 3")); !errors.Is(err, ErrNameInUse) {
		t.Errorf("the name of an exited container: %v", err)
	}
	for range 2 {
		if err := m.RemoveContainer(t.Context(), c); err != nil {
			t.Error(err)
		}
	}
	if len(m.Containers()) != 0 {
		t.Errorf("Containers = %v", m.Containers())
	}
	remove(t, m, p)
	w.empty()
}

func TestStopSignalsAndThenKills(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	polite := start(t, m, createRequest(p, "polite", `trap "exit 7" TERM; `+w.sign("polite")+`; sleep 1000 & wait`))
	request := createRequest(p, "usr1", `trap "exit 8" USR1; `+w.sign("usr1")+`; sleep 1000 & wait`)
	request.Image = spec.Image{StopSignal: "SIGUSR1"}
	ownSignal := start(t, m, request)
	deaf := start(t, m, createRequest(p, "deaf", `trap "" TERM; `+w.sign("deaf")+`; while :; do sleep 1; done`))
	for _, name := range []string{"polite", "usr1", "deaf"} {
		w.awaitSign(t, name)
	}
	for _, tc := range []struct {
		id    string
		grace time.Duration
		code  int32
	}{{polite, time.Minute, 7}, {ownSignal, time.Minute, 8}, {deaf, 500 * time.Millisecond, 137}} {
		begin := time.Now()
		if err := m.StopContainer(t.Context(), tc.id, tc.grace); err != nil {
			t.Error(err)
		}
		if got, _ := m.Container(tc.id); got.State != ContainerExited || got.ExitCode != tc.code || time.Since(begin) > time.Minute {
			t.Errorf("after %v: %+v, want exit code %d", time.Since(begin), got, tc.code)
		}
	}
	remove(t, m, p)
	w.empty()
}

func TestASecondStopShortensTheFirst(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", `trap "`+w.sign("term")+`" TERM; `+w.sign("set")+`; while :; do sleep 0.01; done`))
	w.awaitSign(t, "set")
	first := make(chan error)
	go func() { first <- m.StopContainer(t.Context(), c, time.Hour) }()
	w.awaitSign(t, "term")
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
	if err := <-first; err != nil {
		t.Error(err)
	}
	remove(t, m, p)
}

func TestCancelledStopIsFinishedByTheNext(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", `trap "" TERM; `+w.sign("set")+`; while :; do sleep 1; done`))
	w.awaitSign(t, "set")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.StopContainer(ctx, c, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("StopContainer = %v", err)
	}
	if got, _ := m.Container(c); got.State != ContainerRunning {
		t.Errorf("state after a cancelled stop = %s", got.State)
	}
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
	remove(t, m, p)
}

func TestStopWorksAtThePidsLimit(t *testing.T) {
	w := newWorld(t)
	w.cfg.Host.PidsLimit = 20
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", `trap "" TERM; bomb() { bomb 2>/dev/null & bomb 2>/dev/null & sleep 100; }; bomb 2>/dev/null; sleep 1000`))
	time.Sleep(100 * time.Millisecond)
	begin := time.Now()
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
	remove(t, m, p)
	w.empty()
}

func TestOOMKilledIsTold(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	limits := &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 12 << 20, MemorySwapLimitInBytes: 12 << 20}}
	main := createRequest(p, "main", "exec tail /dev/zero")
	main.Config.Linux = limits
	child := createRequest(p, "child", "tail /dev/zero; exit 0")
	child.Config.Linux = limits
	if got := exited(t, m, start(t, m, main)); got.Reason != ReasonOOMKilled || got.ExitCode != 137 {
		t.Errorf("first process killed: %+v", got)
	}
	if got := exited(t, m, start(t, m, child)); got.Reason != ReasonCompleted || got.ExitCode != 0 {
		t.Errorf("a child killed: %+v", got)
	}
	remove(t, m, p)
	w.empty()
}

func TestStartErrorIsKept(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	f := w.monitorOf(p)
	for _, fault := range []*engine.Error{{Step: engine.StepExec, Path: "/bin/x", Errno: syscall.ENOENT}, {Step: engine.StepCwd, Path: "/bin/x", Errno: syscall.ENOTDIR}} {
		f.mu.Lock()
		f.startErr = fault
		f.mu.Unlock()
		c := create(t, m, createRequest(p, "c-"+fault.Step[:4], "/bin/x"))
		if err := m.StartContainer(t.Context(), c); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "/bin/x") {
			t.Errorf("StartContainer = %v", err)
		}
		got, _ := m.Container(c)
		if got.State != ContainerExited || got.Reason != ReasonStartError || got.ExitCode != exitStartError || !strings.Contains(got.Message, "/bin/x") || !got.StartedAt.IsZero() {
			t.Errorf("container = %+v", got)
		}
	}
	if names, _ := w.cgroups.List(w.cgroups.Tree() + "/" + p); len(names) != 0 {
		t.Errorf("cgroups are left: %v", names)
	}
	remove(t, m, p)
	w.empty()
}

func TestCreateRefusesBadInputAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	config := podConfig("a")
	config.LogDirectory = w.logs
	p := run(t, m, config)
	before := w.left()
	for name, change := range map[string]func(r *CreateRequest){
		"no command":      func(r *CreateRequest) { r.Config.Command = nil },
		"log directory":   func(r *CreateRequest) { r.Config.LogPath = "missing/0.log" },
		"log path climbs": func(r *CreateRequest) { r.Config.LogPath = "../0.log" },
		"mount source missing": func(r *CreateRequest) {
			r.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "/no/such"}}
		},
		"bad user":        func(r *CreateRequest) { r.Image.User = "nobody-knows" },
		"bad stop signal": func(r *CreateRequest) { r.Image.StopSignal = "SIGWHAT" },
		"device missing":  func(r *CreateRequest) { r.Config.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such"}} },
		"seccomp profile missing": func(r *CreateRequest) {
			r.Config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}}}
		},
		"target unknown": func(r *CreateRequest) {
			r.Config.Linux = &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "abc"}}}
		},
	} {
		r := createRequest(p, "c", "true")
		change(&r)
		_, err := m.CreateContainer(t.Context(), r)
		if invalid := (*spec.InvalidError)(nil); !errors.As(err, &invalid) && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want an invalid request", name, err)
		}
	}
	if _, err := m.CreateContainer(t.Context(), createRequest("abc", "c", "true")); !errors.Is(err, ErrNotFound) {
		t.Errorf("unknown sandbox: %v", err)
	}
	if after := w.left(); len(after) != len(before) || len(m.Containers()) != 0 {
		t.Errorf("before %v, after %v, containers %v", before, after, m.Containers())
	}
	boom := errors.New("boom")
	w.rootfs.err = boom
	if _, err := m.CreateContainer(t.Context(), createRequest(p, "c", "true")); !errors.Is(err, boom) {
		t.Errorf("root filesystem fails: %v", err)
	}
	w.rootfs.err = nil
	create(t, m, createRequest(p, "c", "true"))
	if err := m.StopPod(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if _, err := m.CreateContainer(t.Context(), createRequest(p, "d", "true")); !errors.Is(err, ErrState) {
		t.Errorf("sandbox stopped: %v", err)
	}
	remove(t, m, p)
	w.empty()
}

func TestExecSync(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000"))
	result, err := m.ExecSync(t.Context(), c, []string{"echo out; echo err >&2; exit 5"}, 0)
	if err != nil || string(result.Stdout.Head) != "out\n" || string(result.Stderr.Head) != "err\n" || result.ExitCode != 5 {
		t.Errorf("ExecSync = %q %q %d, %v", result.Stdout.Head, result.Stderr.Head, result.ExitCode, err)
	}
	result, err = m.ExecSync(t.Context(), c, []string{"head -c 40000000 /dev/zero; echo done >&2"}, 0)
	if err != nil || result.Stdout.Len() != maxExecOutput || result.Stdout.TailSize < maxExecOutput-maxExecHead || string(result.Stderr.Head) != "done\n" {
		t.Errorf("40 MB: %d bytes, %q, %v", result.Stdout.Len(), result.Stderr.Head, err)
	}
	begin := time.Now()
	result, err = m.ExecSync(t.Context(), c, []string{"sleep 300 & echo started"}, 0)
	if err != nil || string(result.Stdout.Head) != "started\n" || time.Since(begin) > time.Minute {
		t.Errorf("with a child left: %q, %v after %v", result.Stdout.Head, err, time.Since(begin))
	}
	if _, err = m.ExecSync(t.Context(), c, []string{"missing"}, 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("missing command: %v", err)
	}
	begin = time.Now()
	_, err = m.ExecSync(t.Context(), c, []string{`trap "" TERM; sleep 301 & sleep 301`}, 100*time.Millisecond)
	if !errors.Is(err, ErrTimeout) || time.Since(begin) > time.Minute {
		t.Errorf("timeout: %v after %v", err, time.Since(begin))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err = m.ExecSync(ctx, c, []string{"sleep 301"}, time.Hour); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrTimeout) {
		t.Errorf("the caller's deadline: %v", err)
	}
	names, _ := w.cgroups.List(w.cgroups.Tree() + "/" + p + "/" + c)
	if len(names) != 1 {
		t.Errorf("cgroups of execs = %v, want that of the child that was left", names)
	}
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Error(err)
	}
	if _, err = m.ExecSync(t.Context(), c, []string{"true"}, 0); !errors.Is(err, ErrState) {
		t.Errorf("in an exited container: %v", err)
	}
	if err := m.ReopenLog(t.Context(), c); !errors.Is(err, ErrState) {
		t.Errorf("ReopenLog of an exited container: %v", err)
	}
	remove(t, m, p)
	w.empty()
}

func TestEndOfTheFirstProcessEndsTheOthers(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(p, "c", "sleep 1000 & exit 0"))
	exited(t, m, c)
	waitFor(t, func() bool { return !w.cgroups.Exists(w.cgroups.Tree() + "/" + p + "/" + c) })
	remove(t, m, p)
	w.empty()
}

func TestManyCallsAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	done := make(chan struct{})
	const callers = 30
	for i := range callers {
		go func() {
			defer func() { done <- struct{}{} }()
			for range 3 {
				c, err := m.CreateContainer(t.Context(), createRequest(p, "c", "sleep 1000"))
				if err != nil {
					continue
				}
				switch i % 5 {
				case 0:
					m.StartContainer(t.Context(), c)
				case 1:
					m.StopContainer(t.Context(), c, time.Millisecond)
				case 2:
					m.RemoveContainer(t.Context(), c)
				case 3:
					m.ExecSync(t.Context(), c, []string{"true"}, time.Second)
				case 4:
					m.Containers()
					m.Container(c)
				}
			}
		}()
	}
	for range callers {
		<-done
	}
	remove(t, m, p)
	w.empty()
}

func TestPropagationOfMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root to mount")
	}
	dir := t.TempDir()
	mount := func(flags uintptr, kind string) {
		if err := syscall.Mount("tmpfs", dir, kind, flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount(0, "tmpfs")
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	for _, tc := range []struct {
		flags         uintptr
		shared, slave bool
	}{{syscall.MS_PRIVATE, false, false}, {syscall.MS_SHARED, true, false}} {
		mount(tc.flags, "")
		if shared, slave, err := propagation(dir); shared != tc.shared || slave != tc.slave || err != nil {
			t.Errorf("propagation = %t, %t, %v, want %t, %t", shared, slave, err, tc.shared, tc.slave)
		}
	}
}
