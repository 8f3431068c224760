package cgroup

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/cgroup/systemdtest"
)

// openSystemd gives a driver below a systemd of this test's own, and checks at the end that nothing is left of either.
func openSystemd(t *testing.T) (*Driver, *systemdtest.Manager) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root to make cgroups")
	}
	m := systemdtest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", m.Address())
	d, err := OpenSystemd(t.Context(), mark("t"), SystemBus)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		mounts := d.hierarchies
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		for _, h := range mounts {
			if _, err := os.Stat(h.mount + d.tree); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s%s is left: %v", h.mount, d.tree, err)
			}
		}
		if units := m.Units(scopeSuffix); len(units) > 0 {
			t.Errorf("units are left: %q", units)
		}
	})
	return d, m
}

// mark is a name of this test's own.
func mark(prefix string) string {
	return fmt.Sprintf("%s%dx%d", prefix, os.Getpid(), time.Now().UnixNano())
}

// podPath is the scope of a pod in a slice as the kubelet names them, in one of the test's own.
func podPath(t *testing.T, d *Driver) (at, slice string) {
	t.Helper()
	slice = mark("kubetest") + "-burstable-pod7.slice"
	at, err := d.PodPath(slice, strings.Repeat("a", 64))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range []string{at, path.Dir(at), path.Dir(path.Dir(at)), path.Dir(path.Dir(path.Dir(at)))} {
			if err := d.RemoveEmpty(p); err != nil {
				t.Error(err)
			}
			if d.Exists(p) {
				t.Errorf("%s is left", p)
			}
		}
	})
	return at, slice
}

func holderOf(t *testing.T, d *Driver, at string) int {
	t.Helper()
	pids, err := d.unified.pids(relative(at + "/hold"))
	if err != nil || len(pids) != 1 {
		t.Fatalf("holders of %s: %v, %v, want one", at, pids, err)
	}
	return pids[0]
}

func TestScopeOfAPod(t *testing.T) {
	d, m := openSystemd(t)
	at, slice := podPath(t, d)
	missing := d.Missing(at)
	if len(missing) != 4 || missing[3] != at {
		t.Errorf("missing are %q, want three slices and the scope", missing)
	}
	for range 2 {
		if err := d.Hold(at); err != nil {
			t.Fatal(err)
		}
	}
	unit := path.Base(at)
	for name, want := range map[string]string{"Slice": slice, "Delegate": "true", "TasksMax": "18446744073709551615", "DefaultDependencies": "false",
		"MemoryMax": "<nil>", "CollectMode": "inactive-or-failed"} {
		if got := m.Property(unit, name); got != want {
			t.Errorf("%s = %s, want %s", name, got, want)
		}
	}
	if comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", holderOf(t, d, at))); err != nil || string(comm) != "berth-hold\n" {
		t.Errorf("the holder is %q, %v", comm, err)
	}
	limit := int64(20)
	g := create(t, d, at+"/"+strings.Repeat("c", 64), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}})
	cmd := run(t, g, "exec sleep 1000")
	if pids, err := d.AllPIDs(g.Path, 10); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("processes of the leaf: %v, %v", pids, err)
	}
	if err := d.RemoveEmpty(at); err != nil || !d.held(at) {
		t.Errorf("a scope with a container in it was ended: %v", err)
	}
	if err := errors.Join(d.Kill(g.Path), d.Wait(t.Context(), g.Path), d.Remove(t.Context(), g.Path)); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if !d.held(at) {
		t.Error("the scope ended with its container")
	}
	for range 2 {
		if err := d.RemoveEmpty(at); err != nil {
			t.Error(err)
		}
	}
	if d.Exists(at) || m.Property(unit, "Slice") != "" {
		t.Error("the scope is still there")
	}
}

