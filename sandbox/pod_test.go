package sandbox

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/test/wait"
)

func run(t *testing.T, m *Manager, config *runtimeapi.PodSandboxConfig) string {
	t.Helper()
	id, err := m.RunPod(t.Context(), config, "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func remove(t *testing.T, m *Manager, sandboxID string) {
	t.Helper()
	if err := m.RemovePod(t.Context(), sandboxID); err != nil {
		t.Fatal(err)
	}
}

func TestPodLife(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	config := podConfig("a")
	config.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.9.9.9"}, Searches: []string{"x.y"}, Options: []string{"ndots:8"}}
	id := run(t, m, config)
	got, err := m.Pod(id[:10])
	if err != nil {
		t.Fatal(err)
	}
	if got.State != PodReady || got.ID != id || got.MonitorPID == 0 || got.Config != config {
		t.Errorf("Pod = %+v", got)
	}
	if diff := cmp.Diff([]netip.Addr{netip.MustParseAddr("10.1.2.3"), netip.MustParseAddr("fd00::3")}, got.IPs, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	dir := filepath.Join(w.cfg.State, "pods", id)
	for file, want := range map[string]string{"hostname": "a\n", "resolv.conf": "search x.y\nnameserver 10.9.9.9\noptions ndots:8\n"} {
		if text, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(text) != want {
			t.Errorf("%s = %q, %v, want %q", file, text, err, want)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "hosts")); err != nil || !strings.Contains(string(text), "10.1.2.3\ta\n") {
		t.Errorf("hosts = %q, %v", text, err)
	}
	if got := w.mounts(); len(got) != 2 {
		t.Errorf("mounts = %v, want a pin and a shm", got)
	}
	for range 2 {
		if err := m.StopPod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := m.Pod(id); got.State != PodNotReady || len(got.IPs) != 2 || got.Attachment != nil || got.MonitorPID != 0 {
		t.Errorf("Pod after stop = %+v", got)
	}
	if len(w.network.all()) != 0 || len(w.mounts()) != 0 {
		t.Errorf("after stop: attachments %v, mounts %v", w.network.all(), w.mounts())
	}
	for range 2 {
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.StopPod(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("StopPod after removal = %v", err)
	}
	w.empty()
}

func TestHostNetworkPodHasNoAttachment(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	config := podConfig("a")
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}}}
	id := run(t, m, config)
	got, _ := m.Pod(id)
	if got.NetNS != "" || got.Attachment != nil || len(got.IPs) != 0 || len(w.mounts()) != 0 || w.network.adds != 0 {
		t.Errorf("Pod = %+v, mounts %v", got, w.mounts())
	}
	host, _ := os.Hostname()
	if text, _ := os.ReadFile(filepath.Join(w.cfg.State, "pods", id, "hostname")); string(text) != host+"\n" {
		t.Errorf("hostname = %q, want the host's", text)
	}
	remove(t, m, id)
	w.empty()
}

func TestRunPodTwiceGivesOnePod(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	ids := make(chan string, 8)
	for range cap(ids) {
		go func() {
			id, err := m.RunPod(t.Context(), podConfig("a"), "")
			if err != nil {
				t.Error(err)
			}
			ids <- id
		}()
	}
	first := <-ids
	for range cap(ids) - 1 {
		if id := <-ids; id != first {
			t.Errorf("IDs %s and %s", first, id)
		}
	}
	if w.network.adds != 1 {
		t.Errorf("%d attachments were made", w.network.adds)
	}
	other := podConfig("a")
	other.Labels = map[string]string{"x": "y"}
	if _, err := m.RunPod(t.Context(), other, ""); !errors.Is(err, ErrNameInUse) || !strings.Contains(err.Error(), first) {
		t.Errorf("another configuration: %v, want ErrNameInUse naming %s", err, first)
	}
	if err := m.StopPod(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if _, err := m.RunPod(t.Context(), podConfig("a"), ""); !errors.Is(err, ErrNameInUse) {
		t.Errorf("the name of a stopped sandbox: %v, want ErrNameInUse", err)
	}
	remove(t, m, first)
	if id := run(t, m, podConfig("a")); id == first {
		t.Error("an ID was used twice")
	}
}

func TestRunPodRefusesBadInputAndLeavesNothing(t *testing.T) {
	w := newWorld(t)
	w.cfg.UserNamespaces = errors.New("the kernel is too old")
	m := w.open(nil)
	if _, err := m.RunPod(t.Context(), podConfig("a"), "kata"); !errors.Is(err, ErrUnknownHandler) {
		t.Errorf("unknown handler: %v", err)
	}
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"no metadata": func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil },
		"cgroup parent climbs": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/a/../b"}
		},
		"cgroup parent is a file": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/cgroup.procs"}
		},
		"user namespace that the host lacks": func(c *runtimeapi.PodSandboxConfig) {
			ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
			c.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids}}}}
		},
		"uid climbs": func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "../../x" },
	} {
		config := podConfig("a")
		change(config)
		_, err := m.RunPod(t.Context(), config, "")
		if invalid := (*spec.InvalidError)(nil); !errors.As(err, &invalid) && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want an invalid request", name, err)
		}
	}
	if len(m.Pods()) != 0 {
		t.Errorf("Pods = %v", m.Pods())
	}
	w.empty()
}

