package integration_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/invariants"
)

// TestTheCheckerSees: a checker that sees nothing would pass every test. Each kind of thing that belongs to nobody is made by hand.
func TestTheCheckerSees(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("checked"))
	c := pod.Run(d.Sleeper("c"))
	daemon, opts := d.Process.Daemon(), d.Options()
	stranger := strings.Repeat("ab", 32)
	hold := func() (found string) {
		t.Helper()
		d.Eventually(harness.Timeout, "the checker can look", func() bool {
			lines, err := invariants.Hold(d.Context(), daemon, d.Runtime)
			found = strings.Join(lines, "\n")
			return err == nil
		})
		return found
	}
	link := "vbs" + daemon.Instance() // no other test's on this host
	d.Check()
	run := func(args ...string) error { return exec.Command(args[0], args[1:]...).Run() }
	cgroup := "/sys/fs/cgroup/pids" + daemon.CgroupRoot() + "/" + stranger
	if isUnified() {
		cgroup = "/sys/fs/cgroup" + daemon.CgroupRoot() + "/" + stranger
	}
	pin, state, record, layer := daemon.Pin(stranger), filepath.Join(opts.State, "pods", stranger), filepath.Join(opts.Root, "pods", stranger),
		filepath.Join(opts.Root, "images/containers", stranger)
	reserved := filepath.Join(opts.Root, "network", opts.Bridge, d.Subnet+".200")
	for _, tc := range []struct {
		name       string
		spoil, fix func() error
		want       string
	}{
		{"cgroup", func() error { return os.Mkdir(cgroup, 0o755) }, func() error { return os.Remove(cgroup) }, "cgroup "},
		{"pin", func() error { return os.WriteFile(pin, nil, 0o600) }, func() error { return os.Remove(pin) }, "pin " + pin},
		{"mount", func() error {
			return errors.Join(os.MkdirAll(state, 0o700), unix.Mount("tmpfs", state, "tmpfs", 0, ""))
		}, func() error { return errors.Join(unix.Unmount(state, 0), os.Remove(state)) }, "mount " + state},
		{"record", func() error { return os.Mkdir(record, 0o700) }, func() error { return os.Remove(record) }, "record " + stranger},
		{"writable layer", func() error { return os.Mkdir(layer, 0o700) }, func() error { return os.Remove(layer) }, "writable layer " + stranger},
		{"address", func() error { return os.WriteFile(reserved, []byte(stranger+"\r\neth0"), 0o600) }, func() error { return os.Remove(reserved) }, d.Subnet + ".200"},
		{"link", func() error {
			return errors.Join(run("ip", "link", "add", link, "type", "veth", "peer", "name", link+"p"), run("ip", "link", "set", link, "master", opts.Bridge))
		}, func() error { return run("ip", "link", "del", link) }, "link " + link},
		{"damaged record", func() error {
			return os.Rename(filepath.Join(opts.Root, "pods", pod.ID, "pod"), filepath.Join(d.Dir, "aside"))
		}, func() error {
			return os.Rename(filepath.Join(d.Dir, "aside"), filepath.Join(opts.Root, "pods", pod.ID, "pod"))
		}, "record of pod " + pod.ID},
	} {
		if err := tc.spoil(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if got := hold(); !strings.Contains(got, tc.want) {
			t.Errorf("%s: the checker says %q, want %q in it", tc.name, got, tc.want)
		}
		if err := tc.fix(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		d.Check()
	}
	// A container that runs without its process, for as long as the monitor cannot tell.
	pid, monitor := c.PID(), monitorPID(t, pod)
	if err := errors.Join(unix.Kill(monitor, unix.SIGSTOP), unix.Kill(pid, unix.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	d.Eventually(harness.Timeout, "the checker misses the process", func() bool { return strings.Contains(hold(), "is CONTAINER_RUNNING and has 0 processes") })
	if err := unix.Kill(monitor, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	d.Check()
}
