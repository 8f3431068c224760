package integration_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

const (
	modePod       = runtimeapi.NamespaceMode_POD
	modeContainer = runtimeapi.NamespaceMode_CONTAINER
	modeNode      = runtimeapi.NamespaceMode_NODE
	modeTarget    = runtimeapi.NamespaceMode_TARGET
)

// likePod gives a container the namespace modes of its pod, as the kubelet does.
func likePod(pod *harness.Pod) harness.ContainerOption {
	return harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.NamespaceOptions = pod.Config.Linux.SecurityContext.NamespaceOptions
	})
}

func TestNamespacesOfThePod(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("spaces"))
	a, b := pod.Run(d.Sleeper("a", likePod(pod))), pod.Run(d.Sleeper("b", likePod(pod)))
	pa, pb := strconv.Itoa(a.PID()), strconv.Itoa(b.PID())
	for _, name := range []string{"net", "ipc", "uts"} {
		if namespace(t, pa, name) != namespace(t, pb, name) || namespace(t, pa, name) == namespace(t, "self", name) {
			t.Errorf("%s: a %s, b %s, host %s", name, namespace(t, pa, name), namespace(t, pb, name), namespace(t, "self", name))
		}
	}
	for _, name := range []string{"pid", "mnt"} {
		if namespace(t, pa, name) == namespace(t, pb, name) || namespace(t, pa, name) == namespace(t, "self", name) {
			t.Errorf("%s: a %s, b %s, host %s", name, namespace(t, pa, name), namespace(t, pb, name), namespace(t, "self", name))
		}
	}
	if got := a.Sh("hostname; cat /etc/hostname; cat /proc/1/comm"); got != "spaces\nspaces\nsh" {
		t.Errorf("hostname, /etc/hostname, first process = %q", got)
	}
	if got := a.Sh("echo shared > /dev/shm/x; ipcmk -M 4096 >/dev/null 2>&1; cat /dev/shm/x"); got != "shared" {
		t.Errorf("/dev/shm/x = %q", got)
	}
	if got := b.Sh("cat /dev/shm/x"); got != "shared" {
		t.Errorf("/dev/shm/x of the other container = %q", got)
	}
}

func TestNamespacesOfTheNode(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("node", harness.Namespaces(modeNode, modeNode, modeNode)))
	c := pod.Run(d.Sleeper("c", likePod(pod)))
	pid := strconv.Itoa(c.PID())
	for _, name := range []string{"net", "ipc", "pid", "uts"} {
		if got, host := namespace(t, pid, name), namespace(t, "self", name); got != host {
			t.Errorf("%s: %s, host %s", name, got, host)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Sh("hostname"); got != host {
		t.Errorf("hostname = %q, want %q", got, host)
	}
	if got := c.Sh(fmt.Sprintf("cat /proc/%d/comm", os.Getpid())); got != strings.TrimSpace(readFile(t, "/proc/self/comm")) {
		t.Errorf("the host's processes are not seen: %q", got)
	}
	if ip := pod.Status().GetNetwork().GetIp(); ip != "" {
		t.Errorf("address of a pod in the host's network = %q", ip)
	}
	want := readFile(t, "/etc/hosts")
	if got := c.Sh("cat /etc/hosts"); strings.TrimSpace(got) != want {
		t.Errorf("/etc/hosts = %q, want the host's %q", got, want)
	}
	// With the host's PIDs, the container's end must end its children too.
	c2 := pod.Run(d.Container("children", []string{"probe", "fork", "3"}, likePod(pod)))
	c2.WaitOutput("forked 3")
	c2.Stop(0)
	c2.Remove()
	d.Check()
}

func TestSharedPIDNamespace(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("shared", harness.Namespaces(modePod, modePod, modePod)))
	a, b := pod.Run(d.Sleeper("a", likePod(pod))), pod.Run(d.Sleeper("b", likePod(pod)))
	if got, want := namespace(t, strconv.Itoa(a.PID()), "pid"), namespace(t, strconv.Itoa(b.PID()), "pid"); got != want {
		t.Errorf("pid: a %s, b %s", got, want)
	}
	if got := a.Sh("echo $$"); got == "1" {
		t.Error("a container of a pod with one PID namespace is PID 1")
	}
	if got := a.Sh("grep -E '^(CapPrm|CapBnd|NoNewPrivs):' /proc/1/status | cut -f2"); got != "0000000000000000\n0000000000000000\n1" {
		t.Errorf("the first process, which containers may be able to trace, has %q", got)
	}
	if got := a.Sh("ls /proc | grep -c '^[0-9]'"); got < "4" && len(got) == 1 {
		t.Errorf("%s processes are seen, want those of both containers", got)
	}
	// What the container leaves behind goes with it, and the other one goes on.
	c := pod.Run(d.Shell("c", "sleep 1000 & sleep 1000 & exit 7", likePod(pod)))
	if s := c.Wait(5 * time.Second); s.ExitCode != 7 {
		t.Errorf("exit code = %d, want 7", s.ExitCode)
	}
	d.Check()
	a.Stop(time.Second)
	if s := b.Status(); s.State != running {
		t.Errorf("the other container is %s", s.State)
	}
	// The first process of the namespace collects orphans.
	pod.Run(d.Shell("orphans", "sh -c 'for i in 1 2 3 4 5 6 7 8; do sleep 0.05 & done; exit'; echo left; sleep 1000", likePod(pod))).WaitOutput("left")
	d.Eventually(harness.Patience, "all orphans are collected", func() bool {
		return b.Sh("ps -o args | grep -c '^sleep 0[.]05'; grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l") == "0\n0"
	})
}

