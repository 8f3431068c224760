package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/oci/spec/host"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
)

// folderRootFS gives every container an overlay over one folder.
type folderRootFS struct{ lower, upper string }

func (r *folderRootFS) Prepare(_ context.Context, key, _ string, _ []string) (runtime.Trees, error) {
	up, work := filepath.Join(r.upper, key, "up"), filepath.Join(r.upper, key, "work")
	for _, dir := range []string{up, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return runtime.Trees{}, err
		}
	}
	return runtime.Trees{Root: []runtime.Mount{{Type: "overlay", Options: []string{"lowerdir+=" + r.lower, "upperdir=" + up, "workdir=" + work}}}}, nil
}

func (r *folderRootFS) Release(_ context.Context, key string) error {
	return os.RemoveAll(filepath.Join(r.upper, key))
}

func (r *folderRootFS) Keys(context.Context) ([]string, error) {
	entries, err := os.ReadDir(r.upper)
	var keys []string
	for _, e := range entries {
		keys = append(keys, e.Name())
	}
	return keys, err
}

// realManager runs on the real monitor, engine and network. It needs a static busybox.
func realManager(t testing.TB) (*Manager, Config) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root for namespaces, mounts and cgroups")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("busybox-static is needed:", err)
	}
	dir := t.TempDir()
	lower := filepath.Join(dir, "lower")
	binary := filepath.Join(dir, "berth-monitor")
	build := exec.Command("go", "build", "-o", binary, "github.com/berthd/berth/cmd/berth-monitor")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		os.MkdirAll(filepath.Join(lower, d), 0o755)
	}
	os.MkdirAll(filepath.Join(dir, "upper"), 0o700)
	text, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "sleep", "true", "cat", "hostname", "ip", "stty", "seq", "dd", "nc", "head", "ps", "setsid", "tr"} {
		os.WriteFile(filepath.Join(lower, "bin", name), text, 0o755)
	}
	instance := fmt.Sprintf("%06x", os.Getpid()&0xffffff)
	cgroups, err := cgroup.Open(instance)
	if err != nil {
		t.Fatal(err)
	}
	group, err := cgroups.Monitors()
	if err != nil {
		t.Fatal(err)
	}
	spawner, err := monitor.NewSpawner(binary, group.Dirs)
	if err != nil {
		t.Fatal(err)
	}
	facts, err := host.Read()
	if err != nil {
		t.Fatal(err)
	}
	network, err := cni.Open(t.Context(), cni.Config{Live: cni.Live{ConfDir: filepath.Join(dir, "net.d")}, CacheDir: filepath.Join(dir, "network"), Instance: instance,
		Bridge: cni.BridgeConfig{Name: "bt" + instance, Subnets: []netip.Prefix{netip.MustParsePrefix("10.231.0.0/16")}}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Instance: instance, Network: network,
		RootFS: &folderRootFS{lower: lower, upper: filepath.Join(dir, "upper")}, Spawner: spawner, Cgroups: cgroups, Host: facts,
		NetNSFolder: filepath.Join(dir, "netns"), Handlers: map[string]*external.Program{"": nil}}
	if runc, err := exec.LookPath("runc"); err == nil {
		cfg.Handlers["runc"] = &external.Program{Path: runc, Root: filepath.Join(cfg.State, "runtimes", "runc")}
	}
	m, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range m.Pods() {
			if err := m.RemovePod(context.Background(), p.ID); err != nil {
				t.Error(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		m.Close(ctx)
		spawner.Close()
		group.Close()
		network.Close()
		exec.Command("ip", "link", "del", "bt"+instance).Run()
		if err := cgroups.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, cfg
}

func TestRealPod(t *testing.T) {
	m, _ := realManager(t)
	config := podConfig("real")
	config.LogDirectory = t.TempDir()
	p := run(t, m, config)
	r := createRequest(p, "c")
	r.Config.Command = []string{"/bin/sh", "-c", "trap 'exit 7' TERM; echo out; while :; do sleep 0.1; done"}
	r.Config.LogPath = "c.log"
	c := start(t, m, r)
	log := filepath.Join(config.LogDirectory, "c.log")
	waitFor(t, func() bool { text, _ := os.ReadFile(log); return strings.HasSuffix(string(text), " stdout F out\n") }) // the trap is set
	result, err := m.ExecSync(t.Context(), c, []string{"/bin/sh", "-c", "hostname; cat /etc/hostname; ip addr >&2"}, 0)
	if err != nil || string(result.Stdout.Head) != "real\nreal\n" {
		t.Errorf("ExecSync = %q %q, %v", result.Stdout.Head, result.Stderr.Head, err)
	}
	if _, err := m.ExecSync(t.Context(), c, []string{"/bin/none"}, 0); err == nil {
		t.Error("exec of a missing file succeeded")
	}
	if err := m.StopContainer(t.Context(), c, time.Minute); err != nil {
		t.Error(err)
	}
	if got, _ := m.Container(c); got.ExitCode != 7 || got.Reason != ReasonError {
		t.Errorf("container = %+v", got)
	}
	r = createRequest(p, "bad", "/no/such")
	bad := create(t, m, r)
	err = m.StartContainer(t.Context(), bad)
	t.Log(err)
	remove(t, m, p)
}

func benchPod(ctx context.Context, m *Manager, name string) (pod, create, start, exec, stop time.Duration, err error) {
	t0 := time.Now()
	p, err := m.RunPod(ctx, &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: name}, Hostname: "h"}, "")
	if err != nil {
		return
	}
	t1 := time.Now()
	c, err := m.CreateContainer(ctx, createRequest(p, "c", "/bin/sleep", "1000"))
	if err != nil {
		return
	}
	t2 := time.Now()
	if err = m.StartContainer(ctx, c); err != nil {
		return
	}
	t3 := time.Now()
	if _, err = m.ExecSync(ctx, c, []string{"/bin/true"}, 0); err != nil {
		return
	}
	t4 := time.Now()
	if err = m.StopPod(ctx, p); err != nil {
		return
	}
	err = m.RemovePod(ctx, p)
	t5 := time.Now()
	return t1.Sub(t0), t2.Sub(t1), t3.Sub(t2), t4.Sub(t3), t5.Sub(t4), err
}

func BenchmarkPod(b *testing.B) {
	m, _ := realManager(b)
	var all [5][]time.Duration
	for i := range b.N {
		var d [5]time.Duration
		var err error
		d[0], d[1], d[2], d[3], d[4], err = benchPod(b.Context(), m, fmt.Sprint(b.N, "-", i))
		if err != nil {
			b.Fatal(err)
		}
		for k := range d {
			all[k] = append(all[k], d[k])
		}
	}
	for k, name := range []string{"run", "create", "start", "exec", "gone"} {
		slices.Sort(all[k])
		b.ReportMetric(float64(all[k][len(all[k])/2].Microseconds()), name+"-us")
	}
}

func BenchmarkPodsAtOnce(b *testing.B) {
	m, _ := realManager(b)
	var group sync.WaitGroup
	slots := make(chan struct{}, 10)
	for i := range b.N {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if _, _, _, _, _, err := benchPod(b.Context(), m, fmt.Sprint(b.N, "-", i)); err != nil {
				b.Error(err)
			}
		})
	}
	group.Wait()
}
