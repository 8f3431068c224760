package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// nothingHidden asks for procMount Unmasked, as the kubelet does.
func nothingHidden(s *security) { s.MaskedPaths, s.ReadonlyPaths, s.Seccomp = nil, nil, nil }

func TestUnmaskedProc(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("unmasked", users(300000)))
	c := pod.Run(d.Sleeper("c", likePod(pod), with(nothingHidden)))
	if got := c.Sh("grep -c ' /proc/' /proc/mounts; true"); got != "0" {
		t.Errorf("%s mounts below /proc, want none", got)
	}
	if got := c.Exec("probe", "call", "mount-proc").Stdout; got != "ok\n" {
		t.Errorf("mount /proc in a container in the container: %s", got)
	}
	c = pod.Run(d.Sleeper("net", likePod(pod), with(nothingHidden), with(func(s *security) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}} })))
	if got := c.Sh("echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward"); got != "1" {
		t.Errorf("a kernel parameter of the pod's own = %q", got)
	}
	masked := pod.Run(d.Sleeper("masked", likePod(pod), with(func(s *security) { s.Seccomp = nil })))
	if got := masked.Exec("probe", "call", "mount-proc").Stdout; strings.HasPrefix(got, "ok") {
		t.Errorf("mount /proc anew where paths are masked: %s", got)
	}
	if got := masked.Sh("cat /proc/timer_list | wc -c; busybox ls /sys/firmware | wc -l"); got != "0\n0" {
		t.Errorf("masked paths = %q", got)
	}
	// Without a user namespace nothing named means the usual.
	plain := d.RunPod(d.Pod("plain")).Run(d.Sleeper("plain", with(nothingHidden)))
	if got := plain.Sh("cat /proc/timer_list | wc -c"); got != "0" {
		t.Errorf("/proc/timer_list of a pod without user namespace has %s bytes", got)
	}
}

// TestRootOfUserNamespace: with every capability that can be asked for, and nothing hidden, the container's root has no power over the host.
func TestRootOfUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("mighty", users(300000), harness.Privileged))
	victim := d.Write(filepath.Join(d.Dir, "victim"), "untouched")
	public := filepath.Join(d.Dir, "public")
	if err := os.Mkdir(public, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(victim, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := shared(t, d, "shared")
	c := pod.Run(d.Sleeper("c", likePod(pod), with(func(s *security) { s.Privileged = true }), harness.Mounts(
		&runtimeapi.Mount{HostPath: victim, ContainerPath: "/victim"}, &runtimeapi.Mount{HostPath: public, ContainerPath: "/public"},
		&runtimeapi.Mount{HostPath: dir, ContainerPath: "/slave", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER})))
	for _, set := range []string{"CapEff", "CapBnd"} {
		if got := c.Sh("grep " + set + " /proc/self/status | cut -f2"); got != fmt.Sprintf("%016x", uint64(1)<<(lastCapability(t)+1)-1) {
			t.Errorf("%s = %s, want all", set, got)
		}
	}
	for call, want := range map[string]string{"write-core": "EACCES", "write-sysrq": "EACCES", "write-release": "EACCES", "write-sys": "EACCES", "read-kcore": "EPERM",
		"sethostname": "ok", "mount": "ok", "socket-raw": "ok", "chroot": "ok"} {
		got := strings.TrimSpace(c.Exec("probe", "call", call).Stdout)
		if got == "ENOENT" && want != "ok" {
			continue // this host has no such file
		}
		if got != want && !(got == "EACCES" && want == "EPERM") {
			t.Errorf("%s = %q, want %s", call, got, want)
		}
	}
	for _, script := range []string{"cat /victim", "echo x > /victim", "chown 0:0 /victim", "chmod 666 /victim", "touch /public/new", "rm -r /public", "mount -o remount,exec,suid,dev /victim",
		"mknod /tmp/sda b 8 0", "cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern", "echo -1000 > /proc/self/oom_score_adj", "dd if=/dev/mem of=/dev/null count=1"} {
		if r := c.Exec("sh", "-c", script); r.Code == 0 {
			t.Errorf("%q works: %+v", script, r)
		}
	}
	if got := readFile(t, victim); got != "untouched" {
		t.Errorf("the host's file says %q", got)
	}
	// The host's disks and all else of /dev that is not for everybody.
	if got := c.Sh("for f in $(find /dev -type b) $(find /dev -type c -path '*mem'); do (: < $f) 2>/dev/null && echo $f; done; true"); got != "" {
		t.Errorf("devices of the host can be opened: %q", got)
	}
	// Mounts of the host come in, and none goes out.
	if err := unix.Mount("tmpfs", filepath.Join(dir, "host"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	d.Write(filepath.Join(dir, "host/new"), "x")
	c.Sh("test -e /slave/host/new && mount -t tmpfs tmpfs /slave/sub && touch /slave/sub/inside")
	if _, err := os.Stat(filepath.Join(dir, "sub/inside")); err == nil {
		t.Error("a mount made inside is seen on the host")
	}
	c.Sh("umount /slave/host")
	if _, err := os.Stat(filepath.Join(dir, "host/new")); err != nil {
		t.Errorf("the container takes a mount of the host away: %v", err)
	}
}

func lastCapability(t testing.TB) int {
	n, err := strconv.Atoi(readFile(t, "/proc/sys/kernel/cap_last_cap"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestExecOutOfReach (threat A4): what is about to become a process of a container is a copy of the monitor until execve, with what the
// monitor has open. Whoever is in the pod with CAP_SYS_PTRACE sees it and cannot touch it. The freezer holds it in that state.
func TestExecOutOfReach(t *testing.T) {
	harness.Native(t, "user namespaces")
	if isUnified() {
		t.Skip("holds the exec with the freezer of cgroup v1")
	}
	d := startWithUsers(t)
	pod := d.RunPod(d.Pod("reach", harness.Namespaces(modePod, modePod, modePod), users(300000)))
	target := pod.Run(d.Sleeper("target", likePod(pod)))
	freezer := cgroupFile(t, cgroupOf(target, "freezer"), "freezer", "freezer.state", "")
	set := func(state string) {
		if err := os.WriteFile(freezer, []byte(state), 0); err != nil {
			t.Fatal(err)
		}
	}
	thief := pod.Run(d.Container("thief", []string{"probe", "reach", "new"}, likePod(pod), with(func(s *security) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}
	})))
	thief.WaitOutput("ready")
	set("FROZEN")
	done := make(chan string, 1)
	go func() {
		r, err := target.TryExec(time.Minute, "echo", "done")
		done <- fmt.Sprint(r.Stdout, err)
	}()
	status := thief.Wait(15 * time.Second)
	set("THAWED")
	if got := <-done; got != "done\n<nil>" {
		t.Errorf("exec after the thaw = %q", got)
	}
	out := thief.Output()
	if status.ExitCode != 0 || strings.Count(out, "\n") != 8 || strings.Contains(out, "ok") {
		t.Errorf("the thief (exit code %d) got:\n%s", status.ExitCode, out)
	}
	// The init of the pod's pid namespace is another copy.
	again := pod.Run(d.Container("again", []string{"probe", "reach", "pod-init"}, likePod(pod), with(func(s *security) {
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}}
	})))
	again.Wait(15 * time.Second)
	if out := again.Output(); strings.Count(out, "\n") != 7 || strings.Contains(out, "ok") {
		t.Errorf("the pod's init gives:\n%s", out)
	}
}
