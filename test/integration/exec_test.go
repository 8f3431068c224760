package integration_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func TestExecSync(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("exec"))
	c := pod.Run(d.Sleeper("c", func(c *runtimeapi.ContainerConfig) {
		c.WorkingDir, c.Envs = "/tmp", []*runtimeapi.KeyValue{{Key: "FROM", Value: []byte("request")}}
	}))
	for _, tc := range []struct {
		name    string
		command []string
		want    harness.Result
	}{
		{"output", []string{"sh", "-c", "echo out; echo err >&2"}, harness.Result{Stdout: "out\n", Stderr: "err\n"}},
		{"code", []string{"sh", "-c", "exit 42"}, harness.Result{Code: 42}},
		{"signal", []string{"sh", "-c", "kill -9 $$"}, harness.Result{Code: 137}},
		{"folder and environment", []string{"sh", "-c", "pwd; echo $FROM"}, harness.Result{Stdout: "/tmp\nrequest\n"}},
		{"no input", []string{"cat"}, harness.Result{}},
		{"arguments", []string{"echo", "a b", "", "c"}, harness.Result{Stdout: "a b  c\n"}},
		{"zero bytes", []string{"printf", `a\0b`}, harness.Result{Stdout: "a\x00b"}},
	} {
		if got := c.Exec(tc.command...); got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
	}
	for name, command := range map[string][]string{"missing": {"/no/such/program"}, "not executable": {"/etc/passwd"}, "a folder": {"/tmp"}} {
		r, err := c.TryExec(time.Minute, command...)
		if err == nil && r.Code != 126 && r.Code != 127 {
			t.Errorf("%s: %+v, want an error or code 126 or 127", name, r)
		}
	}
	_, err := c.TryExec(time.Minute)
	wantCode(t, "no command", err, codes.InvalidArgument)
	d.Check()
	c.Stop(time.Second)
	_, err = c.TryExec(time.Minute, "true")
	wantCode(t, "exec in an exited container", err, codes.FailedPrecondition)
	created := pod.Create(d.Sleeper("created"))
	_, err = created.TryExec(time.Minute, "true")
	wantCode(t, "exec in a created container", err, codes.FailedPrecondition)
}

func TestExecOutputIsBounded(t *testing.T) {
	const most = 16 << 20
	d := harness.Start(t)
	c := d.RunPod(d.Pod("flood")).Run(d.Sleeper("c"))
	before := peak(t, d.PID())
	for _, script := range []string{"probe bytes 40000000 x", "probe bytes 40000000 x >&2; exit 3"} {
		r := c.Exec("sh", "-c", script)
		if n := len(r.Stdout) + len(r.Stderr); n > most || n < most*9/10 {
			t.Errorf("%s: %d and %d bytes, want 16 MiB", script, len(r.Stdout), len(r.Stderr))
		}
		if strings.Contains(script, "exit 3") && r.Code != 3 {
			t.Errorf("%s: code %d, want 3", script, r.Code)
		}
	}
	if grown := peak(t, d.PID()) - before; grown > 160<<10 {
		t.Errorf("the daemon's memory grew by %d KiB", grown)
	}
}

// TestExecOutputOfManyIsBounded: what execs print is not memory of berth's, however many there are, and keeps nobody waiting (threat B5).
func TestExecOutputOfManyIsBounded(t *testing.T) {
	const (
		most  = 16<<20 - 1<<10 // of both streams, see package cri
		execs = 20
	)
	d := harness.Start(t)
	c := d.RunPod(d.Pod("floods")).Run(d.Sleeper("c"))
	c.Exec("true")
	daemon, monitor := d.PID(), monitorPID(t, c.Pod)
	before := peak(t, daemon) + peak(t, monitor)
	ctx, cancel := contextFor(t, 5*time.Minute)
	defer cancel()
	exec := func(script string) (*runtimeapi.ExecSyncResponse, error) {
		return d.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sh", "-c", script}})
	}
	flood := "printf %d_; probe bytes 18000000 o & printf %d_ >&2; probe bytes 18000000 e >&2; wait; exit %d"
	var floods sync.WaitGroup
	for i := range execs {
		floods.Go(func() {
			number := 10 + i
			r, err := exec(fmt.Sprintf(flood, number, number, number))
			begin := strconv.Itoa(number) + "_"
			stdout, stderr := begin+strings.Repeat("o", most/2-len(begin)), begin+strings.Repeat("e", most/2-len(begin))
			if err != nil || int(r.GetExitCode()) != number || string(r.GetStdout()) != stdout || string(r.GetStderr()) != stderr {
				t.Errorf("exec %d: %d and %d bytes, want %d each; code %d, %v", number, len(r.GetStdout()), len(r.GetStderr()), most/2, r.GetExitCode(), err)
			}
		})
	}
	over := make(chan struct{})
	go func() { floods.Wait(); close(over) }()
	for running := true; running; {
		if r, err := exec("echo short"); err != nil || string(r.GetStdout()) != "short\n" {
			t.Errorf("beside the floods: %v, %v", r, err)
			running = false
		}
		select {
		case <-over:
			running = false
		default:
		}
	}
	<-over
	if grown := peak(t, daemon) + peak(t, monitor) - before; grown > 64<<10 {
		t.Errorf("memory of berthd and the monitor grew by %d KiB, want less than 64 MiB", grown)
	}
	d.Check()
}

