package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func TestLogFormat(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("logs"))
	before := time.Now().Add(-time.Second)
	c := pod.Run(d.Shell("c", `echo one; echo two >&2; echo; printf 'a\0b\r\n'; printf '\377\376\n'; printf 'no newline'; exit 0`))
	c.Wait(5 * time.Second)
	c.WaitOutput("no newline")
	var stdout, stderr []string
	for _, l := range c.Lines() {
		if l.Time.Before(before) || l.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("time = %s", l.Time)
		}
		if l.Stream == "stdout" {
			stdout = append(stdout, fmt.Sprintf("%t %q", l.Full, l.Text))
		} else {
			stderr = append(stderr, fmt.Sprintf("%t %q", l.Full, l.Text))
		}
	}
	if got, want := strings.Join(stdout, "|"), `true "one"|true ""|true "a\x00b\r"|true "\xff\xfe"|true "no newline"`; got != want && got != strings.Replace(want, `true "no`, `false "no`, 1) {
		t.Errorf("stdout = %s, want %s", got, want)
	}
	if got := strings.Join(stderr, "|"); got != `true "two"` {
		t.Errorf("stderr = %s", got)
	}
	if st, err := os.Stat(c.LogFile()); err != nil || st.Mode().Perm()&^0o640 != 0 {
		t.Errorf("mode of the log = %v, %v", st.Mode(), err)
	}
}

func TestLongLinesAreCut(t *testing.T) {
	const size = 16 << 10
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("long"))
	c := pod.Run(d.Shell("c", fmt.Sprintf("probe bytes %d x; echo; probe bytes %d y; echo; probe bytes %d z; echo", size, size+1, 5*size+7)))
	c.Wait(10 * time.Second)
	var got []string
	for _, l := range c.Lines() {
		tag := "P"
		if l.Full {
			tag = "F"
		}
		got = append(got, fmt.Sprintf("%s%d", tag, len(l.Text)))
		if len(l.Text) > size {
			t.Errorf("a line of %d bytes, want at most %d", len(l.Text), size)
		}
	}
	text := c.Output()
	want := strings.Repeat("x", size) + "\n" + strings.Repeat("y", size+1) + "\n" + strings.Repeat("z", 5*size+7) + "\n"
	if text != want {
		t.Errorf("lines %v do not add up to what was written (%d bytes, want %d)", got, len(text), len(want))
	}
}

// TestALineWithoutEnd: memory of the monitor is bounded, and what is written is seen at once.
func TestALineWithoutEnd(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("endless"))
	c := pod.Run(d.Shell("c", "probe bytes 67108864 x; sleep 1000"))
	d.Eventually(2*time.Minute, "64 MiB are in the log", func() bool {
		st, err := os.Stat(c.LogFile())
		return err == nil && st.Size() > 64<<20
	})
	status := readRaw(t, "/proc/"+strconv.Itoa(monitorPID(t, pod))+"/status")
	_, rest, _ := strings.Cut(status, "VmHWM:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil || kib > 20<<10 {
		t.Errorf("the monitor took %d KiB at most (%v), want less than 20 MiB", kib, err)
	}
}

