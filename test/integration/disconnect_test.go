package integration_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/wait"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// usage is what a process takes of the host.
type usage struct{ files, threads, pss int }

// usageOf measures a process. Memory is in KiB.
func usageOf(t testing.TB, pid int) usage {
	t.Helper()
	count := func(dir string) int {
		entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), dir))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	pss, err := berthd.PSS(pid)
	if err != nil {
		t.Fatal(err)
	}
	return usage{files: count("fd"), threads: count("task"), pss: pss}
}

// within tells whether a process takes no more than most.
func (u usage) within(most usage) bool {
	return u.files <= most.files && u.threads <= most.threads && u.pss <= most.pss
}

// settle waits until what a process takes has become no less for some seconds, and returns it.
func settle(t testing.TB, pid int) usage {
	t.Helper()
	least, since := usageOf(t, pid), time.Now()
	for time.Since(since) < 7*time.Second {
		time.Sleep(200 * time.Millisecond)
		if now := usageOf(t, pid); now.files < least.files || now.pss < least.pss-256 {
			least, since = now, time.Now()
		}
	}
	return least
}

// TestDisconnects is 5,000 clients of exec and attach, with and without a terminal, over SPDY and WebSocket, that leave at random moments: in
// the middle of the request, while streams are opened, while output stalls or input is not read; some by a reset. Nothing of them stays in the daemon
// or in the monitor. That no goroutine stays either is in TestDisconnectsLeaveNothing of package streaming, which can look; here they would be
// 10 MiB at least.
func TestDisconnects(t *testing.T) {
	clients := 5000
	if harness.Handler != "" { // another runtime is a process or two for each command
		clients = 500
	}
	if text := os.Getenv("BERTH_TEST_CLIENTS"); text != "" {
		var err error
		if clients, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	const atOnce = 8
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("disconnects"))
	plain := pod.Run(d.Shell("plain", "while read x; do echo got $x; done; sleep 3600", input))
	terminal := pod.Run(d.Shell("terminal", "trap '' INT HUP QUIT TSTP; while :; do while read x; do echo got $x; done; done",
		func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true }))
	busy := pod.Run(d.Container("busy", []string{"probe", "lines", "500", "line"}))
	monitor := monitorPID(t, pod)
	containers := []*harness.Container{plain, terminal, busy}
	crowd := func(n int) {
		var wg sync.WaitGroup
		for i := range atOnce {
			r := rand.New(rand.NewPCG(uint64(n), uint64(i)))
			chaos := streamclient.Chaos{Longest: 60 * time.Millisecond,
				Exec: func(_ context.Context, cmd []string, p streamclient.Process) (string, error) {
					return d.ExecURL(d.Context(), containers[r.IntN(len(containers))].ID, cmd, p)
				},
				Attach: func(_ context.Context, p streamclient.Process) (string, error) {
					return d.AttachURL(d.Context(), containers[r.IntN(len(containers))].ID, p)
				}}
			wg.Go(func() {
				for range n / atOnce {
					if err := chaos.Once(t.Context(), r); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	// A monitor gives memory back two seconds after some tens of requests.
	calm := func() {
		for range 40 {
			plain.Sh("true")
		}
	}
	crowd(400)
	calm()
	// The daemon gives memory back some seconds after it has become quiet, and who has left without a word is noticed within one or two.
	daemonBefore, monitorBefore := settle(t, d.PID()), settle(t, monitor)
	begin := time.Now()
	crowd(clients)
	took := time.Since(begin)
	calm()
	// Go keeps its threads, each with a stack of its own; how many it has depends on how much was under way at once.
	daemonMost := usage{files: daemonBefore.files + 4, threads: daemonBefore.threads + 40, pss: daemonBefore.pss + 9<<10}
	monitorMost := usage{files: monitorBefore.files + 2, threads: monitorBefore.threads + 40, pss: monitorBefore.pss + 2<<10}
	var daemonAfter, monitorAfter usage
	fits := wait.Until(3*harness.Timeout, 3*time.Second, func() bool {
		daemonAfter, monitorAfter = usageOf(t, d.PID()), usageOf(t, monitor)
		if !monitorAfter.within(monitorMost) { // else the daemon is left in peace: while it has something to do it keeps its memory
			calm()
		}
		return daemonAfter.within(daemonMost) && monitorAfter.within(monitorMost)
	})
	t.Logf("%d clients in %v; daemon %+v, then %+v; monitor %+v, then %+v (memory in KiB)", clients, took, daemonBefore, daemonAfter, monitorBefore, monitorAfter)
	if !fits {
		t.Errorf("at most %+v and %+v may stay", daemonMost, monitorMost)
	}
	for _, c := range containers {
		if s := c.Status(); s.State != running {
			t.Errorf("container %s is %s", c.Config.Metadata.Name, s.State)
		}
	}
	for _, c := range containers {
		d.Eventually(harness.Timeout, "no command of a client runs", func() bool {
			return c.Sh(`ps -o args | grep -E "^(sleep 600|cat|stty|sh$|sh -c (exit|trap '' HUP|while :; do stty|sleep 600))"; true`) == ""
		})
	}
	for _, transport := range bothTransports {
		if r, err := streamed(plain, transport, "echo", "still here"); err != nil || r.Stdout != "still here\n" {
			t.Errorf("exec after all: %+v, %v", r, err)
		}
	}
	d.Check()
}
