package sandbox

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/sandbox/monitor"
)

// runcContainer starts a container that runc makes, and returns its ID and its sandbox's.
func runcContainer(t *testing.T, m *Manager, script string, change func(*CreateRequest)) (sandboxID, containerID string) {
	t.Helper()
	config := podConfig("runc")
	config.LogDirectory = t.TempDir()
	p, err := m.RunPod(t.Context(), config, "runc")
	if err != nil {
		t.Fatal(err)
	}
	r := createRequest(p, "c", "/bin/sh", "-c", script)
	r.Config.LogPath = "c.log"
	if change != nil {
		change(&r)
	}
	return p, start(t, m, r)
}

// slowly makes runs of runc take long, until a file is there; it returns that file.
func slowly(t *testing.T, cfg *Config, command string) (release string) {
	t.Helper()
	runc, dir := cfg.Handlers["runc"], t.TempDir()
	release = filepath.Join(dir, "go")
	script := "#!/bin/sh\ncase \"$*\" in *\" " + command + " \"*) >" + dir + "/began; while [ ! -e " + release + " ]; do sleep 0.01; done ;; esac\nexec " + runc.Path + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "runc"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	runc.Path = filepath.Join(dir, "runc")
	return release
}

// began waits until the runtime is at it.
func began(t *testing.T, release string) {
	t.Helper()
	waitFor(t, func() bool { _, err := os.Stat(filepath.Join(filepath.Dir(release), "began")); return err == nil })
}

// nothing checks that nothing is on the host of a container that does not run.
func nothing(t *testing.T, m *Manager, containerID string) {
	t.Helper()
	c := m.containers[containerID]
	waitFor(t, func() bool {
		group := m.cfg.Cgroups
		_, bundle := os.Lstat(m.bundle(c))
		_, state := os.Lstat(filepath.Join(m.cfg.Handlers["runc"].Root, c.id))
		return !group.Exists(m.containerRecord(c).Cgroup) && !group.Exists(group.RuntimePath(c.id)) && os.IsNotExist(bundle) && os.IsNotExist(state)
	})
}

// A start that is under way in the runtime, at each of its commands, ends with its sandbox.
func TestRuncStopDuringStart(t *testing.T) {
	for _, command := range []string{"create", "start"} {
		t.Run(command, func(t *testing.T) {
			m, cfg := realManager(t)
			release := slowly(t, &cfg, command)
			p, err := m.RunPod(t.Context(), podConfig("runc"), "runc")
			if err != nil {
				t.Fatal(err)
			}
			c := create(t, m, createRequest(p, "c", "/bin/sleep", "1000"))
			started := make(chan error, 1)
			go func() { started <- m.StartContainer(t.Context(), c) }()
			began(t, release)
			if err := m.StopPod(t.Context(), p); err != nil {
				t.Error(err)
			}
			if err := <-started; !errors.Is(err, ErrState) {
				t.Errorf("StartContainer = %v, want ErrState", err)
			}
			nothing(t, m, c)
			remove(t, m, p)
		})
	}
}