func TestReopenLog(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("reopen"))
	c := pod.Run(d.Container("c", []string{"probe", "lines", "500", "line"}))
	c.WaitOutput("line 50")
	rotated := c.LogFile() + ".1"
	if err := os.Rename(c.LogFile(), rotated); err != nil {
		t.Fatal(err)
	}
	reopen := func() error {
		_, err := d.Runtime.ReopenContainerLog(d.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
		return err
	}
	if err := reopen(); err != nil {
		t.Fatalf("ReopenContainerLog: %v", err)
	}
	size := func(path string) int64 {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	was := size(rotated)
	d.Eventually(5*time.Second, "the new file grows", func() bool { return size(c.LogFile()) > 1000 })
	if now := size(rotated); now != was {
		t.Errorf("the old file grew from %d to %d after the call", was, now)
	}
	c.Stop(2 * time.Second)
	wantCode(t, "reopen the log of an exited container", reopen(), codes.FailedPrecondition)
	countLines(t, "line", rotated, c.LogFile())
}

// countLines checks that the numbered lines in files, in their order, are 0, 1, 2, ... without a gap or a double, and returns how many.
func countLines(t testing.TB, prefix string, files ...string) int {
	t.Helper()
	next := 0
	for _, file := range files {
		lines, err := harness.ParseLog(readRaw(t, file))
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, l := range lines {
			if want := fmt.Sprintf("%s %d", prefix, next); l.Text != want || !l.Full {
				t.Fatalf("%s: line is %q, want %q", file, l.Text, want)
			}
			next++
		}
	}
	return next
}

// TestLogTargets: the log path is the kubelet's, the file there may be a trap (threat B21): at a container's start, when its log is opened anew, and
// after a restart of the daemon.
func TestLogTargets(t *testing.T) {
	d := harness.Start(t)
	victim := plantCanary(t, d)
	file := filepath.Join(victim.dir, "f")
	pod := d.RunPod(d.Pod("trap"))
	good := pod.Run(d.Container("good", []string{"probe", "lines", "200", "attack"}))
	good.WaitOutput("attack 10")
	for name, plant := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(file, path) },
		"missing":   func(path string) error { return os.Symlink(filepath.Join(victim.dir, "new"), path) },
		"hard-link": func(path string) error { return os.Link(filepath.Join(d.Dir, "own"), path) },
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"folder":    func(path string) error { return os.Mkdir(path, 0o700) },
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	} {
		own := d.Write(filepath.Join(d.Dir, "own"), "untouched") // a hard link changes its target by itself
		trap := d.Shell("trap-"+name, "echo attack; sleep 1000")
		if err := plant(filepath.Join(pod.Config.LogDirectory, trap.LogPath)); err != nil {
			t.Fatal(err)
		}
		c, err := pod.TryCreate(trap)
		if err == nil {
			if err := c.TryStart(); err == nil {
				t.Errorf("a container starts with a log that is a %s", name)
			}
			c.Remove()
		}
		if err := errors.Join(os.Remove(good.LogFile()), plant(good.LogFile())); err != nil {
			t.Fatal(err)
		}
		for _, when := range []string{"", " after a restart"} {
			if when != "" {
				d.Restart()
			}
			if _, err := d.Runtime.ReopenContainerLog(d.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: good.ID}); err == nil {
				t.Errorf("a log that is a %s is opened%s", name, when)
			}
		}
		if got := readFile(t, own); got != "untouched" {
			t.Errorf("the file with the %s is %.100q", name, got)
		}
		if err := os.RemoveAll(own); err != nil {
			t.Fatal(err)
		}
		victim.intact(t, name)
	}
	if err := os.Remove(good.LogFile()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Runtime.ReopenContainerLog(d.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: good.ID}); err != nil {
		t.Errorf("ReopenContainerLog without a trap: %v", err)
	}
	good.WaitOutput("attack")
	for name, path := range map[string]string{"above": "../x.log", "far above": "../../../../tmp/x.log", "absolute": "/tmp/x.log", "newline": "a\nb"} {
		config := d.Sleeper("bad")
		config.LogPath = path
		c, err := pod.TryCreate(config)
		if err == nil && name != "absolute" {
			t.Errorf("log path %q (%s) is accepted", path, name)
		}
		if err == nil {
			c.Remove()
		}
	}
}

