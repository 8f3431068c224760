package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// usersLength is how many IDs the user namespaces of these tests map, as the kubelet does.
const usersLength = 65536

// users gives a pod a user namespace whose root is the user first of the host.
func users(first uint32) harness.PodOption {
	return func(c *runtimeapi.PodSandboxConfig) {
		ids := []*runtimeapi.IDMapping{{HostId: first, Length: usersLength}}
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
	}
}

// mapped gives a mount of a pod the pod's mappings, as the kubelet does.
func mapped(pod *harness.Pod, m *runtimeapi.Mount) *runtimeapi.Mount {
	u := pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions
	m.UidMappings, m.GidMappings = u.Uids, u.Gids
	return m
}

// owner is whom a file belongs to.
func owner(t testing.TB, path string) uint32 {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Uid
}

func TestUserNamespaceOfThePod(t *testing.T) {
	d := harness.Start(t)
	const first = 300000
	pod := d.RunPod(d.Pod("users", users(first)))
	a, b := pod.Run(d.Sleeper("a", likePod(pod))), pod.Run(d.Sleeper("b", likePod(pod)))
	pa, pb := fmt.Sprint(a.PID()), fmt.Sprint(b.PID())
	for _, name := range []string{"user", "net", "ipc", "uts"} {
		if namespace(t, pa, name) != namespace(t, pb, name) || namespace(t, pa, name) == namespace(t, "self", name) {
			t.Errorf("%s: a %s, b %s, host %s", name, namespace(t, pa, name), namespace(t, pb, name), namespace(t, "self", name))
		}
	}
	if got := owner(t, "/proc/"+pa); got != first {
		t.Errorf("the container's process is the host's user %d, want %d", got, first)
	}
	for _, c := range []*harness.Container{a, b} {
		if got := strings.Join(strings.Fields(c.Sh("cat /proc/1/uid_map /proc/1/gid_map")), " "); got != "0 300000 65536 0 300000 65536" {
			t.Errorf("mappings = %q", got)
		}
		if got := c.Sh("id -u; stat -c '%u %g %n' / /bin/busybox /etc/passwd /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev /dev/null /dev/pts/ptmx /dev/mqueue"); got !=
			"0\n0 0 /\n0 0 /bin/busybox\n0 0 /etc/passwd\n0 0 /etc/hosts\n0 0 /etc/hostname\n0 0 /etc/resolv.conf\n0 0 /dev/shm\n0 0 /dev\n0 0 /dev/null\n0 0 /dev/pts/ptmx\n0 0 /dev/mqueue" {
			t.Errorf("owners seen in the container:\n%s", got)
		}
	}
	if got := a.Sh("hostname; cat /proc/sys/kernel/hostname; grep -c eth0 /proc/net/dev; ls /sys/class/net | tr '\\n' ' '"); got != "users\nusers\n1\neth0 lo " {
		t.Errorf("hostname and links = %q", got)
	}
	a.Sh("echo shared > /dev/shm/x && echo 10.0.0.1 other >> /etc/hosts && echo x > /etc/made && chown 33:33 /etc/made && rm /etc/passwd && ping -c 1 -w 5 127.0.0.1")
	if got := b.Sh("cat /dev/shm/x; tail -n 1 /etc/hosts; cat /etc/passwd | head -n 1"); got != "shared\n10.0.0.1 other\nroot:x:0:0:root:/root:/bin/sh" {
		t.Errorf("the other container sees %q", got)
	}
	if got := a.Sh("stat -c %u:%g /etc/made"); got != "33:33" {
		t.Errorf("a file of the container's user 33 belongs to %s there", got)
	}
	stats, err := d.Runtime.ContainerStats(d.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: a.ID})
	if err != nil || stats.GetStats().GetWritableLayer().GetInodesUsed().GetValue() == 0 {
		t.Errorf("statistics: %v, %v", stats, err)
	}
	d.Kill()
	d.Restart()
	if got := a.Sh("id -u; stat -c %u /etc/made"); got != "0\n33" {
		t.Errorf("after a restart = %q", got)
	}
	c := pod.Run(d.Shell("late", "cat /proc/self/uid_map", likePod(pod)))
	if s := c.Wait(10 * time.Second); s.ExitCode != 0 {
		t.Errorf("a container that came after a restart: %+v", s)
	}
	a.Stop(time.Second)
	pod.Stop()
	pod.Remove()
	d.Check()
}

func TestVolumesOfUserNamespace(t *testing.T) {
	d := harness.Start(t)
	const first = 400000
	pod := d.RunPod(d.Pod("volumes", users(first)))
	own, plain := filepath.Join(d.Dir, "own"), filepath.Join(d.Dir, "plain")
	for _, dir := range []string{own, plain} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(own, "f"), 33, 33); err != nil {
		t.Fatal(err)
	}
	c := pod.Run(d.Sleeper("c", likePod(pod), harness.Mounts(
		mapped(pod, &runtimeapi.Mount{HostPath: own, ContainerPath: "/own"}), &runtimeapi.Mount{HostPath: plain, ContainerPath: "/plain"})))
	if got := c.Sh("stat -c %u /own /own/f /plain /plain/f; echo new > /own/new; chown 7:7 /own/new; cat /own/f"); got != "0\n33\n65534\n65534\nx" {
		t.Errorf("owners seen in the container: %q", got)
	}
	if got := owner(t, filepath.Join(own, "new")); got != 7 {
		t.Errorf("a file that user 7 of the container made belongs to %d on the host", got)
	}
	if r := c.Exec("sh", "-c", "cat /plain/f || echo x > /plain/new"); r.Code == 0 {
		t.Errorf("a volume without mappings is open to the container's root: %+v", r)
	}
}