func TestTargetPIDNamespace(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("target"))
	a := pod.Run(d.Sleeper("a"))
	target := func(id string) harness.ContainerOption {
		return harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: modeTarget, TargetId: id}
		})
	}
	b := pod.Run(d.Sleeper("b", target(a.ID)))
	if got, want := namespace(t, strconv.Itoa(b.PID()), "pid"), namespace(t, strconv.Itoa(a.PID()), "pid"); got != want {
		t.Errorf("pid: %s, target %s", got, want)
	}
	if got := b.Sh("cat /proc/1/comm; ls /proc/1/root/data >/dev/null && echo seen"); got != "sh\nseen" {
		t.Errorf("first process and its root = %q", got)
	}
	other := d.RunPod(d.Pod("other"))
	far := other.Run(d.Sleeper("far"))
	_, err := pod.TryCreate(d.Sleeper("c", target(far.ID)))
	if err == nil {
		t.Error("the target may be in another pod")
	}
	a.Stop(time.Second)
	d.Eventually(5*time.Second, "b ends with its PID namespace", func() bool { return b.Status().State == exited })
	c, err := pod.TryCreate(d.Sleeper("d", target(a.ID)))
	if err == nil {
		err = c.TryStart()
	}
	if err == nil {
		t.Error("the target may have exited")
	}
}

func TestSysctls(t *testing.T) {
	d := harness.Start(t)
	host := readFile(t, "/proc/sys/kernel/shm_rmid_forced")
	config := d.Pod("sysctls")
	config.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_unprivileged_port_start": "80", "fs.mqueue.msg_max": "17", "net.ipv4.tcp_keepalive_time": "77"}
	pod := d.RunPod(config)
	c := pod.Run(d.Sleeper("c"))
	if got := c.Sh("cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/fs/mqueue/msg_max /proc/sys/net/ipv4/tcp_keepalive_time"); got != "1\n80\n17\n77" {
		t.Errorf("sysctls = %q", got)
	}
	if got := readFile(t, "/proc/sys/kernel/shm_rmid_forced"); got != host {
		t.Errorf("the host's value changed from %s to %s", host, got)
	}
	for name, bad := range map[string]map[string]string{
		"of the host":        {"kernel.core_pattern": "|/x"},
		"smuggled":           {"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/x"},
		"parent folder":      {"net/../kernel/core_pattern": "x"},
		"newline":            {"net.ipv4.ip_forward": "1\n0"},
		"unknown":            {"net.ipv4.no_such_thing": "1"},
		"value out of range": {"kernel.shm_rmid_forced": "77777777777777"},
	} {
		config := d.Pod("bad")
		config.Linux.Sysctls = bad
		if _, err := d.TryRunPod(config); err == nil {
			t.Errorf("sysctl %s (%v) is accepted", name, bad)
		}
	}
	for name, bad := range map[string]struct {
		sysctl        string
		network, proc runtimeapi.NamespaceMode
	}{
		"net with the host's network": {"net.ipv4.tcp_keepalive_time", modeNode, modePod},
		"ipc with the host's IPC":     {"kernel.shm_rmid_forced", modePod, modeNode},
	} {
		config := d.Pod("bad", harness.Namespaces(bad.network, modeContainer, bad.proc))
		config.Linux.Sysctls = map[string]string{bad.sysctl: "1"}
		_, err := d.TryRunPod(config)
		wantCode(t, name, err, codes.InvalidArgument)
	}
	if got := readFile(t, "/proc/sys/kernel/shm_rmid_forced"); got != host {
		t.Errorf("the host's value changed from %s to %s", host, got)
	}
}

func TestDNS(t *testing.T) {
	d := harness.Start(t)
	config := d.Pod("dns")
	config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10", "fd00::10"}, Searches: []string{"a.svc", "svc"}, Options: []string{"ndots:5", "edns0"}}
	pod := d.RunPod(config)
	c := pod.Run(d.Sleeper("c"))
	if got, want := c.Sh("cat /etc/resolv.conf"), "search a.svc svc\nnameserver 10.96.0.10\nnameserver fd00::10\noptions ndots:5 edns0"; !sameLines(got, want) {
		t.Errorf("resolv.conf = %q, want the lines %q", got, want)
	}
	plain := d.RunPod(d.Pod("plain")).Run(d.Sleeper("c"))
	if got := plain.Sh("cat /etc/resolv.conf"); got != strings.TrimSuffix(readRaw(t, "/etc/resolv.conf"), "\n") {
		t.Errorf("resolv.conf without a configuration = %q, want the host's", got)
	}
	if got := plain.Sh("grep plain /etc/hosts"); !strings.Contains(got, plain.IPs()[0]) {
		t.Errorf("/etc/hosts = %q, want the pod's name and address", got)
	}
}

func sameLines(a, b string) bool {
	lines := func(s string) map[string]bool {
		m := map[string]bool{}
		for l := range strings.Lines(s + "\n") {
			m[strings.TrimSpace(l)] = true
		}
		delete(m, "")
		return m
	}
	x, y := lines(a), lines(b)
	for l := range x {
		if !y[l] {
			return false
		}
	}
	return len(x) == len(y)
}

func readRaw(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