// Systemd, or who asks it to, may end a scope at any time.
func TestScopeEndedByOthers(t *testing.T) {
	d, m := openSystemd(t)
	ended := make(chan string, 10)
	d.OnEnd(func(scope string) { ended <- scope })
	at, _ := podPath(t, d)
	leaf := at + "/" + strings.Repeat("c", 64)
	cmd := run(t, create(t, d, leaf, nil), "exec sleep 1000")
	m.Stop(path.Base(at))
	if err := cmd.Wait(); err == nil {
		t.Error("the container lives on")
	}
	select {
	case scope := <-ended:
		if scope != at {
			t.Errorf("told of %s, want %s", scope, at)
		}
	case <-time.After(time.Minute):
		t.Fatal("the end of the scope was not noticed")
	}
	if err := errors.Join(d.Kill(leaf), d.Remove(t.Context(), leaf)); err != nil {
		t.Errorf("remove what is gone: %v", err)
	}
	cmd = run(t, create(t, d, leaf, nil), "exec sleep 1000")
	if m.Property(path.Base(at), "Slice") == "" {
		t.Error("the scope is not systemd's")
	}
	// One that loses its holder alone gets another with the next container.
	unix.Kill(holderOf(t, d, at), unix.SIGKILL)
	<-ended
	if err := d.Hold(at); err != nil {
		t.Error(err)
	}
	holderOf(t, d, at)
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", cmd.Process.Pid)); err != nil {
		t.Error("the container ended with the holder")
	}
	if err := errors.Join(d.Kill(leaf), d.Remove(t.Context(), leaf), d.RemoveEmpty(at)); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	select {
	case scope := <-ended:
		t.Errorf("told of %s, which was removed", scope)
	case <-time.After(100 * time.Millisecond):
	}
}

// A connection ends with a re-execution of systemd, and with the bus; the ends of jobs that were under way are told to nobody.
func TestSystemdExecutesItselfAnew(t *testing.T) {
	d, m := openSystemd(t)
	first, _ := podPath(t, d)
	if err := d.Hold(first); err != nil {
		t.Fatal(err)
	}
	m.Reexecute()
	m.Mute()
	second, err := d.PodPath("", strings.Repeat("b", 64))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Hold(second); err != nil {
		t.Fatal(err)
	}
	holderOf(t, d, first)
	m.Reexecute()
	for _, at := range []string{first, second} {
		if err := d.RemoveEmpty(at); err != nil || d.Exists(at) {
			t.Errorf("remove %s: %v", at, err)
		}
	}
}

// A call that finds the connection broken lets it go, under others that still wait for their answers.
func TestConnectionIsLetGoByAnother(t *testing.T) {
	d, m := openSystemd(t)
	at, _ := podPath(t, d)
	m.Hang()
	held := make(chan error, 1)
	go func() { held <- d.Hold(at) }()
	waitUntil(t, "the call is made", func() bool { return m.Held() == 1 })
	d.systemd.manager.mu.Lock()
	d.systemd.manager.drop()
	d.systemd.manager.mu.Unlock()
	waitUntil(t, "the call is made again, or given up", func() bool { return m.Held() == 2 || len(held) == 1 })
	m.Resume()
	if err := <-held; err != nil {
		t.Error(err)
	}
}

// A bus that hangs is given up.
func TestBusHangs(t *testing.T) {
	address := filepath.Join(t.TempDir(), "bus")
	bus, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer bus.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+address)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := SystemBus(ctx)
	if ctx.Err() != nil {
		t.Errorf("it was waited for: %v", err)
	}
	if err == nil { // systemd's own socket is there
		conn.Close()
	}
}