// TestLogFolders: a pod that sees the node's logs may put a link in the place of a folder, and leads nothing elsewhere by it (threat B21). The kubelet's
// own folder may be behind a link.
func TestLogFolders(t *testing.T) {
	d := harness.Start(t)
	real, behind := filepath.Join(d.Dir, "real"), filepath.Join(d.Dir, "behind")
	victims := filepath.Join(d.Dir, "victims")
	for _, folder := range []string{filepath.Join(real, "pod", "c"), filepath.Join(real, "pod", "later"), filepath.Join(victims, "later")} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plant := func(path string) {
		t.Helper()
		if err := errors.Join(os.Rename(path, path+".old"), os.Symlink(victims, path)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(real, behind); err != nil {
		t.Fatal(err)
	}
	config := d.Pod("linked")
	config.LogDirectory = filepath.Join(behind, "pod")
	pod := d.RunPod(config)
	shell := func(name string) *runtimeapi.ContainerConfig {
		c := d.Shell(name, "echo here; sleep 1000")
		c.LogPath = name + "/0.log"
		return c
	}
	c := pod.Run(shell("c"))
	c.WaitOutput("here")
	if got := c.Status().LogPath; got != filepath.Join(behind, "pod", "c/0.log") {
		t.Errorf("the log path is %s", got)
	}
	plant(filepath.Join(real, "pod", "c"))
	if _, err := d.Runtime.ReopenContainerLog(d.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID}); err == nil {
		t.Error("a log in a folder that is a symbolic link is opened")
	}
	plant(filepath.Join(real, "pod"))
	if later, err := pod.TryCreate(shell("later")); err == nil {
		if err := later.TryStart(); err == nil {
			t.Error("a container starts with a log below a symbolic link")
		}
	}
	for _, log := range []string{"0.log", "later/0.log"} {
		if _, err := os.Stat(filepath.Join(victims, log)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", log, err)
		}
	}
}

func TestNoLogIsWanted(t *testing.T) {
	d := harness.Start(t)
	config := d.Pod("silent")
	config.LogDirectory = ""
	pod := d.RunPod(config)
	silent := d.Shell("c", "probe bytes 1000000 x; exit 5")
	silent.LogPath = ""
	c := pod.Run(silent)
	if s := c.Wait(10 * time.Second); s.ExitCode != 5 || s.LogPath != "" {
		t.Errorf("code %d, log path %q", s.ExitCode, s.LogPath)
	}
}

func TestLogInASubfolder(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("sub"))
	config := d.Shell("c", "echo here; sleep 1000")
	config.LogPath = "c/0.log" // as the kubelet names it
	if err := os.MkdirAll(filepath.Join(pod.Config.LogDirectory, "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	pod.Run(config).WaitOutput("here")
}

// TestLogOnAFullDisk: the container writes on, lines that found no place are counted in the log once there is some again, and none is torn.
func TestLogOnAFullDisk(t *testing.T) {
	d := harness.Start(t)
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(folder, unix.MNT_DETACH) })
	config := d.Pod("full")
	config.LogDirectory = folder
	c := d.RunPod(config).Run(d.Container("c", []string{"probe", "lines", "1000", "line"}))
	c.WaitOutput("line 50\n")
	monitor := fmt.Sprintf("/proc/%d/io", monitorPID(t, c.Pod))
	taken := func() (n int) {
		_, rest, _ := strings.Cut(readRaw(t, monitor), "rchar: ")
		fmt.Sscan(rest, &n)
		return n
	}
	for range 3 {
		ballast := filepath.Join(folder, "ballast")
		if err := os.WriteFile(ballast, make([]byte, 2<<20), 0o600); err == nil {
			t.Fatal("the disk has place for more")
		}
		before := taken()
		d.Eventually(harness.Timeout, "the container writes on", func() bool { return taken() > before+10000 })
		size := len(readRaw(t, c.LogFile()))
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		d.Eventually(harness.Timeout, "the log goes on", func() bool { return len(readRaw(t, c.LogFile())) > size+1000 })
	}
	c.Stop(time.Second)
	next, notes := 0, 0
	for _, l := range c.Lines() {
		var n int
		if _, err := fmt.Sscanf(l.Text, "berth: %d log entries were lost", &n); err == nil {
			next, notes = next+n, notes+1
			continue
		}
		if want := fmt.Sprintf("line %d", next); l.Text != want || !l.Full {
			t.Fatalf("after %d notes: line %q, want %q", notes, l.Text, want)
		}
		next++
	}
	if notes < 3 {
		t.Errorf("%d notes of lost lines", notes)
	}
}

// TestOutputAtTheEnd: the last bytes are kept, and a child that holds the pipe does not hold the container.
func TestOutputAtTheEnd(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("end", harness.Namespaces(modePod, modePod, modePod)))
	c := pod.Run(d.Shell("c", "probe orphan; probe bytes 300000 x; echo; echo last; exit 4", likePod(pod)))
	if s := c.Wait(5 * time.Second); s.ExitCode != 4 {
		t.Errorf("code = %d", s.ExitCode)
	}
	c.WaitOutput("last")
	if got := len(c.Output()); got != 300001+5 {
		t.Errorf("%d bytes are in the log, want %d", got, 300006)
	}
}
