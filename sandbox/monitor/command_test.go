package monitor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/test/wait"
)

// command makes a Command of a shell script, which is executed in a folder of its own and has to leave a process behind.
func (p *pod) command(script, then string) Command {
	p.t.Helper()
	dir := filepath.Join(p.dir, "bundle")
	if err := os.Mkdir(dir, 0o700); err != nil {
		p.t.Fatal(err)
	}
	c := Command{Args: []string{"/bin/sh", "-c", script}, Folder: dir, PIDFile: filepath.Join(dir, "pid"), Console: filepath.Join(dir, "console")}
	if then != "" {
		c.Then = []string{"/bin/sh", "-c", then}
	}
	return c
}

func (p *pod) startBy(c Command, process engine.Process) (int, error) {
	p.t.Helper()
	return p.Start(p.context(), StartRequest{ContainerID: "c1", Plan: &engine.Plan{NewPID: true, Process: process}, LogPath: p.log(), Command: c})
}

// A runtime makes the container, leaves it waiting, and lets it go on; the monitor is its parent then.
func TestContainerOfACommand(t *testing.T) {
	p := newPod(t, nil)
	os.Setenv("BERTH_TEST_SECRET", "1")
	defer os.Unsetenv("BERTH_TEST_SECRET")
	pid, err := p.startBy(p.command(`(while [ ! -e go ]; do sleep 0.01; done; echo out; echo err >&2; exit 7) & echo $! >pid`,
		`echo not in the log; env >env; ls -l /proc/self/fd >fds; >go`), engine.Process{})
	if err != nil {
		t.Fatal(err)
	}
	for file, most := range map[string]int{"env": 2, "fds": 5} { // PATH and PWD; a first line, the standard streams, fds itself
		text, err := os.ReadFile(filepath.Join(p.dir, "bundle", file))
		if err != nil || strings.Count(string(text), "\n") > most {
			t.Errorf("the runtime has more than it should: %v\n%s", err, text)
		}
	}
	e := p.exit()
	if e.PID != pid || e.ExitCode != 7 {
		t.Errorf("exit = %+v, want 7 of process %d", e, pid)
	}
	got := strings.Join(entries(t, p.log()), "|")
	if !strings.Contains(got, "stdout F out") || !strings.Contains(got, "stderr F err") || strings.Contains(got, "not in the log") {
		t.Errorf("log = %s", got)
	}
}

func TestCommandsThatFail(t *testing.T) {
	p := newPod(t, nil)
	for _, tc := range []struct{ name, script, then, says string }{
		{"exit status", "exit 3", "", "exit status 3"},
		{"signal", "kill -9 $$", "", "signal 9"},
		{"no pid file", "true", "", "no such file"},
		{"no number", "echo x >pid", "", "invalid syntax"},
		{"not left to the monitor", "echo $PPID >pid", "", "no child"},
		{"the first process", "echo 1 >pid", "", "no such process"},
		{"it is not let go on", "sleep 1000 & echo $! >pid", "exit 4", "exit status 4"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.t = t
			c := p.command(tc.script, tc.then)
			defer os.RemoveAll(c.Folder)
			_, err := p.startBy(c, engine.Process{})
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("Start = %v, want an error with %q", err, tc.says)
			}
			if text, err := os.ReadFile(c.PIDFile); err == nil && tc.then != "" {
				pid := strings.TrimSpace(string(text))
				waitGone(t, pid)
			}
			if err := p.Signal(p.context(), "c1", unix.SIGTERM); !errors.Is(err, ErrNotFound) {
				t.Errorf("the monitor knows the container: %v", err)
			}
		})
	}
	p.t = t
	c := p.command("", "")
	c.Args = []string{"/no/such/runtime"}
	if _, err := p.startBy(c, engine.Process{}); err == nil || !strings.Contains(err.Error(), "/no/such/runtime") {
		t.Errorf("Start = %v, want an error that names the program", err)
	}
	os.RemoveAll(c.Folder)
	if _, err := p.startBy(p.command("sleep 1000 & echo $! >pid", ""), engine.Process{Console: engine.Console{Terminal: true}}); err == nil ||
		!strings.Contains(err.Error(), "terminal") {
		t.Errorf("Start = %v, want an error about the terminal that did not come", err)
	}
}

// The end of the call is the end of the runtime, whatever it is doing, and the container was not started.
func TestCallerOfACommandGivesUp(t *testing.T) {
	p := newPod(t, nil)
	ctx, cancel := context.WithCancel(p.context())
	c := p.command("exec sleep 1000 & echo $! >child; echo $$ >self; wait", "")
	failed := make(chan error, 1)
	go func() {
		_, err := p.Start(ctx, StartRequest{ContainerID: "c1", Plan: &engine.Plan{NewPID: true}, Command: c})
		failed <- err
	}()
	var self []byte
	p.eventually("it runs", func() bool {
		self, _ = os.ReadFile(filepath.Join(c.Folder, "self"))
		return len(self) > 0
	})
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("Start = %v", err)
	}
	waitGone(t, strings.TrimSpace(string(self)))
	if child, err := os.ReadFile(filepath.Join(c.Folder, "child")); err != nil { // there is no cgroup here that would end it, too
		t.Error(err)
	} else if pid, err := strconv.Atoi(strings.TrimSpace(string(child))); err != nil || unix.Kill(pid, unix.SIGKILL) != nil {
		t.Errorf("kill %q: %v", child, err)
	}
	if err := p.Signal(p.context(), "c1", unix.SIGTERM); !errors.Is(err, ErrNotFound) {
		t.Errorf("the monitor knows the container: %v", err)
	}
}

// waitGone waits until a process has ended and was reaped.
func waitGone(t *testing.T, pid string) {
	t.Helper()
	if !wait.Until(20*time.Second, 5*time.Millisecond, func() bool { _, err := os.Stat("/proc/" + pid); return err != nil }) {
		t.Errorf("process %s is still there", pid)
	}
}