// A bus that hangs with a connection is left.
func TestConnectionIsGivenUp(t *testing.T) {
	hanging, other := systemdtest.Start(t), systemdtest.Start(t)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", hanging.Address())
	m := newManager(SystemBus)
	defer m.close()
	if _, err := m.state(t.Context(), "none.scope"); err != nil {
		t.Fatal(err)
	}
	hanging.Hang()
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.state(short, "none.scope"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("state = %v, want a deadline", err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", other.Address())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if state, err := m.state(ctx, "none.scope"); err != nil || state != unitGone {
		t.Errorf("state = %q, %v", state, err)
	}
	hanging.Resume()
}

// An init that hangs keeps no pod from being removed. One that was killed before its holder was in its leaf can be, too.
func TestSystemdHangs(t *testing.T) {
	d, m := openSystemd(t)
	at, _ := podPath(t, d)
	if err := d.Hold(at); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.unified.write(relative(at), "cgroup.procs", fmt.Sprint(holderOf(t, d, at))), d.unified.removeOne(relative(at+"/hold"))); err != nil {
		t.Fatal(err)
	}
	monitors, err := d.Monitors()
	if err != nil {
		t.Fatal(err)
	}
	monitors.Close()
	m.Hang()
	// The next daemon can be started, and run what needs no new scope.
	next, err := OpenSystemd(t.Context(), strings.TrimPrefix(strings.TrimSuffix(d.systemd.prefix, "-"), "berth-"), SystemBus)
	if err != nil {
		t.Fatal(err)
	}
	if monitors, err = next.Monitors(); err != nil {
		t.Error(err)
	} else {
		monitors.Close()
	}
	start := time.Now()
	if err := d.RemoveEmpty(at); err != nil || d.Exists(at) {
		t.Errorf("remove: %v", err)
	}
	if took := time.Since(start); took > unitTimeout {
		t.Errorf("it took %s", took)
	}
	m.Resume()
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// A call whose answer is lost, or the daemon before, may have started the scope.
func TestScopeThatIsThereAlready(t *testing.T) {
	d, _ := openSystemd(t)
	at, slice := podPath(t, d)
	other := exec.Command("sleep", "1000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := d.systemd.manager.start(ctx, &scope{name: path.Base(at), slice: slice, pid: other.Process.Pid}); err != nil {
		t.Fatal(err)
	}
	if err := d.Hold(at); err != nil {
		t.Fatal(err)
	}
	if pid := holderOf(t, d, at); pid == other.Process.Pid {
		t.Error("another process is the holder")
	}
	other.Process.Kill()
	other.Wait()
	time.Sleep(50 * time.Millisecond)
	if !d.Exists(at) {
		t.Error("the scope ended with a process that is not its holder")
	}
}

// The next daemon knows a scope, and so does one that makes cgroups by files: systemd ends what is empty.
func TestScopeOfAnEarlierDaemon(t *testing.T) {
	d, m := openSystemd(t)
	at, _ := podPath(t, d)
	if err := d.Hold(at); err != nil {
		t.Fatal(err)
	}
	id := strings.Repeat("a", 64)
	if all, err := d.Sandboxes(); err != nil || len(all) != 1 || all[id] != at || d.Find(id) != at {
		t.Errorf("sandboxes are %q, %v; %s", all, err, d.Find(id))
	}
	next, err := OpenSystemd(t.Context(), strings.TrimPrefix(strings.TrimSuffix(d.systemd.prefix, "-"), "berth-"), SystemBus)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan string, 1)
	next.OnEnd(func(scope string) { ended <- scope })
	if !next.Watch(at) || next.Watch(path.Dir(at)+"/berth-none.scope") {
		t.Error("what is there is not what is found")
	}
	m.Stop(path.Base(at))
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("the end of the scope was not noticed")
	}
	if err := errors.Join(next.Hold(at), next.Close()); err != nil {
		t.Error(err)
	}
	files, holder := open(t), holderOf(t, d, at)
	if err := files.RemoveEmpty(at); err != nil || files.Exists(at) {
		t.Errorf("remove by files: %v", err)
	}
	waitUntil(t, "the unit is gone", func() bool { return len(m.Units(path.Base(at))) == 0 })
	unix.Wait4(holder, nil, 0, nil) // a child of this process, which would outlive the daemon
}

