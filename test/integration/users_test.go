package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
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

// startWithUsers starts a daemon for tests of user namespaces.
func startWithUsers(t *testing.T, options ...harness.Option) *harness.Daemon {
	t.Helper()
	harness.Native(t, "user namespaces")
	d := harness.Start(t, options...)
	needUsers(t, d)
	return d
}

// needUsers skips a test where pods cannot have user namespaces.
func needUsers(t *testing.T, d *harness.Daemon) {
	t.Helper()
	r, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range r.RuntimeHandlers {
		if h.Name == "" && h.Features.GetUserNamespaces() {
			return
		}
	}
	t.Skip("this kernel, or the file system of the test's folder, has no ID-mapped mounts")
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
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
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
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
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

	// As the kubelet mounts it: a single file, which root of the container writes.
	message := d.Write(filepath.Join(d.Dir, "message"), "")
	pod.Run(d.Shell("message", "echo bye > /dev/termination-log", likePod(pod), harness.Mounts(
		mapped(pod, &runtimeapi.Mount{HostPath: message, ContainerPath: "/dev/termination-log"})))).Wait(10 * time.Second)
	if got := readFile(t, message); got != "bye" {
		t.Errorf("termination message = %q", got)
	}

	// Threat B3: what a request puts in place of the pod's own files is the host's.
	d.Write(filepath.Join(d.Dir, "hosts"), "127.0.0.1 victim")
	over := pod.Run(d.Sleeper("over", likePod(pod), harness.Mounts(mapped(pod, &runtimeapi.Mount{HostPath: filepath.Join(d.Dir, "hosts"), ContainerPath: "/etc/hosts"}),
		&runtimeapi.Mount{HostPath: filepath.Join(d.Dir, "hosts"), ContainerPath: "/etc/resolv.conf", Readonly: true})))
	if got := over.Sh("cat /etc/hosts /etc/resolv.conf; stat -c %u /etc/hosts /etc/resolv.conf"); got != "127.0.0.1 victim127.0.0.1 victim0\n65534" {
		t.Errorf("files of the request = %q", got)
	}
	if got := owner(t, filepath.Join(d.Dir, "hosts")); got != 0 {
		t.Errorf("on the host the file belongs to %d", got)
	}

	// A volume with the pod's fsGroup: it is of that group on disk, with mode 2770, and the container has the group beside its own.
	group := filepath.Join(d.Dir, "group")
	if err := errors.Join(os.Mkdir(group, 0o770), os.Chown(group, 0, 1234), os.Chmod(group, 0o770|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	member := pod.Run(d.Sleeper("member", likePod(pod), with(func(s *security) { s.RunAsUser, s.SupplementalGroups = value(1000), []int64{1234} }),
		harness.Mounts(mapped(pod, &runtimeapi.Mount{HostPath: group, ContainerPath: "/group"}))))
	if got := member.Sh("echo x > /group/f; stat -c %u:%g /group/f; id -G"); got != "1000:1234\n0 1234" {
		t.Errorf("a file in a volume with fsGroup, and the container's groups: %q", got)
	}

	// Another mapping than the pod's is what the request says.
	other := &runtimeapi.Mount{HostPath: own, ContainerPath: "/own", UidMappings: []*runtimeapi.IDMapping{{HostId: first + 100, Length: 1}, {ContainerId: 7, HostId: first + 50, Length: 1}},
		GidMappings: []*runtimeapi.IDMapping{{HostId: first, Length: 10}}}
	shifted := pod.Run(d.Sleeper("shifted", likePod(pod), harness.Mounts(other)))
	if got := shifted.Sh("stat -c %u:%g /own /own/new /own/f"); got != "100:0\n50:7\n65534:65534" {
		t.Errorf("owners with a mapping of the mount's own: %q", got)
	}

	// A file system that cannot map owners.
	bad := pod.Create(d.Sleeper("bad", likePod(pod), harness.Mounts(mapped(pod, &runtimeapi.Mount{HostPath: "/proc/sys", ContainerPath: "/x"}))))
	if err := bad.TryStart(); !contains(err, `map owners of mount source "/proc/sys": operation not supported`) {
		t.Errorf("a mount of a file system without mapped owners: %v", err)
	}
}

func TestUserNamespacesOfOneImage(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	layers := filepath.Join(d.Options().Root, "images", "layers")
	d.RunPod(d.Pod("plain")).Run(d.Sleeper("c"))
	before := tree(t, layers)
	if len(before) < 10 {
		t.Fatalf("%d files in the image's layers", len(before))
	}
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			pod := d.RunPod(d.Pod(fmt.Sprintf("mapped-%d", i), users(uint32(500000+i*usersLength))))
			c := pod.Run(d.Sleeper("c", likePod(pod)))
			if got := c.Sh(fmt.Sprintf("echo %d > /etc/passwd; chown 5 /bin/busybox; chmod 700 /etc; rm /etc/group; mkdir -p /a/b; stat -c %%u /etc/passwd /bin/busybox /etc /a/b /tmp", i)); got != "0\n5\n0\n0\n0" {
				t.Errorf("pod %d sees owners %q", i, got)
			}
			if got := c.Sh("cat /etc/passwd"); got != fmt.Sprint(i) {
				t.Errorf("pod %d sees what another wrote: %q", i, got)
			}
			if got := owner(t, fmt.Sprintf("/proc/%d", c.PID())); got != uint32(500000+i*usersLength) {
				t.Errorf("pod %d runs as the host's user %d", i, got)
			}
			upper := filepath.Join(d.Options().Root, "images", "containers", c.ID, "upper")
			if got := owner(t, filepath.Join(upper, "etc/passwd")); got != 0 {
				t.Errorf("pod %d: on disk /etc/passwd belongs to %d", i, got)
			}
		})
	}
	all.Wait()
	after := tree(t, layers)
	for path, want := range before {
		if after[path] != want {
			t.Errorf("%s was %s, is %s", path, want, after[path])
		}
	}
	if len(after) != len(before) {
		t.Errorf("the image had %d files, has %d", len(before), len(after))
	}
}

