package integration_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/streamclient"
)

// oldest is the oldest commit whose monitors and records this tree takes over. It is the last one before the first release, and moves to
// the tag of a release when upgrades from before that are no longer supported, which CHANGELOG.md then says; never otherwise, since a
// monitor lives as long as its pod.
const oldest = "42b3950a072c4beff7d47f51432e8f69b57f8f29"

// TestSkew holds this tree's daemon against the monitors and records of the oldest supported commit.
func TestSkew(t *testing.T) {
	harness.Native(t, "older monitors know no other runtime")
	harness.Native(t, "the oldest releases know no other handler")
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces, mounts, cgroups, links")
	}
	ctx, cancel := contextFor(t, 15*time.Minute) // it may compile all anew
	defer cancel()
	old, err := berthd.BuildAt(ctx, t.TempDir(), oldest)
	if errors.Is(err, berthd.ErrNoHistory) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Run("upgrade while pods run", func(t *testing.T) { upgradeWhilePodsRun(t, old) })
	t.Run("old monitor below a new daemon", func(t *testing.T) { oldMonitor(t, old) })
	t.Run("no pod mixes versions", func(t *testing.T) { noPodMixesVersions(t, old) })
}

func upgradeWhilePodsRun(t *testing.T, old string) {
	d := harness.Start(t, harness.WithBin(old))
	pod := d.RunPod(d.Pod("skewed"))
	runs := pod.Run(d.Shell("runs", "trap 'exit 5' TERM; i=0; while :; do echo line $((i=i+1)); sleep 0.05; done"))
	meanwhile := pod.Run(d.Shell("meanwhile", "trap 'exit 13' TERM; echo up; sleep 1000 & wait"))
	later := pod.Run(d.Shell("later", "trap 'exit 14' TERM; echo up; sleep 1000 & wait"))
	done := pod.Run(d.Shell("done", "exit 9"))
	done.Wait(10 * time.Second)
	made := pod.Create(d.Sleeper("made"))
	shared := d.RunPod(d.Pod("shared", harness.Namespaces(runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD)))
	sharing := shared.Run(d.Sleeper("sharing", sharesPID))
	stopped := d.RunPod(d.Pod("stopped"))
	stopped.Stop()
	runs.WaitOutput("line 2")
	later.WaitOutput("up")
	meanwhile.WaitOutput("up")
	ips, pid, began := pod.IPs(), runs.PID(), runs.Status().StartedAt

	ends := meanwhile.PID()
	d.Kill()
	if err := unix.Kill(ends, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.Upgrade()

	// What there is.
	d.Eventually(10*time.Second, "what ended meanwhile is known", func() bool { return meanwhile.Status().State == exited })
	for c, want := range map[*harness.Container]int32{meanwhile: 13, done: 9} {
		if s := c.Status(); s.State != exited || s.ExitCode != want {
			t.Errorf("%s is %s with code %d, want %d", s.Metadata.Name, s.State, s.ExitCode, want)
		}
	}
	if s := runs.Status(); s.State != running || s.StartedAt != began || runs.PID() != pid {
		t.Errorf("what ran is %s, started at %d (%d before), PID %d (%d before)", s.State, s.StartedAt, began, runs.PID(), pid)
	}
	if got := pod.IPs(); strings.Join(got, " ") != strings.Join(ips, " ") {
		t.Errorf("addresses were %q, are %q", ips, got)
	}
	if s := stopped.Status(); s.State != podNotReady {
		t.Errorf("the stopped pod is %s", s.State)
	}
	d.Check()

	// What can be done with it.
	for _, c := range []*harness.Container{runs, later, sharing} {
		if got := c.Sh("echo in $(hostname); exit 0"); got != "in "+c.Pod.Config.Hostname {
			t.Errorf("exec in %s = %q", c.Config.Metadata.Name, got)
		}
	}
	if r := runs.Exec("sh", "-c", "echo to; echo err >&2; exit 3"); r.Code != 3 || r.Stdout != "to\n" || r.Stderr != "err\n" {
		t.Errorf("exec = %+v", r)
	}
	if _, err := runs.TryExec(time.Second, "sleep", "100"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("exec past its time limit: %v", err)
	}
	reopened(t, runs)
	if err := unix.Kill(later.PID(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := later.Wait(10 * time.Second); s.ExitCode != 14 {
		t.Errorf("what ended later has code %d", s.ExitCode)
	}
	made.Start()
	added := pod.Run(d.Sleeper("added"))
	added.WaitOutput("up")
	if got := added.Sh("echo fine"); got != "fine" {
		t.Errorf("exec in what was added = %q", got)
	}
	d.Check()
	runs.Stop(10 * time.Second)
	if s := runs.Status(); s.State != exited || s.ExitCode != 5 {
		t.Errorf("what was stopped is %s with code %d", s.State, s.ExitCode)
	}
	runs.Remove()
	shared.Stop()
	shared.Remove()
	stopped.Remove()
	d.Check()
	pod.Remove() // with what still runs in it
	d.AsBefore()
}

// sharesPID puts a container into its pod's PID namespace.
var sharesPID = harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
	s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
})

// reopened rotates the log of a container that writes all the time: no line is in both files, and none in neither.
func reopened(t *testing.T, c *harness.Container) {
	t.Helper()
	rotated := c.LogFile() + ".1"
	if err := os.Rename(c.LogFile(), rotated); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Runtime.ReopenContainerLog(c.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err != nil {
		t.Fatalf("ReopenContainerLog: %v", err)
	}
	c.WaitOutput("line ")
	next := 1
	for _, file := range []string{rotated, c.LogFile()} {
		lines, err := harness.ParseLog(readFile(t, file) + "\n")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range lines {
			if want := "line " + strconv.Itoa(next); l.Text != want {
				t.Fatalf("%s has %q, want %q", file, l.Text, want)
			}
			next++
		}
	}
}

func oldMonitor(t *testing.T, old string) {
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[runtime]\nmonitor = %q\n\n%s", filepath.Join(old, "berth-monitor"), otherHandler(t))))
	pod := d.RunPod(d.Pod("old"))
	if got, want := executed(t, monitorPID(t, pod)), sum(t, filepath.Join(old, "berth-monitor")); got != want {
		t.Fatal("the monitor is not the old one")
	}
	c := pod.Run(d.Sleeper("c"))
	c.WaitOutput("up")
	if r := c.Exec("sh", "-c", "echo to; echo err >&2; exit 3"); r.Code != 3 || r.Stdout != "to\n" || r.Stderr != "err\n" {
		t.Errorf("exec = %+v", r)
	}
	ends := pod.Run(d.Shell("ends", "exit 4"))
	if s := ends.Wait(10 * time.Second); s.ExitCode != 4 {
		t.Errorf("exit code %d, want 4", s.ExitCode)
	}
	terminal := pod.Run(d.Shell("terminal", "test -t 1 && echo it is; exec sleep 1000", func(c *runtimeapi.ContainerConfig) { c.Tty = true }))
	terminal.WaitOutput("it is")
	d.Check()
	for what, err := range tooMuch(d, pod, c) {
		if err == nil || !strings.Contains(err.Error(), "older berth") && status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want that the monitor is of an older berth", what, err)
		}
	}
	d.Check()
	d.Restart()
	if got := c.Sh("echo again"); got != "again" {
		t.Errorf("exec after a restart = %q", got)
	}
	c.Stop(5 * time.Second)
	d.Check()
	pod.Stop()
	pod.Remove()
	d.AsBefore()
}

// tooMuch asks an old monitor for what only newer ones can.
func tooMuch(d *harness.Daemon, pod *harness.Pod, c *harness.Container) map[string]error {
	ctx, cancel := contextFor(d.T, 20*time.Second)
	defer cancel()
	errs := map[string]error{}
	stream := harness.Streaming{Daemon: d, Transport: streamclient.WebSocket}
	_, errs["a command with a terminal"] = stream.Exec(ctx, c.ID, []string{"true"}, sandbox.Streams{Stdout: io.Discard, Terminal: true})
	errs["attach"] = stream.Attach(ctx, c.ID, sandbox.Streams{Stdout: io.Discard})
	errs["port forward"] = connect(ctx, stream, pod)
	mapped := d.Pod("users")
	users(300000)(mapped)
	_, errs["a user namespace"] = d.TryRunPod(mapped)
	volume := pod.Create(d.Sleeper("volume", harness.Mounts(imageMount(harness.Base(d.T).Ref, "/image", "etc"))))
	errs["an image as a volume"] = volume.TryStart()
	volume.Remove()
	config := d.Pod("other")
	r, err := d.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "other"})
	if err == nil {
		other := &harness.Pod{Daemon: d, ID: r.PodSandboxId, Config: config}
		err = other.Create(d.Sleeper("c")).TryStart()
		other.Remove()
	}
	errs["another runtime"] = err
	return errs
}