// A holder that is in no scope yet ends with the daemon: no record names it.
func TestHolderThatIsNotKept(t *testing.T) {
	program, err := openHolder()
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	ended := func(h *holder, within time.Duration) bool {
		h.pidfd.SetReadDeadline(time.Now().Add(within))
		return h.wait()
	}
	lost, err := startHolder(program, "lost")
	if err != nil {
		t.Fatal(err)
	}
	if ended(lost, 100*time.Millisecond) {
		t.Error("it ended by itself")
	}
	lost.keep.Close() // what the end of the daemon does
	if !ended(lost, 30*time.Second) {
		t.Error("it lives on")
	}
	lost.pidfd.Close()
	kept, err := startHolder(program, "kept")
	if err != nil {
		t.Fatal(err)
	}
	if err := kept.settle(); err != nil {
		t.Error(err)
	}
	if ended(kept, 100*time.Millisecond) {
		t.Error("it ended although it is kept")
	}
	kept.pidfd.SetReadDeadline(time.Time{})
	if err := kept.kill(); err != nil {
		t.Error(err)
	}
}

func TestMonitorsHaveAScopeOfTheirOwn(t *testing.T) {
	d, m := openSystemd(t)
	for range 2 {
		g, err := d.Monitors()
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
	}
	if got := m.Property(path.Base(d.own), "CPUWeight"); got != fmt.Sprint(weight(monitorShares)) {
		t.Errorf("weight of the monitors = %s", got)
	}
	g, err := d.Runtime("x")
	if err != nil {
		t.Fatal(err)
	}
	g.Close()
	if names, err := d.Runtimes(); err != nil || len(names) != 1 || names[0] != "x" {
		t.Errorf("runtimes are %q, %v", names, err)
	}
	if err := d.Remove(t.Context(), d.RuntimePath("x")); err != nil {
		t.Error(err)
	}
}

func TestParents(t *testing.T) {
	d, _ := openSystemd(t)
	files := open(t)
	long := strings.Repeat("a", 250) + ".slice"
	for _, tc := range []struct {
		d            *Driver
		parent, want string
		rule         string
	}{
		{d, "kubepods-besteffort-pod_1.slice", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod_1.slice/" + d.systemd.prefix + "ID.scope", ""},
		{d, "/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice/" + d.systemd.prefix + "ID.scope", ""},
		{d, "", d.tree + "/" + d.systemd.prefix + "ID.scope", ""},
		{d, "/kubepods/pod1", "", "must be a systemd slice"},
		{d, "/kubepods.slice/pod1.slice", "", `must be the slice's name or its path "/pod1.slice"`},
		{d, "a--b.slice", "", "must be the name of a systemd slice"},
		{d, "-a.slice", "", "must be the name of a systemd slice"},
		{d, "a-.slice", "", "must be the name of a systemd slice"},
		{d, ".slice", "", "must be the name of a systemd slice"},
		{d, "a b.slice", "", "must be the name of a systemd slice"},
		{d, "a.slice:b:c", "", "must be the name of a systemd slice"},
		{d, long, "", "must be the name of a systemd slice"},
		{files, "", files.tree + "/ID", ""},
		{files, "/kubepods/pod1", "/kubepods/pod1", ""},
		{files, "kubepods-pod1.slice", "", "must not be a systemd slice"},
		{files, "/user.slice/session-1.scope", "", "must not be a systemd slice or scope"},
		{files, "/user.slice/session-1.scope/pods", "/user.slice/session-1.scope/pods", ""},
		{files, "/kubepods.slice/kubepods-pod1.slice", "", "must not be a systemd slice"},
	} {
		got, err := tc.d.PodPath(tc.parent, "ID")
		if tc.rule == "" && (err != nil || got != tc.want) || tc.rule != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.rule)) {
			t.Errorf("%s: PodPath(%q) = %q, %v, want %q, %q", tc.d.Name(), tc.parent, got, err, tc.want, tc.rule)
		}
	}
}

func TestNoSystemd(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		t.Skip("systemd is the init of this host")
	}
	if err := CheckSystemd(); err == nil {
		t.Error("systemd is there")
	}
	if d, err := OpenSystemd(ctx, mark("none"), SystemBus); err == nil {
		d.Close()
		t.Error("a driver was opened without systemd")
	}
}
