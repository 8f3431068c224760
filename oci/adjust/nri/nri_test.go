package nri

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/test/wait"
)

// plain is a container before plugins.
func plain() *adjust.Container {
	limit := int64(1000)
	return &adjust.Container{
		ID: "c", SandboxID: "p", Config: &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100, MemoryLimitInBytes: 1 << 20, MemorySwapLimitInBytes: 1 << 20}}},
		Sandbox: &adjust.Sandbox{Config: &runtimeapi.PodSandboxConfig{}},
		Spec: &specs.Spec{
			Process:     &specs.Process{Args: []string{"sh"}, Env: []string{"A=1", "B=2", "C=3"}, Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}}},
			Annotations: map[string]string{"old": "1", "gone": "1"},
			Mounts:      []specs.Mount{{Destination: "/proc"}, {Destination: "/dev"}, {Destination: "/dev/shm"}},
			Linux: &specs.Linux{
				Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
				Devices:    []specs.LinuxDevice{{Path: "/dev/a", Type: "c", Major: 1, Minor: 2}, {Path: "/dev/b", Type: "c", Major: 1, Minor: 3}},
				Resources:  &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}, Memory: &specs.LinuxMemory{Limit: &limit}},
			},
		},
	}
}

func TestApply(t *testing.T) {
	c := plain()
	a := &api.ContainerAdjustment{}
	a.AddEnv("B", "two")
	a.AddEnv("D", "4")
	a.AddAnnotation("new", "1")
	a.RemoveAnnotation("gone")
	a.SetArgs([]string{"sleep", "1"})
	a.AddMount(&api.Mount{Destination: "/dev", Type: "tmpfs", Source: "mine", Options: []string{"rslave"}})
	a.RemoveMount("/proc")
	a.AddRlimit("RLIMIT_NOFILE", 20, 10)
	a.AddDevice(&api.LinuxDevice{Path: "/dev/b", Type: "b", Major: 7, Minor: 8})
	a.RemoveNamespace(&api.LinuxNamespace{Type: "pid"})
	a.SetLinuxSysctl("net.x", "1")
	a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/hook"}}})
	a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 3})
	a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 5})
	a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW", DefaultErrno: api.UInt32(uint32(7))})
	a.SetLinuxMemoryReservation(5)
	a.SetLinuxPidLimits(9)
	a.SetLinuxCPUShares(200)
	a.SetLinuxMemoryLimit(2 << 20)
	if err := New(Config{}).apply(t.Context(), c, a); err != nil {
		t.Fatal(err)
	}
	s := c.Spec
	number, limit, pids, reservation, major, minor := uint(7), int64(1000), int64(9), int64(5), int64(7), int64(8)
	for _, one := range []struct {
		what      string
		got, want any
	}{
		{"environment", s.Process.Env, []string{"A=1", "B=two", "C=3", "D=4"}},
		{"annotations", s.Annotations, map[string]string{"old": "1", "new": "1"}},
		{"arguments", s.Process.Args, []string{"sleep", "1"}},
		{"mounts", s.Mounts, []specs.Mount{{Destination: "/dev", Type: "tmpfs", Source: "mine", Options: []string{"rslave"}}, {Destination: "/dev/shm"}}},
		{"propagation", s.Linux.RootfsPropagation, "rslave"},
		{"rlimits", s.Process.Rlimits, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}},
		{"devices", s.Linux.Devices, []specs.LinuxDevice{{Path: "/dev/a", Type: "c", Major: 1, Minor: 2}, {Path: "/dev/b", Type: "b", Major: 7, Minor: 8}}},
		{"device rules", s.Linux.Resources.Devices, []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "b", Major: &major, Minor: &minor, Access: "rwm"}}},
		{"namespaces", s.Linux.Namespaces, []specs.LinuxNamespace{{Type: specs.MountNamespace}}},
		{"kernel parameters", s.Linux.Sysctl, map[string]string{"net.x": "1"}},
		{"hooks", s.Hooks, &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/hook"}}}},
		{"I/O priority", s.Process.IOPriority, &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 3}},
		{"scheduler", s.Process.Scheduler, &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}},
		{"seccomp", s.Linux.Seccomp, &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, DefaultErrnoRet: &number, Syscalls: []specs.LinuxSyscall{}}},
		{"memory", s.Linux.Resources.Memory, &specs.LinuxMemory{Limit: &limit, Reservation: &reservation}},
		{"pids", s.Linux.Resources.Pids, &specs.LinuxPids{Limit: &pids}},
	} {
		if diff := cmp.Diff(one.want, one.got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", one.what, diff)
		}
	}
	want := &runtimeapi.LinuxContainerResources{CpuShares: 200, MemoryLimitInBytes: 2 << 20, MemorySwapLimitInBytes: 2 << 20}
	if !proto.Equal(c.Resources, want) {
		t.Errorf("limits as a request has them: %v, want %v", c.Resources, want)
	}
}