func TestFailedRunPodIsUndone(t *testing.T) {
	boom := errors.New("boom")
	for name, breakIt := range map[string]func(w *world){
		"plan":    func(w *world) { w.network.set("Plan", boom) },
		"network": func(w *world) { w.network.set("Add", boom) },
		"spawn":   func(w *world) { w.spawnErr = boom },
		"set-up":  func(w *world) { w.helloErr = boom },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open(nil)
			breakIt(w)
			if _, err := m.RunPod(t.Context(), podConfig("a"), ""); !errors.Is(err, boom) {
				t.Errorf("RunPod = %v", err)
			}
			w.empty()
			w.network.set("Plan", nil)
			w.network.set("Add", nil)
			w.spawnErr, w.helloErr = nil, nil
			remove(t, m, run(t, m, podConfig("a")))
			w.empty()
		})
	}
}

func TestUndoThatFailsKeepsThePodButNotItsName(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	boom := errors.New("boom")
	w.network.set("Add", boom)
	w.network.set("Del", boom)
	if _, err := m.RunPod(t.Context(), podConfig("a"), ""); !errors.Is(err, boom) {
		t.Errorf("RunPod = %v", err)
	}
	pods := m.Pods()
	if len(pods) != 1 || pods[0].State != PodNotReady || pods[0].Message == "" {
		t.Fatalf("Pods = %+v", pods)
	}
	w.network.set("Add", nil)
	second := run(t, m, podConfig("a"))
	if err := m.StopPod(t.Context(), pods[0].ID); !errors.Is(err, boom) {
		t.Errorf("StopPod while the network fails = %v", err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = w.open(nil) // it is still there after a restart, and does not take the name
	w.recovered(m)
	if id := run(t, m, podConfig("a")); id != second {
		t.Errorf("RunPod after restart = %s, want %s", id, second)
	}
	w.network.set("Del", nil)
	remove(t, m, pods[0].ID)
	remove(t, m, second)
	w.empty()
}

func TestCancelledRunPodIsUndone(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	w.network.block = make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := m.RunPod(ctx, podConfig("a"), ""); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("RunPod = %v", err)
	}
	// A retry while it is being undone waits for that, and then begins anew.
	close(w.network.block)
	id := run(t, m, podConfig("a"))
	remove(t, m, id)
	w.empty()
}

func TestAWaiterKeepsTheOperationAlive(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	w.network.block = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { _, err := m.RunPod(ctx, podConfig("a"), ""); gone <- err }()
	for len(m.Pods()) == 0 {
		time.Sleep(time.Millisecond)
	}
	id := m.Pods()[0].ID
	second := make(chan string)
	go func() { id, _ := m.RunPod(t.Context(), podConfig("a"), ""); second <- id }()
	waitFor(t, func() bool {
		m.mu.RLock()
		o := m.pods[id].create
		m.mu.RUnlock()
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.waiters == 2
	})
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("first caller: %v", err)
	}
	close(w.network.block)
	if got := <-second; got != id {
		t.Errorf("second caller got %s, want %s", got, id)
	}
	remove(t, m, id)
	w.empty()
}

func TestDeadMonitorIsSeen(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	a, b := run(t, m, podConfig("a")), run(t, m, podConfig("b"))
	c := start(t, m, createRequest(a, "c", "sleep", "1000"))
	w.monitorOf(a).kill()
	waitFor(t, func() bool {
		got, _ := m.Container(c)
		p, _ := m.Pod(a)
		return p.State == PodNotReady && got.State == ContainerExited
	})
	if got, _ := m.Container(c); got.Reason != ReasonMonitorLost || got.ExitCode != exitMonitorLost || got.FinishedAt.IsZero() {
		t.Errorf("container = %+v", got)
	}
	if p, _ := m.Pod(b); p.State != PodReady {
		t.Errorf("another sandbox suffered: %+v", p)
	}
	remove(t, m, a)
	remove(t, m, b)
	w.empty()
}

func TestHungMonitorDoesNotHoldUpStop(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	a := run(t, m, podConfig("a"))
	c := start(t, m, createRequest(a, "c", "sleep", "1000"))
	f := w.monitorOf(a)
	f.mu.Lock()
	f.hung = true
	f.mu.Unlock()
	begin := time.Now()
	if err := m.StopContainer(t.Context(), c, time.Second); err != nil {
		t.Error(err)
	}
	remove(t, m, a)
	if d := time.Since(begin); d > 30*time.Second {
		t.Errorf("it took %v", d)
	}
	w.empty()
}

func TestForeignCgroupParentIsMadeAndGivenBack(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	parent := "/" + strings.TrimPrefix(w.cfg.Cgroups.Tree(), "/") + "-parent"
	var ids []string
	for _, name := range []string{"a", "b"} {
		config := podConfig(name)
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent + "/deep/" + name}
		ids = append(ids, run(t, m, config))
		start(t, m, createRequest(ids[len(ids)-1], "c", "sleep", "1000"))
	}
	remove(t, m, ids[0])
	if !w.cfg.Cgroups.Exists(parent + "/deep/b") {
		t.Error("the other sandbox's parent is gone")
	}
	remove(t, m, ids[1])
	if w.cfg.Cgroups.Exists(parent) {
		t.Errorf("%s is left", parent)
	}
	w.empty()
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	if !wait.Until(time.Minute, 2*time.Millisecond, condition) {
		t.Fatal("it did not come about")
	}
}
