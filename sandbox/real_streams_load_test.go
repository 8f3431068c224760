package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/wait"
)

// holding is what a process has, for a comparison.
type holding struct{ descriptors, threads, kib int }

func holdingOf(t *testing.T, pid int) (h holding) {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	h.descriptors = len(fds)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "Threads: %d", &h.threads)
		fmt.Sscanf(line, "VmRSS: %d kB", &h.kib)
	}
	return h
}

// monitorHas is what the monitor of a sandbox has.
func monitorHas(t *testing.T, m *Manager, sandboxID string) holding {
	t.Helper()
	p, err := m.Pod(sandboxID)
	if err != nil {
		t.Fatal(err)
	}
	return holdingOf(t, p.MonitorPID)
}

// A client takes its time with a gigabyte: the command waits, and nobody keeps what the client has not taken.
func TestRealExecGigabyteForASlowClient(t *testing.T) {
	m, _ := realManager(t)
	p, c := sleeper(t, m)
	if _, err := m.ExecSync(t.Context(), c, []string{"/bin/true"}, 0); err != nil {
		t.Fatal(err)
	}
	monitor, own := monitorHas(t, m, p), holdingOf(t, os.Getpid())
	const size = 1 << 30
	var got, pauses int
	code, err := m.Exec(t.Context(), c, []string{"/bin/dd", "if=/dev/zero", "bs=1048576", fmt.Sprint("count=", size>>20)},
		Streams{Stdout: writerFunc(func(b []byte) (int, error) {
			if got += len(b); got>>20 > 50*pauses {
				pauses++
				time.Sleep(50 * time.Millisecond)
			}
			return len(b), nil
		})})
	if code != 0 || err != nil || got != size {
		t.Errorf("Exec = %d %v, %d bytes of %d", code, err, got, size)
	}
	if now := monitorHas(t, m, p); now.kib > monitor.kib+1<<10 {
		t.Errorf("the monitor has %+v, had %+v", now, monitor)
	}
	if now := holdingOf(t, os.Getpid()); now.kib > own.kib+32<<10 {
		t.Errorf("the daemon has %+v, had %+v", now, own)
	}
	remove(t, m, p)
}

// Clients come and go at random moments, alone and many at once. Nothing of them stays, in the daemon or in the monitor.
func TestRealStreamsThatComeAndGo(t *testing.T) {
	m, _ := realManager(t)
	p, pipesOf, log := attachable(t, m, "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done", func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	r := createRequest(p, "terminal", "/bin/sh", "-c", "while :; do echo line; sleep 0.02; done")
	r.Config.Stdin, r.Config.Tty = true, true
	terminalOf := start(t, m, r)
	silent := start(t, m, createRequest(p, "silent", "/bin/sleep", "10000"))
	// disturb makes a call that ends after a random time, if it does not end by itself.
	disturb := func(kind int) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20_000))*time.Microsecond)
		defer cancel()
		in, typed := io.Pipe()
		defer typed.Close()
		var out bytes.Buffer // of one writer each
		sizes := make(chan TerminalSize, 1)
		sizes <- TerminalSize{Columns: 80, Lines: 24}
		switch kind % 7 {
		case 0:
			m.Attach(ctx, pipesOf, Streams{Stdin: in, Stdout: &out, Stderr: io.Discard})
		case 1:
			m.Attach(ctx, terminalOf, Streams{Stdin: in, Stdout: &out, Resize: sizes})
		case 2:
			m.Attach(ctx, silent, Streams{Stdout: &out, Stderr: io.Discard})
		case 3:
			m.Exec(ctx, pipesOf, []string{"/bin/sh", "-c", "cat; echo; sleep 0.01 & wait; sleep 20"}, Streams{Stdin: in, Stdout: &out, Stderr: io.Discard})
		case 4:
			m.Exec(ctx, terminalOf, []string{"/bin/sh"}, Streams{Stdin: in, Stdout: &out, Terminal: true, Resize: sizes})
		case 5:
			m.Exec(ctx, silent, []string{"/bin/none"}, Streams{Stdin: in, Stdout: &out, Terminal: kind%2 == 0, Resize: sizes})
		case 6:
			if conn, err := m.Dial(ctx, p, 9); err == nil {
				conn.Close()
			}
		}
	}
	const atOnce = 8
	crowd := func(n int) {
		var group sync.WaitGroup
		for worker := range atOnce {
			group.Go(func() {
				for i := range n {
					disturb(worker + i)
				}
			})
		}
		group.Wait()
	}
	crowd(15)
	settled := func() (holding, int, int) {
		runtime.GC()
		return monitorHas(t, m, p), holdingOf(t, os.Getpid()).descriptors, runtime.NumGoroutine()
	}
	time.Sleep(300 * time.Millisecond) // what is let go of behind a call
	monitor, own, routines := settled()
	crowd(80)
	var nowMonitor holding
	var nowOwn, nowRoutines int
	if !wait.Until(20*time.Second, 20*time.Millisecond, func() bool {
		nowMonitor, nowOwn, nowRoutines = settled()
		// A thread of a Go program never ends: there are as many as calls have ever been in the kernel at once, and more only if some stay there.
		return nowMonitor.descriptors <= monitor.descriptors+2 && nowMonitor.threads <= monitor.threads+3*atOnce && nowMonitor.kib <= monitor.kib+1<<10 &&
			nowOwn <= own+2 && nowRoutines <= routines+2
	}) {
		t.Errorf("the monitor has %+v, had %+v; the daemon has %d descriptors and %d goroutines, had %d and %d",
			nowMonitor, monitor, nowOwn, nowRoutines, own, routines)
	}
	for _, c := range []string{pipesOf, terminalOf, silent} {
		if got, _ := m.Container(c); got.State != ContainerRunning {
			t.Errorf("container %s is %s", c, got.State)
		}
	}
	if list := processes(t, m, silent); strings.Contains(list, "sleep 20") || strings.Contains(list, "cat") || strings.Contains(list, "/bin/sh\n") {
		t.Errorf("left: %s", list)
	}
	inOrder(t, log)
	remove(t, m, p)
}

// inOrder looks for a line that a log lacks.
func inOrder(t *testing.T, log string) {
	t.Helper()
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		if n++; !strings.HasSuffix(line, fmt.Sprintf(" stdout F line %d\n", n)) {
			t.Fatalf("line %d of the log is %q", n, line)
		}
	}
}