func TestNoAdjustmentChangesNothing(t *testing.T) {
	c := plain()
	if err := New(Config{}).apply(t.Context(), c, &api.ContainerAdjustment{}); err != nil {
		t.Fatal(err)
	}
	dropRemoved(c.Spec, containerOf(plain()))
	if diff := cmp.Diff(plain().Spec, c.Spec); diff != "" || c.Resources != nil {
		t.Errorf("changed (-before +after):\n%s\nlimits %v", diff, c.Resources)
	}
}

func TestRemovedVariablesAndDevices(t *testing.T) {
	c := plain()
	made := containerOf(c)
	made.Env, made.Linux.Devices = []string{"A=1", "C=other"}, made.Linux.Devices[1:]
	dropRemoved(c.Spec, made)
	if diff := cmp.Diff([]string{"A=1", "C=3"}, c.Spec.Process.Env); diff != "" {
		t.Error(diff)
	}
	if len(c.Spec.Linux.Devices) != 1 || c.Spec.Linux.Devices[0].Path != "/dev/b" {
		t.Errorf("devices %v", c.Spec.Linux.Devices)
	}
}

func TestDevicesOfTheNode(t *testing.T) {
	c := plain()
	var asked []string
	p := New(Config{Devices: func(_ context.Context, c *adjust.Container) error {
		for _, d := range c.Config.GetCDIDevices() {
			asked = append(asked, d.GetName())
		}
		c.Spec.Process.Env = append(c.Spec.Process.Env, "DEVICE=1")
		return nil
	}})
	a := &api.ContainerAdjustment{}
	a.AddCDIDevice(&api.CDIDevice{Name: "v/c=1"})
	a.AddEnv("DEVICE", "adjusted")
	if err := p.apply(t.Context(), c, a); err != nil {
		t.Fatal(err)
	}
	if len(asked) != 1 || asked[0] != "v/c=1" || len(c.Config.GetCDIDevices()) != 0 {
		t.Errorf("asked for %q", asked)
	}
	if got := c.Spec.Process.Env[3:]; !cmp.Equal(got, []string{"DEVICE=adjusted"}) {
		t.Errorf("environment %q", got)
	}
}

func TestLimitsOfUpdates(t *testing.T) {
	var unsupported *UnsupportedError
	for name, r := range map[string]*api.LinuxResources{
		"reservation": {Memory: &api.LinuxMemory{Reservation: api.Int64(1)}},
		"pids":        {Pids: &api.LinuxPids{Limit: 1}},
		"realtime":    {Cpu: &api.LinuxCPU{RealtimePeriod: api.UInt64(1)}},
		"hierarchy":   {Memory: &api.LinuxMemory{UseHierarchy: api.Bool(false)}},
		"class":       {RdtClass: api.String("a")},
	} {
		if _, err := toCRI(r); !errors.As(err, &unsupported) || !strings.Contains(err.Error(), unsupported.Field) {
			t.Errorf("%s: %v", name, err)
		}
	}
	in := &runtimeapi.LinuxContainerResources{CpuShares: 1, CpuQuota: -1, CpuPeriod: 3, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 4,
		MemorySwapLimitInBytes: 5, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 6}}, Unified: map[string]string{"memory.high": "7"}}
	if out, err := toCRI(fromCRI(in)); err != nil || !proto.Equal(in, out) {
		t.Errorf("there and back: %v, %v", out, err)
	}
	if fromCRI(nil) != nil {
		t.Error("nothing became something")
	}
	updates, err := updatesOf([]*api.ContainerUpdate{nil, {ContainerId: "a", IgnoreFailure: true, Linux: &api.LinuxContainerUpdate{Resources: fromCRI(in)}},
		{ContainerId: "b", IgnoreFailure: true, Linux: &api.LinuxContainerUpdate{Resources: &api.LinuxResources{Pids: &api.LinuxPids{}}}}},
		[]*api.ContainerEviction{{ContainerId: "c", Reason: "why"}})
	if err != nil || len(updates) != 2 || !updates[0].MayFail || updates[1].ContainerID != "c" || !updates[1].Evict || updates[1].Reason != "why" {
		t.Errorf("updates: %+v, %v", updates, err)
	}
}