// The monitor dies while the runtime makes a container: the runtime goes too, since nobody would be the container's parent.
func TestRuncMonitorDiesDuringStart(t *testing.T) {
	m, cfg := realManager(t)
	release := slowly(t, &cfg, "create")
	p, err := m.RunPod(t.Context(), podConfig("runc"), "runc")
	if err != nil {
		t.Fatal(err)
	}
	c := create(t, m, createRequest(p, "c", "/bin/sleep", "1000"))
	started := make(chan error, 1)
	go func() { started <- m.StartContainer(t.Context(), c) }()
	began(t, release)
	if err := unix.Kill(m.linkOf(m.pods[p]).process.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err == nil {
		t.Error("StartContainer = nil")
	}
	waitFor(t, func() bool { got, _ := m.Pod(p); return got.State == PodNotReady })
	nothing(t, m, c)
	if got, err := m.Container(c); err != nil || got.State != ContainerExited {
		t.Errorf("container = %+v, %v", got, err)
	}
	remove(t, m, p)
}

// The daemon dies while the runtime makes a container: the next one ends that, and can start the container.
func TestRuncDaemonDiesDuringStart(t *testing.T) {
	for _, command := range []string{"create", "start"} {
		t.Run(command, func(t *testing.T) {
			idle, cfg := realManager(t)
			if err := idle.Close(t.Context()); err != nil { // it would sweep what is not its own
				t.Fatal(err)
			}
			var dead atomic.Bool
			end := make(chan struct{})
			release := slowly(t, &cfg, command)
			dying, err := open(context.Background(), cfg, hooks{readExit: monitor.ReadExit, fault: func(string) error {
				if dead.Load() {
					<-end
					return errors.New("the daemon is dead")
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			p, err := dying.RunPod(t.Context(), podConfig("runc"), "runc")
			if err != nil {
				t.Fatal(err)
			}
			c := create(t, dying, createRequest(p, "c", "/bin/sleep", "1000"))
			started := make(chan error, 1)
			go func() { started <- dying.StartContainer(t.Context(), c) }()
			began(t, release)
			dead.Store(true)
			m, err := Open(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.recoveredContainer(t.Context(), c); err != nil {
				t.Fatal(err)
			}
			nothing(t, m, c)
			if err := os.WriteFile(release, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := m.Container(c); err != nil || got.State != ContainerCreated {
				t.Errorf("container = %+v, %v", got, err)
			} else if err := m.StartContainer(t.Context(), c); err != nil {
				t.Errorf("start again: %v", err)
			} else if result, err := m.ExecSync(t.Context(), c, []string{"/bin/sh", "-c", "echo runs"}, 0); err != nil || string(result.Stdout.Head) != "runs\n" {
				t.Errorf("ExecSync = %q, %v", result.Stdout.Head, err)
			}
			remove(t, m, p)
			close(end)
			<-started
			for _, manager := range []*Manager{m, dying} {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				manager.Close(ctx)
				cancel()
			}
		})
	}
}

func TestRuncExec(t *testing.T) {
	m, cfg := realManager(t)
	p, c := runcContainer(t, m, "while :; do sleep 1; done", nil)
	var out, errOut bytes.Buffer
	code, err := m.Exec(t.Context(), c, []string{"/bin/sh", "-c", "cat; echo no >&2; exit 3"},
		Streams{Stdin: strings.NewReader("yes"), Stdout: &out, Stderr: &errOut})
	if code != 3 || err != nil || out.String() != "yes" || errOut.String() != "no\n" {
		t.Errorf("Exec = %d %v, %q, %q", code, err, out.String(), errOut.String())
	}
	out.Reset()
	if code, err = m.Exec(t.Context(), c, []string{"/bin/seq", "200000"}, Streams{Stdout: &out}); code != 0 || err != nil || out.Len() != 1288895 {
		t.Errorf("Exec with much output = %d %v, %d bytes", code, err, out.Len())
	}
	_, err = m.ExecSync(t.Context(), c, []string{"/bin/none"}, 0)
	if err == nil || !strings.Contains(err.Error(), "/bin/none") {
		t.Errorf("exec of what is not there: %v", err)
	}
	rec := m.containerRecord(m.containers[c])
	if names, err := cfg.Cgroups.List(rec.Cgroup); err != nil || len(names) > 0 {
		t.Errorf("cgroups of execs are left: %v, %v", names, err)
	}
	if names, err := cfg.Cgroups.Runtimes(); err != nil || len(names) > 0 {
		t.Errorf("cgroups of runc are left: %v, %v", names, err)
	}
	if left, err := filepath.Glob(filepath.Join(m.bundle(m.containers[c]), "exec-*")); err != nil || len(left) > 0 {
		t.Errorf("folders of execs are left: %v, %v", left, err)
	}
	remove(t, m, p)
	if _, err := m.ExecSync(t.Context(), c, []string{"/bin/true"}, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("exec after the removal: %v", err)
	}
}

func TestRuncExecWithATerminal(t *testing.T) {
	m, _ := realManager(t)
	p, c := runcContainer(t, m, "while :; do sleep 1; done", nil)
	sizes := make(chan TerminalSize, 1)
	sizes <- TerminalSize{Columns: 91, Lines: 17}
	input, typed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	defer typed.Close()
	seen := make(chan string, 100)
	var all strings.Builder
	shown := writerFunc(func(b []byte) (int, error) { seen <- string(b); return len(b), nil })
	ended := make(chan error, 1)
	go func() {
		code, err := m.Exec(t.Context(), c, []string{"/bin/sh", "-c", "test -t 0 && stty size; read line; echo got $line; stty size; exit 5"},
			Streams{Stdin: input, Stdout: shown, Terminal: true, Resize: sizes})
		if code != 5 {
			err = errors.Join(err, errors.New("exit code is not 5"))
		}
		ended <- err
	}()
	await := func(want string) {
		t.Helper()
		deadline := time.After(time.Minute)
		for !strings.Contains(all.String(), want) {
			select {
			case s := <-seen:
				all.WriteString(s)
			case <-deadline:
				t.Fatalf("no %q in %q", want, all.String())
			}
		}
	}
	await("17 91")
	sizes <- TerminalSize{Columns: 50, Lines: 20}
	waitFor(t, func() bool { return len(sizes) == 0 })
	typed.WriteString("hello\n")
	await("got hello")
	await("20 50")
	if err := <-ended; err != nil {
		t.Error(err)
	}
	remove(t, m, p)
}

// A command that is out of time ends with all that it started, in whatever session.
func TestRuncExecEndsWhole(t *testing.T) {
	m, cfg := realManager(t)
	p, c := runcContainer(t, m, "while :; do sleep 1; done", nil)
	_, err := m.ExecSync(t.Context(), c, []string{"/bin/sh", "-c", "setsid sleep 1000 & sleep 1000"}, time.Second)
	if !errors.Is(err, ErrTimeout) {
		t.Errorf("ExecSync = %v, want a timeout", err)
	}
	rec := m.containerRecord(m.containers[c])
	names, err := cfg.Cgroups.List(rec.Cgroup)
	if err != nil || len(names) > 0 {
		t.Errorf("cgroups of execs are left: %v, %v", names, err)
	}
	// Also while the runtime itself is at work: it is stopped here before it has put the command anywhere.
	for _, pause := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), pause)
		m.ExecSync(ctx, c, []string{"/bin/sleep", "1000"}, 0)
		cancel()
		left, err := cfg.Cgroups.Runtimes()
		if names, namesErr := cfg.Cgroups.List(rec.Cgroup); err != nil || namesErr != nil || len(left)+len(names) > 0 {
			t.Errorf("after %v: %v %v left, %v %v", pause, left, names, err, namesErr)
		}
	}
	remove(t, m, p)
}

// A container with a terminal: its output is logged, and its size can be asked for.
func TestRuncTerminal(t *testing.T) {
	m, _ := realManager(t)
	p, c := runcContainer(t, m, "test -t 1 && echo terminal; exit 4", func(r *CreateRequest) { r.Config.Tty = true })
	waitFor(t, func() bool { got, _ := m.Container(c); return got.State == ContainerExited })
	got, err := m.Container(c)
	if err != nil || got.ExitCode != 4 {
		t.Errorf("container = %+v, %v", got, err)
	}
	if text, err := os.ReadFile(got.LogPath); err != nil || !strings.Contains(string(text), " stdout F terminal") {
		t.Errorf("log %q, %v", text, err)
	}
	remove(t, m, p)
}
