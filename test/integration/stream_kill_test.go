package integration_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/transcript"
)

// TestDaemonKilledDuringStreams: the end of the daemon is the end of the commands that its clients run, and of nothing else.
func TestDaemonKilledDuringStreams(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("killed"))
	withStdin := func(c *runtimeapi.ContainerConfig) { c.Stdin = true }
	writes := pod.Run(d.Shell("writes", "i=0; while :; do echo line $((i=i+1)); sleep 0.01; done", withStdin))
	once := pod.Run(d.Shell("once", "while read l; do echo got $l; done; exit 8", withStdin, func(c *runtimeapi.ContainerConfig) { c.StdinOnce = true }))
	terminal := pod.Run(d.Shell("terminal", "while :; do read l && echo got $l; done", withStdin, func(c *runtimeapi.ContainerConfig) { c.Tty = true }))
	containers := []*harness.Container{writes, once, terminal}
	var pids []int
	for _, c := range containers {
		pids = append(pids, c.PID())
	}
	monitor := monitorPID(t, pod)
	before := openFiles(t, monitor)

	client := harness.Streaming{Daemon: d, Transport: streamclient.SPDY}
	ctx, cancel := context.WithCancel(d.Context())
	defer cancel()
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	connect := func(s sandbox.Streams, call func(sandbox.Streams) error) *transcript.Transcript {
		in, typed := io.Pipe()
		out := new(transcript.Transcript)
		s.Stdin, s.Stdout = in, out
		calls.Go(func() { call(s) })
		calls.Go(func() {
			defer typed.Close()
			io.WriteString(typed, "hello\n")
			<-ctx.Done()
		})
		return out
	}
	attach := func(c *harness.Container) *transcript.Transcript {
		return connect(sandbox.Streams{Terminal: c == terminal}, func(s sandbox.Streams) error { return client.Attach(ctx, c.ID, s) })
	}
	attach(writes).Wait(t, "line ")
	attach(once).Wait(t, "got hello")
	attach(terminal).Wait(t, "got hello")
	const script = "trap '' HUP TERM INT; sleep 4711 & setsid sleep 4711 & read l; echo read $l; while :; do sleep 4711; done"
	for _, withTerminal := range []bool{false, true} {
		connect(sandbox.Streams{Terminal: withTerminal}, func(s sandbox.Streams) error {
			_, err := client.Exec(ctx, writes.ID, []string{"sh", "-c", script}, s)
			return err
		}).Wait(t, "read hello")
	}
	d.Eventually(harness.Timeout, "the processes of the commands are there", func() bool { return sleepers(t, writes) >= 4 })

	d.Kill()
	d.Eventually(10*time.Second, "the commands end without a daemon", func() bool { return sleepers(t, writes) == 0 })
	d.Start()
	for i, c := range containers {
		if s := c.Status(); s.State != running || c.PID() != pids[i] {
			t.Errorf("%s is %s, PID %d, was %d", c.Config.Metadata.Name, s.State, c.PID(), pids[i])
		}
	}
	d.Eventually(10*time.Second, "the monitor has what it had", func() bool { return openFiles(t, monitor) <= before+2 })
	attach(terminal).Wait(t, "got hello")
	attach(once).Wait(t, "got hello") // its stdin is as open as it was
	cancel()
	if s := once.Wait(10 * time.Second); s.ExitCode != 8 {
		t.Errorf("the end of the client of a container with StdinOnce: code %d", s.ExitCode)
	}
	writes.Stop(0)
	for i, l := range writes.Lines() {
		if want := fmt.Sprint("line ", i+1); l.Text != want {
			t.Fatalf("the log has %q, want %q", l.Text, want)
		}
	}
	d.Check()
}

func openFiles(t testing.TB, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// sleepers counts the processes below a container's cgroup that sleep for 4711 seconds.
func sleepers(t testing.TB, c *harness.Container) (n int) {
	t.Helper()
	processes, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		command, _ := os.ReadFile("/proc/" + p.Name() + "/cmdline")
		if !strings.Contains(string(command), "sleep\x004711") {
			continue
		}
		if groups, _ := os.ReadFile("/proc/" + p.Name() + "/cgroup"); strings.Contains(string(groups), c.ID) {
			n++
		}
	}
	return n
}