// daemon is what plugins see of a daemon.
type daemon struct {
	mu      sync.Mutex
	changes []adjust.Update
}

func (*daemon) Present() ([]*adjust.Sandbox, []*adjust.Container) { return nil, nil }

func (d *daemon) Change(_ context.Context, u adjust.Update) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.changes = append(d.changes, u)
	return nil
}

// TestEvictions are taken from a plugin's answer, and from what it asks for by itself.
func TestEvictions(t *testing.T) {
	p := New(Config{RequestTimeout: time.Second})
	evict := []*api.ContainerEviction{{ContainerId: "c", Reason: "why"}}
	ctx, collected := collectEvictions(t.Context())
	for method, answer := range map[string]proto.Message{
		"CreateContainer": &api.CreateContainerResponse{Evict: evict}, "UpdateContainer": &api.UpdateContainerResponse{Evict: evict}, "StopContainer": &api.StopContainerResponse{},
	} {
		err := p.intercept(ctx, &ttrpc.Request{Method: method}, &ttrpc.Response{}, nil, func(_ context.Context, _ *ttrpc.Request, resp *ttrpc.Response) (err error) {
			resp.Payload, err = proto.Marshal(answer)
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", method, err)
		}
	}
	if got := collected.taken(); len(got) != 2 || got[0].GetContainerId() != "c" {
		t.Errorf("collected %v", got)
	}
	d := &daemon{}
	p.runtime = d
	_, err := p.interceptPlugin(t.Context(), func(into any) error {
		into.(*api.UpdateContainersRequest).Evict = evict
		return nil
	}, nil, func(_ context.Context, unmarshal func(any) error) (any, error) {
		return nil, unmarshal(&api.UpdateContainersRequest{})
	})
	if err != nil || len(d.changes) != 1 || !d.changes[0].Evict || d.changes[0].Reason != "why" {
		t.Errorf("by itself: %+v, %v", d.changes, err)
	}
}

// TestTimes: synchronization has its own, and plugins are told the one for requests.
func TestTimes(t *testing.T) {
	p := New(Config{RequestTimeout: time.Minute, SyncTimeout: time.Hour})
	for method, want := range map[string]time.Duration{"CreateContainer": time.Minute, "Synchronize": time.Hour, "Configure": time.Minute} {
		payload, err := proto.Marshal(&api.ConfigureRequest{RequestTimeout: 3600000, RuntimeName: "berth"})
		if err != nil {
			t.Fatal(err)
		}
		err = p.intercept(t.Context(), &ttrpc.Request{Method: method, Payload: payload}, &ttrpc.Response{}, nil, func(ctx context.Context, req *ttrpc.Request, _ *ttrpc.Response) error {
			if at, ok := ctx.Deadline(); !ok || time.Until(at) > want || time.Until(at) < want/2 {
				t.Errorf("%s has until %v", method, at)
			}
			var told api.ConfigureRequest
			if err := proto.Unmarshal(req.Payload, &told); err != nil || method == "Configure" && (told.RequestTimeout != 60000 || told.RuntimeName != "berth") {
				t.Errorf("told %v, %v", &told, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// started is a daemon's plugins without any.
func started(t testing.TB) *Plugins {
	t.Helper()
	dir := t.TempDir()
	p := New(Config{Socket: filepath.Join(dir, "s"), PluginPath: filepath.Join(dir, "none"), ConfigPath: dir, RegistrationTimeout: time.Second,
		RequestTimeout: time.Second, SyncTimeout: time.Second, Log: func(LogLevel, string) {}})
	if err := p.Start(&daemon{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	if !wait.Until(30*time.Second, time.Millisecond, func() bool { return !p.Active() }) { // those of the folder are synchronized
		t.Fatal("plugins are still joining")
	}
	return p
}

// TestNobodyCostsNothing: without a plugin the way of a container is a lock and an allocation.
func TestNobodyCostsNothing(t *testing.T) {
	p := started(t)
	c := plain()
	if n := testing.AllocsPerRun(100, func() { pass(t, p, c) }); n > 2 {
		t.Errorf("%v allocations", n)
	}
}

func pass(t testing.TB, p *Plugins, c *adjust.Container) {
	leave := p.Enter()
	defer leave()
	if p.Active() {
		t.Fatal("there is a plugin")
	}
	if err := p.Adjust(t.Context(), c); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkNobody(b *testing.B) {
	p, c := started(b), plain()
	b.ReportAllocs()
	for b.Loop() {
		pass(b, p, c)
	}
}

// TestParts: a plugin that joins is told of everything once, in messages that fit, and what fits into none is named.
func TestParts(t *testing.T) {
	big := func(id string, n int) *api.Container {
		return &api.Container{Id: id, Env: []string{strings.Repeat("x", n)}}
	}
	all := &api.SynchronizeRequest{Pods: []*api.PodSandbox{{Id: "p"}, {Id: "q"}}, Containers: []*api.Container{
		{Id: "a"}, big("b", 2<<20), big("c", 2<<20), {Id: "d"}, big("e", 3<<20), big("f", 3<<20), {Id: "g"}}}
	send := func(req *api.SynchronizeRequest, reply func(*api.SynchronizeRequest) *api.SynchronizeResponse) (told []string, err error) {
		payload, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		err = New(Config{SyncTimeout: time.Minute}).intercept(t.Context(), &ttrpc.Request{Service: "s", Method: "Synchronize", Payload: payload}, &ttrpc.Response{}, nil,
			func(_ context.Context, one *ttrpc.Request, resp *ttrpc.Response) error {
				var part api.SynchronizeRequest
				if err := proto.Unmarshal(one.GetPayload(), &part); err != nil {
					return err
				}
				if proto.Size(one) > 4<<20 || one.GetService() != "s" || one.GetMethod() != "Synchronize" {
					t.Errorf("a message of %d bytes to %s/%s", proto.Size(one), one.GetService(), one.GetMethod())
				}
				for _, p := range part.GetPods() {
					told = append(told, p.GetId())
				}
				for _, c := range part.GetContainers() {
					told = append(told, c.GetId())
				}
				told = append(told, map[bool]string{true: "more", false: "all"}[part.GetMore()])
				resp.Payload, err = proto.Marshal(reply(&part))
				return err
			})
		return told, err
	}
	patient := func(part *api.SynchronizeRequest) *api.SynchronizeResponse {
		return &api.SynchronizeResponse{More: part.GetMore()}
	}
	told, err := send(all, patient)
	if diff := cmp.Diff([]string{"p", "q", "a", "b", "more", "c", "d", "more", "e", "more", "f", "g", "all"}, told); err != nil || diff != "" {
		t.Errorf("%v, told (-want +got):\n%s", err, diff)
	}
	if _, err := send(all, func(*api.SynchronizeRequest) *api.SynchronizeResponse { return &api.SynchronizeResponse{} }); err == nil {
		t.Error("a plugin that takes no parts was synchronized")
	}
	all.Containers = append(all.Containers, big("huge", 4<<20))
	if told, err := send(all, patient); err == nil || !strings.Contains(err.Error(), "container huge") || told != nil {
		t.Errorf("one that is too big: told %q, %v", told, err)
	}
}