// connect connects to a port of a pod, and returns what the read that follows says.
func connect(ctx context.Context, stream harness.Streaming, pod *harness.Pod) error {
	conn, err := stream.Dial(ctx, pod.ID, 80)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Read(make([]byte, 1))
	return err
}

// noPodMixesVersions: the files of an installation are replaced while its daemon and pods run.
func noPodMixesVersions(t *testing.T, old string) {
	installed := t.TempDir()
	install(t, old, installed)
	d := harness.Start(t, harness.WithBin(installed))
	before := d.RunPod(d.Pod("before"))
	before.Run(d.Sleeper("c"))
	install(t, harness.Bin(t), installed)
	oldSum, newSum := sum(t, filepath.Join(old, "berth-monitor")), sum(t, filepath.Join(installed, "berth-monitor"))
	if oldSum == newSum {
		t.Fatal("the monitors do not differ, so nothing is tested")
	}
	between := d.RunPod(d.Pod("between")) // by the old daemon, the new files on disk
	d.Kill()
	d.DropIn("isolated.toml", berthd.Isolate("", d.Dir))
	d.Start()
	after := d.RunPod(d.Pod("after"))
	for pod, want := range map[*harness.Pod]string{before: oldSum, between: oldSum, after: newSum} {
		name := pod.Config.Metadata.Name
		monitor := monitorPID(t, pod)
		if executed(t, monitor) != want {
			t.Errorf("pod %s has a monitor of the other version", name)
		}
		c := pod.Run(d.Sleeper("added"))
		if got := parent(t, c.PID()); got != monitor {
			t.Errorf("in pod %s a container's parent is %d, the monitor is %d", name, got, monitor)
		}
		if got := c.Sh("echo fine"); got != "fine" {
			t.Errorf("exec in pod %s = %q", name, got)
		}
		if executed(t, monitorPID(t, pod)) != want {
			t.Errorf("pod %s got a monitor of the other version", name)
		}
	}
}

// install replaces the files in dir as a package manager does: by names, each at once.
func install(t *testing.T, from, dir string) {
	t.Helper()
	for _, name := range []string{"berthd", "berth-monitor"} {
		program, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		temporary := filepath.Join(dir, "."+name)
		if err := errors.Join(os.WriteFile(temporary, program, 0o755), os.Rename(temporary, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
	}
}

// executed is the checksum of the program that a process runs.
func executed(t *testing.T, pid int) string { return sum(t, fmt.Sprintf("/proc/%d/exe", pid)) }

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// parent is the process that a process is the child of.
func parent(t *testing.T, pid int) int {
	t.Helper()
	text := readFile(t, fmt.Sprintf("/proc/%d/stat", pid))
	ppid, err := strconv.Atoi(strings.Fields(text[strings.LastIndex(text, ")"):])[2])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}