// tree tells what is below a folder: owner, mode and time of change of each file.
func tree(t testing.TB, folder string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.Walk(folder, func(path string, info os.FileInfo, err error) error {
		if err == nil {
			st := info.Sys().(*syscall.Stat_t)
			files[path] = fmt.Sprintf("%d:%d %o, changed %d.%d", st.Uid, st.Gid, st.Mode, st.Ctim.Sec, st.Ctim.Nsec)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// A pod with a user namespace in the host's network: it sees that, and has no power over it (KEP-5607).
func TestUserNamespaceWithHostNetwork(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	status, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil || !status.GetFeatures().GetUserNamespacesHostNetwork() {
		t.Errorf("features = %v, %v", status.GetFeatures(), err)
	}
	const first = 650000
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(d.Pod("hostnet", users(first), func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = modeNode
		c.Hostname = "not-the-hosts"
	}))
	c := pod.Run(d.Sleeper("c", likePod(pod)))
	pid := fmt.Sprint(c.PID())
	for name, shared := range map[string]bool{"net": true, "uts": true, "user": false, "ipc": false, "mnt": false, "pid": false} {
		if (namespace(t, pid, name) == namespace(t, "self", name)) != shared {
			t.Errorf("namespace %s: is the host's, or is not: want %t", name, shared)
		}
	}
	if got := owner(t, "/proc/"+pid); got != first {
		t.Errorf("the container's process is the host's user %d, want %d", got, first)
	}
	if got := strings.Join(strings.Fields(c.Sh("cat /proc/self/uid_map")), " "); got != "0 650000 65536" {
		t.Errorf("mappings = %q", got)
	}
	if now, err := os.Hostname(); err != nil || now != host || c.Sh("hostname") != host {
		t.Errorf("hostname = %q, %q inside, %v, want %q", now, c.Sh("hostname"), err, host)
	}
	if got, want := c.Sh("cat /sys/class/net/lo/ifindex; ls /sys/class/net | wc -l; stat -c %u /sys/class/net"), "1\n"; !strings.HasPrefix(got, want) || !strings.HasSuffix(got, "\n65534") {
		t.Errorf("the host's links in /sys: %q", got)
	}
	if got := c.Exec("ls", "/sys/class/net"); !strings.Contains("\n"+got.Stdout, "\n"+d.Options().Bridge+"\n") {
		t.Errorf("the host's bridge is not among the links in /sys: %+v", got)
	}
	options := "," + c.Sh("grep ' /sys ' /proc/self/mountinfo | cut -d' ' -f6") + ","
	for _, o := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if !strings.Contains(options, ","+o+",") {
			t.Errorf("options of /sys are %q", options)
		}
	}
	for _, script := range []string{"ip link set lo down", "hostname other", "ip link add x type bridge", "mount -t sysfs sysfs /tmp", "nc -l -p 1 -w 1 127.0.0.1"} {
		if r := c.Exec("sh", "-c", script); r.Code == 0 || !strings.Contains(strings.ToLower(r.Stderr), "permi") {
			t.Errorf("%q is not refused: %+v", script, r)
		}
	}
	if got := c.Sh("ls /sys/kernel/debug /sys/fs/bpf /sys/kernel/security 2>/dev/null | grep -v : | grep -c . ; ls -d /sys/fs/cgroup"); got != "0\n/sys/fs/cgroup" {
		t.Errorf("mounts of the host below /sys: %q", got)
	}
	if s, err := d.Runtime.PodSandboxStatus(d.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID}); err != nil || s.Status.Network.Ip != "" {
		t.Errorf("the pod's address: %v, %v", s.GetStatus().GetNetwork(), err)
	}
	d.Restart()
	if got := c.Sh("cat /proc/self/uid_map | wc -l"); got != "1" {
		t.Errorf("after a restart: %q", got)
	}
	pod.Run(d.Shell("late", "test -e /sys/class/net/lo", likePod(pod))).Wait(10 * time.Second)
	pod.Remove()
	d.Check()
}

func TestUserNamespaceRefusals(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	for name, change := range map[string]func(*runtimeapi.NamespaceOption){
		"the host's pids": func(o *runtimeapi.NamespaceOption) { o.Pid = modeNode },
		"the host's ipc":  func(o *runtimeapi.NamespaceOption) { o.Ipc = modeNode },
		"the host's root": func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 0 },
		"two mappings": func(o *runtimeapi.NamespaceOption) {
			more := &runtimeapi.IDMapping{HostId: 700000, ContainerId: 65536, Length: 65536}
			o.UsernsOptions.Uids, o.UsernsOptions.Gids = append(o.UsernsOptions.Uids, more), append(o.UsernsOptions.Gids, more)
		},
		"root that is not mapped": func(o *runtimeapi.NamespaceOption) {
			o.UsernsOptions.Uids[0].ContainerId, o.UsernsOptions.Gids[0].ContainerId = 1, 1
		},
		"a group that root does not map": func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids[0].ContainerId = 1 },
		"fewer groups than users":        func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids[0].Length = 1000 },
		"nobody": func(o *runtimeapi.NamespaceOption) {
			o.UsernsOptions.Uids[0].Length, o.UsernsOptions.Gids[0].Length = 0, 0
		},
		"the host's users, with mappings": func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = modeNode },
		"a container's users":             func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = modeContainer },
		"no groups":                       func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = nil },
		"no users":                        func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids = nil },
		"a target's users":                func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = modeTarget },
		"too many IDs":                    func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].Length = 1<<32 - 1 },
	} {
		config := d.Pod("bad", users(600000))
		config.Hostname = ""
		ids := func() []*runtimeapi.IDMapping { return []*runtimeapi.IDMapping{{HostId: 600000, Length: 65536}} }
		config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids(), Gids: ids()}
		change(config.Linux.SecurityContext.NamespaceOptions)
		_, err := d.TryRunPod(config)
		wantCode(t, name, err, codes.InvalidArgument)
	}
	plain, pod := d.RunPod(d.Pod("plain")), d.RunPod(d.Pod("users", users(600000)))
	for _, tc := range []struct {
		name, rule string
		pod        *harness.Pod
		option     harness.ContainerOption
	}{
		{"a user that is not mapped", `user "70000": is not mapped in the pod's user namespace, which has 65536 users`, pod,
			with(func(s *security) { s.RunAsUser = value(70000) })},
		{"a group that is not mapped", `group "70001": is not mapped`, pod, with(func(s *security) { s.RunAsUser, s.RunAsGroup = value(1), value(70001) })},
		{"a supplemental group that is not mapped", `group "65536": is not mapped`, pod, with(func(s *security) { s.SupplementalGroups = []int64{65536} })},
		{"an image's user that is not mapped", `user "80000": is not mapped`, pod, func(c *runtimeapi.ContainerConfig) {
			ref := accounts(t, "80000")
			d.Pull(ref)
			harness.Image(ref)(c)
		}},
		{"the user namespace of another pod", "must be the pod's", pod, with(func(s *security) {
			s.NamespaceOptions = d.Pod("other", users(700000)).Linux.SecurityContext.NamespaceOptions
		})},
		{"the host's users", "must be the pod's", pod, with(func(s *security) {
			s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: modeNode}
		})},
		{"a user namespace in a pod without", "must be the pod's", plain, likePod(pod)},
		{"mapped owners in a pod without", "without a user namespace", plain, harness.Mounts(mapped(pod, &runtimeapi.Mount{HostPath: d.Dir, ContainerPath: "/x"}))},
		{"mounting on the host", "user namespace", pod, func(c *runtimeapi.ContainerConfig) {
			likePod(pod)(c)
			harness.Mounts(&runtimeapi.Mount{HostPath: shared(t, d, "shared"), ContainerPath: "/x", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL})(c)
		}},
	} {
		config := d.Sleeper("bad", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeContainer}
		}, tc.option)
		_, err := tc.pod.TryCreate(config)
		wantCode(t, tc.name, err, codes.InvalidArgument)
		if !contains(err, tc.rule) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.rule)
		}
	}
	if s := pod.Run(d.Sleeper("last", with(func(s *security) { s.RunAsUser = value(65535) }))).Status(); s.State != running {
		t.Errorf("the last user that is mapped: %s", s.Message)
	}
}