// peak is the most memory that a process had, in KiB.
func peak(t testing.TB, pid int) int {
	t.Helper()
	_, rest, _ := strings.Cut(readRaw(t, "/proc/"+strconv.Itoa(pid)+"/status"), "VmHWM:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestExecTimeout: the limit ends the command and everything that it started.
func TestExecTimeout(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("timeout")).Run(d.Sleeper("c"))
	for name, script := range map[string]string{
		"sleeps":                 "sleep 77",
		"ignores signals":        "trap '' TERM INT HUP; while :; do sleep 77; done",
		"leaves children behind": "probe fork 5 & sleep 77",
		"new session":            "setsid sleep 77 & setsid sh -c 'sleep 77' & wait",
	} {
		start := time.Now()
		_, err := c.TryExec(time.Second, "sh", "-c", script)
		wantCode(t, name, err, codes.DeadlineExceeded)
		if took := time.Since(start); took < 900*time.Millisecond || took > harness.Patience {
			t.Errorf("%s: took %s", name, took)
		}
		d.Eventually(2*time.Second, name+": all its processes end", func() bool {
			return c.Sh("ps | grep -cE '[s]leep 77|[p]robe'; true") == "0"
		})
	}
	if s := c.Status(); s.State != running {
		t.Errorf("the container is %s", s.State)
	}
	d.Check()
}

// TestExecReturnsWithItsProcess: a child in the background that holds the output does not hold the call for its whole life.
func TestExecReturnsWithItsProcess(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("background")).Run(d.Sleeper("c"))
	start := time.Now()
	r, err := c.TryExec(20*time.Second, "sh", "-c", "sleep 60 & echo done")
	if err != nil || r.Stdout != "done\n" || r.Code != 0 {
		t.Errorf("exec = %+v, %v", r, err)
	}
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("exec took %s", took)
	}
}

func TestExecCallerGivesUp(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("impatient")).Run(d.Sleeper("c"))
	ctx, cancel := contextFor(t, 300*time.Millisecond)
	defer cancel()
	_, err := d.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: []string{"sleep", "78"}})
	wantCode(t, "exec with a short deadline", err, codes.DeadlineExceeded)
	d.Eventually(3*time.Second, "the command ends", func() bool { return c.Sh("ps | grep -c '[s]leep 78'; true") == "0" })
}

func TestManyExecsAtOnce(t *testing.T) {
	d := harness.Start(t)
	c := d.RunPod(d.Pod("crowd")).Run(d.Sleeper("c"))
	c.Exec("true")
	monitor := monitorPID(t, c.Pod)
	count := func() int {
		entries, err := os.ReadDir("/proc/" + strconv.Itoa(monitor) + "/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			n := strconv.Itoa(i)
			r, err := c.TryExec(time.Minute, "sh", "-c", "echo "+n+"; exit "+n)
			if err != nil || r.Stdout != n+"\n" || r.Code != int32(i) {
				t.Errorf("exec %d = %+v, %v", i, r, err)
			}
		})
	}
	wg.Wait()
	d.Eventually(3*time.Second, "the monitor's descriptors are as before", func() bool { return count() <= before })
	d.Check()
}

// TestMonitorWithoutDescriptors: at whatever point a monitor has no descriptor left, the call fails, nothing of it is kept, and all is well once there are
// some again.
func TestMonitorWithoutDescriptors(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("scarce"))
	c := pod.Run(d.Sleeper("c"))
	c.Exec("true")
	monitor := monitorPID(t, pod)
	count := func() int { return len(listFolder(t, fmt.Sprintf("/proc/%d/fd", monitor))) }
	before := count()
	d.Eventually(harness.Timeout, "the monitor's descriptors are as few as they get", func() bool {
		last := before
		time.Sleep(50 * time.Millisecond)
		before = count()
		return before == last
	})
	var usual unix.Rlimit
	if err := unix.Prlimit(monitor, unix.RLIMIT_NOFILE, nil, &usual); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for n := before; n < before+40; n++ {
		if err := unix.Prlimit(monitor, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(n), Max: usual.Max}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.TryExec(time.Minute, "true"); err != nil {
			failed++
		}
		other := pod.Create(d.Container(fmt.Sprint("c", n), []string{"true"}))
		if err := other.TryStart(); err != nil {
			failed++
		}
		other.Remove()
	}
	if err := unix.Prlimit(monitor, unix.RLIMIT_NOFILE, &usual, nil); err != nil {
		t.Fatal(err)
	}
	if failed < 10 {
		t.Errorf("%d calls failed: this test tests little", failed)
	}
	c.Exec("true")
	d.Eventually(harness.Timeout, "the monitor's descriptors are as before", func() bool { return count() <= before })
}
