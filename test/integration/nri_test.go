package integration_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// adjusting makes a plugin adjust the container of a name.
func adjusting(name string, adjust func(*api.ContainerAdjustment)) func(*nodePlugin) {
	return func(p *nodePlugin) {
		p.create = func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			a := &api.ContainerAdjustment{}
			if c.GetName() == name {
				adjust(a)
			}
			return a, nil, nil
		}
	}
}

func TestPluginIsToldOfALife(t *testing.T) {
	d := harness.Start(t)
	p := join(d, "10-life", nil)
	pod := d.RunPod(d.Pod("a"))
	c := pod.Run(d.Sleeper("c"))
	update(c, &resources{CpuShares: 512})
	if _, err := d.Runtime.UpdatePodSandboxResources(d.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod.ID,
		Resources: &resources{CpuShares: 256}}); err != nil {
		t.Fatal(err)
	}
	c.Stop(10 * time.Second)
	short := pod.Run(d.Shell("short", "exit 3"))
	p.saw(t, d, "StopContainer short") // by itself
	short.Remove()
	c.Remove()
	pod.Remove()
	p.saw(t, d, "RemovePodSandbox a")
	want := []string{"RunPodSandbox a", "CreateContainer c", "PostCreateContainer c", "StartContainer c", "PostStartContainer c", "UpdateContainer c",
		"PostUpdateContainer c", "UpdatePodSandbox a to 256 shares", "PostUpdatePodSandbox a", "StopContainer c", "CreateContainer short",
		"PostCreateContainer short", "StartContainer short", "PostStartContainer short", "StopContainer short", "RemoveContainer short",
		"RemoveContainer c", "StopPodSandbox a", "RemovePodSandbox a"}
	if got := p.log(); !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}

// TestPluginAdjustsAContainer: what it changes is in the container, also when another daemon starts it, and is the start of later updates.
func TestPluginAdjustsAContainer(t *testing.T) {
	d := harness.Start(t)
	source := d.Write(filepath.Join(d.Dir, "source"), "from the plugin\n")
	join(d, "10-adjust", adjusting("c", func(a *api.ContainerAdjustment) {
		a.AddEnv("ADDED", "1")
		a.AddEnv("CHANGED", "after")
		a.RemoveEnv("GONE")
		a.AddAnnotation("test/added", "1")
		a.AddMount(&api.Mount{Destination: "/mounted", Source: source, Type: "bind", Options: []string{"bind", "ro", "rprivate"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugged", Type: "c", Major: 1, Minor: 3})
		a.AddRlimit("RLIMIT_NOFILE", 500, 400)
		a.SetLinuxSysctl("net.core.somaxconn", "777")
		a.SetLinuxCPUShares(300)
		a.SetLinuxMemoryLimit(64 << 20)
		a.SetLinuxPidLimits(77)
		score := 900
		a.SetLinuxOomScoreAdj(&score)
		a.UpdateArgs([]string{"sh", "-c", "trap 'exit 0' TERM; echo adjusted; sleep 3600 & wait"})
	}))
	pod := d.RunPod(d.Pod("a"))
	config := d.Sleeper("c", harness.Resources(&resources{CpuShares: 100, MemoryLimitInBytes: 32 << 20}))
	config.Envs = []*runtimeapi.KeyValue{{Key: "CHANGED", Value: []byte("before")}, {Key: "GONE", Value: []byte("1")}}
	c := pod.Create(config)
	d.Restart()
	c.Start()
	c.WaitOutput("adjusted")
	want := "1 after\nfrom the plugin\n400\n900\n777\nplugged"
	got := strings.TrimSpace(c.Sh("echo $ADDED $CHANGED $GONE; cat /mounted; ulimit -n; cat /proc/self/oom_score_adj; cat /proc/sys/net/core/somaxconn; echo x > /dev/plugged && echo plugged"))
	// In runc 1.1 Go's runtime now and then raises the soft limit of files to the hard one after runc has set it.
	if got != want && (harness.Handler == "" || got != strings.Replace(want, "400", "500", 1)) {
		t.Errorf("in the container: %q, want %q", got, want)
	}
	if memoryOf(c) != "67108864" {
		t.Errorf("memory limit %s", memoryOf(c))
	}
	if limit := readFile(t, cgroupFile(t, cgroupOf(c, "pids"), "pids", "pids.max", "pids.max")); limit != "77" {
		t.Errorf("limit of processes %s", limit)
	}
	update(c, &resources{CpuQuota: 20000})
	if r := linuxOf(c); r.GetMemoryLimitInBytes() != 64<<20 || r.GetCpuShares() != 300 || r.GetCpuQuota() != 20000 {
		t.Errorf("resources in the status: %v", r)
	}
}

// TestPluginSeesTheImage: what its user calls it, what it was pulled by and what it is, also of a container that an earlier daemon created.
func TestPluginSeesTheImage(t *testing.T) {
	d := harness.Start(t)
	seen := make(chan *api.Image, 2)
	join(d, "10-before", func(p *nodePlugin) {
		p.create = func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			seen <- c.GetImage()
			return nil, nil, nil
		}
	})
	pod := d.RunPod(d.Pod("a"))
	config := d.Sleeper("c")
	r, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: config.Image})
	if err != nil {
		t.Fatal(err)
	}
	user := config.Image.Image
	config.Image = &runtimeapi.ImageSpec{Image: r.GetImage().GetId(), UserSpecifiedImage: user} // as the kubelet asks
	pod.Run(config)
	d.Restart()
	join(d, "10-again", func(p *nodePlugin) {
		p.synchronize = func(_ []*api.PodSandbox, all []*api.Container) []*api.ContainerUpdate {
			for _, c := range all {
				seen <- c.GetImage()
			}
			return nil
		}
	})
	for _, when := range []string{"is created", "is there"} {
		var i *api.Image
		select {
		case i = <-seen:
		case <-time.After(harness.Timeout):
			t.Fatalf("the plugin was not told of a container that %s", when)
		}
		if i.GetName() != user || i.GetConfigDigest() != r.GetImage().GetId() || i.GetDigest() == "" ||
			!slices.ContainsFunc(r.GetImage().GetRepoDigests(), func(known string) bool { return strings.HasSuffix(known, "@"+i.GetDigest()) }) {
			t.Errorf("image of a container that %s: %v, want %s of %v", when, i, user, r.GetImage())
		}
	}
}

// TestPluginSchedulesAContainer: its processes have the policy and the priorities.
func TestPluginSchedulesAContainer(t *testing.T) {
	harness.Native(t, "runc 1.1 knows neither")
	d := harness.Start(t)
	join(d, "10-schedule", adjusting("c", func(a *api.ContainerAdjustment) {
		a.SetLinuxScheduler(&api.LinuxScheduler{Policy: api.LinuxSchedulerPolicy_SCHED_BATCH, Nice: 7})
		a.SetLinuxIOPriority(&api.LinuxIOPriority{Class: api.IOPrioClass_IOPRIO_CLASS_BE, Priority: 6})
	}))
	c := d.RunPod(d.Pod("a")).Run(d.Sleeper("c"))
	c.WaitOutput("up")
	attr, err := unix.SchedGetAttr(c.PID(), 0)
	if err != nil || attr.Policy != unix.SCHED_BATCH || attr.Nice != 7 {
		t.Errorf("scheduler %+v, %v", attr, err)
	}
	const process, bestEffort = 1, 2 << 13
	if got, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, process, uintptr(c.PID()), 0); errno != 0 || got != bestEffort|6 {
		t.Errorf("I/O priority %#x, %v", got, errno)
	}
}

func TestPluginsInOrderAndInConflict(t *testing.T) {
	d := harness.Start(t)
	var order []string
	adjust := func(name string) func(*nodePlugin) {
		return func(p *nodePlugin) {
			p.create = func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
				order = append(order, name) // one plugin is asked after the other
				a := &api.ContainerAdjustment{}
				a.AddEnv("BY_"+name, "1")
				if c.GetName() == "conflict" {
					a.AddEnv("SAME", name)
				}
				return a, nil, nil
			}
		}
	}
	join(d, "20-later", adjust("later"))
	join(d, "10-sooner", adjust("sooner"))
	pod := d.RunPod(d.Pod("a"))
	c := pod.Run(d.Sleeper("c"))
	if got := strings.Fields(c.Sh("echo $BY_sooner$BY_later")); !slices.Equal(got, []string{"11"}) || !slices.Equal(order, []string{"sooner", "later"}) {
		t.Errorf("environment %q, order %q", got, order)
	}
	_, err := pod.TryCreate(d.Sleeper("conflict"))
	if !contains(err, "10-sooner") || !contains(err, "20-later") {
		t.Errorf("a conflict: %v", err)
	}
	pod.Create(d.Sleeper("after"))
}

func TestPluginRefusesAContainer(t *testing.T) {
	d := harness.Start(t)
	p := join(d, "10-refuse", func(p *nodePlugin) {
		p.told = func(event string) error {
			if event == "CreateContainer bad" || event == "StartContainer unstarted" {
				return errors.New("not on this node")
			}
			return nil
		}
	})
	if _, err := tryJoin(d, "20-judge", nil, func(r *api.ValidateContainerAdjustmentRequest) error {
		if r.GetContainer().GetName() == "invalid" {
			return errors.New("that is not valid")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(d.Pod("a"))
	if _, err := pod.TryCreate(d.Sleeper("bad")); !contains(err, "not on this node") {
		t.Errorf("a plugin refuses: %v", err)
	}
	p.saw(t, d, "CreateContainer bad", "RemoveContainer bad")
	if _, err := pod.TryCreate(d.Sleeper("invalid")); !contains(err, "that is not valid") {
		t.Errorf("a validator refuses: %v", err)
	}
	unstarted := pod.Create(d.Sleeper("unstarted"))
	if err := unstarted.TryStart(); !contains(err, "not on this node") || unstarted.Status().GetReason() != "StartError" {
		t.Errorf("a plugin refuses a start: %v, reason %s", err, unstarted.Status().GetReason())
	}
	p.saw(t, d, "StartContainer unstarted", "StopContainer unstarted")
}

// TestDefaultValidator: what the configuration forbids plugins, and which of them it wants, is said by name.
func TestDefaultValidator(t *testing.T) {
	d := harness.Start(t, harness.WithConfig(`[nri.default_validator]
enable = true
reject_oci_hook_adjustment = true
reject_runtime_default_seccomp_adjustment = true
reject_namespace_adjustment = true
reject_sysctl_adjustment = true
required_plugins = ["needed"]
tolerate_missing_plugins_annotation = "tolerates.test"
`))
	_, err := d.RunPod(d.Pod("a")).TryCreate(d.Sleeper("c"))
	if !contains(err, `required plugin "needed"`) {
		t.Errorf("without a plugin that must be there: %v", err)
	}
	d.RunPod(d.Pod("tolerant", podAnnotation("tolerates.test", "true"))).Run(d.Sleeper("c"))
	var adjust func(*api.ContainerAdjustment)
	join(d, "10-needed", adjusting("c", func(a *api.ContainerAdjustment) { adjust(a) }))
	pod := d.RunPod(d.Pod("b"))
	for name, one := range map[string]struct {
		adjust func(*api.ContainerAdjustment)
		want   string
	}{
		"hook": {func(a *api.ContainerAdjustment) { a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "/bin/true"}}}) }, "OCI hook"},
		"seccomp": {func(a *api.ContainerAdjustment) {
			a.SetLinuxSeccompPolicy(&api.LinuxSeccomp{DefaultAction: "SCMP_ACT_ALLOW"})
		}, "seccomp"},
		"namespace": {func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "cgroup"}) }, "namespace"},
		"parameter": {func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("net.core.somaxconn", "777") }, "sysctl"},
	} {
		adjust = one.adjust
		if _, err := pod.TryCreate(d.Sleeper("c")); !contains(err, one.want) || !contains(err, "needed") {
			t.Errorf("%s: %v, want %q and the plugin in it", name, err, one.want)
		}
	}
	adjust = func(a *api.ContainerAdjustment) { a.AddEnv("ADDED", "1") }
	if got := pod.Run(d.Sleeper("c")).Sh("echo $ADDED"); got != "1" {
		t.Errorf("what is not forbidden: %q", got)
	}
}

// TestAdjustmentsThatCannotBe are errors that name what cannot be.
func TestAdjustmentsThatCannotBe(t *testing.T) {
	harness.Native(t, "it knows what it can do")
	d := harness.Start(t)
	var adjust func(*api.ContainerAdjustment)
	join(d, "10-impossible", adjusting("c", func(a *api.ContainerAdjustment) { adjust(a) }))
	pod := d.RunPod(d.Pod("a"))
	for name, one := range map[string]struct {
		adjust func(*api.ContainerAdjustment)
		want   string
	}{
		"cgroup":           {func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/elsewhere") }, "linux.cgroups_path /elsewhere"},
		"CDI":              {func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "vendor.test/none=0"}) }, "vendor.test/none=0"},
		"realtime":         {func(a *api.ContainerAdjustment) { a.SetLinuxCPURealtimeRuntime(1) }, "realtime_runtime"},
		"kernel memory":    {func(a *api.ContainerAdjustment) { a.SetLinuxMemoryKernel(1 << 20) }, "memory.kernel"},
		"block I/O":        {func(a *api.ContainerAdjustment) { a.SetLinuxBlockIOClass("fast") }, "fast"},
		"RDT":              {func(a *api.ContainerAdjustment) { a.SetLinuxRDTClosID("gold") }, "gold"},
		"host's parameter": {func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("vm.swappiness", "1") }, "vm.swappiness"},
		"limit":            {func(a *api.ContainerAdjustment) { a.SetLinuxCPUPeriod(1) }, "cpu_period"},
		"hook": {func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{Poststop: []*api.Hook{{Path: "rootfs/bin/sh"}}})
		}, "hooks.poststop: the path \"rootfs/bin/sh\""},
		"hook's time": {func(a *api.ContainerAdjustment) {
			a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: "/bin/true", Timeout: api.Int(0)}}})
		}, "hooks.createRuntime: the timeout of /bin/true"},
		"network device": {func(a *api.ContainerAdjustment) { a.AddLinuxNetDevice("eth9", &api.LinuxNetDevice{Name: "eth9"}) }, "netDevices"},
		"mount":          {func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "here", Type: "tmpfs"}) }, "mounts here"},
		"namespace": {func(a *api.ContainerAdjustment) {
			a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network", Path: "/proc/1/ns/net"})
		}, "namespaces"},
	} {
		adjust = one.adjust
		if _, err := pod.TryCreate(d.Sleeper("c")); !contains(err, one.want) {
			t.Errorf("%s: %v, want %q in it", name, err, one.want)
		}
	}
	if got := len(pod.IPs()); got == 0 {
		t.Error("the pod has no address any more")
	}
}

func TestPluginUpdatesContainers(t *testing.T) {
	d := harness.Start(t)
	quota := func(id string, n int64) *api.ContainerUpdate {
		u := &api.ContainerUpdate{}
		u.SetContainerId(id)
		u.SetLinuxCPUQuota(n)
		u.SetLinuxCPUPeriod(100000)
		return u
	}
	var first string
	p := join(d, "10-update", func(p *nodePlugin) {
		p.create = func(_ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			if c.GetName() == "second" {
				return nil, []*api.ContainerUpdate{quota(first, 20000)}, nil
			}
			return nil, nil, nil
		}
		p.update = func(c *api.Container, r *api.LinuxResources) []*api.ContainerUpdate {
			u := quota(c.GetId(), 2*r.GetCpu().GetQuota().GetValue())
			if c.GetName() == "strict" || c.GetName() == "lenient" {
				u.SetLinuxBlockIOClass("fast")
				u.IgnoreFailure = c.GetName() == "lenient"
			}
			return []*api.ContainerUpdate{u}
		}
	})
	pod := d.RunPod(d.Pod("a"))
	c := pod.Run(d.Sleeper("first"))
	first = c.ID
	pod.Create(d.Sleeper("second"))
	if quotaOf(c) != "20000" {
		t.Errorf("quota %s after another container was created", quotaOf(c))
	}
	update(c, &resources{CpuQuota: 15000})
	if quotaOf(c) != "30000" || linuxOf(c).GetCpuQuota() != 30000 {
		t.Errorf("quota %s after an update that the plugin doubles, in the status %d", quotaOf(c), linuxOf(c).GetCpuQuota())
	}
	if failed, err := p.api.UpdateContainers([]*api.ContainerUpdate{quota(c.ID, 40000), quota(strings.Repeat("0", 64), 1000)}); err != nil || len(failed) != 0 {
		t.Errorf("unsolicited: %v, %v", failed, err)
	}
	if quotaOf(c) != "40000" {
		t.Errorf("quota %s after an unsolicited update", quotaOf(c))
	}
	if failed, err := p.api.UpdateContainers([]*api.ContainerUpdate{quota(c.ID, 1)}); err != nil || len(failed) != 1 || quotaOf(c) != "40000" {
		t.Errorf("one that is invalid: %v, %v, quota %s", failed, err, quotaOf(c))
	}
	// What cannot be done is refused, or left out where the plugin says so.
	_, err := d.Runtime.UpdateContainerResources(d.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: pod.Create(d.Sleeper("strict")).ID,
		Linux: &resources{CpuQuota: 15000}})
	if !contains(err, "linux.resources.blockio_class") {
		t.Errorf("an update that cannot be done: %v", err)
	}
	lenient := pod.Create(d.Sleeper("lenient"))
	if update(lenient, &resources{CpuQuota: 15000}); linuxOf(lenient).GetCpuQuota() != 15000 {
		t.Errorf("an update that may fail: quota %d", linuxOf(lenient).GetCpuQuota())
	}
	// One that joins may update all that it is told of.
	join(d, "20-joins", func(p *nodePlugin) {
		p.synchronize = func(_ []*api.PodSandbox, containers []*api.Container) (all []*api.ContainerUpdate) {
			for _, c := range containers {
				all = append(all, quota(c.GetId(), 50000))
			}
			return all
		}
	})
	d.Eventually(harness.Timeout, "the update of a plugin that joined", func() bool { return quotaOf(c) == "50000" })
}

// TestPluginUpdatesContainersCrosswise: containers that are updated at once, each with an update of the other, do not wait for each other.
func TestPluginUpdatesContainersCrosswise(t *testing.T) {
	d := harness.Start(t)
	var ids []string
	join(d, "10-crosswise", func(p *nodePlugin) {
		p.update = func(*api.Container, *api.LinuxResources) (all []*api.ContainerUpdate) {
			time.Sleep(50 * time.Millisecond) // the other update begins meanwhile
			for _, id := range ids {
				u := &api.ContainerUpdate{}
				u.SetContainerId(id)
				u.SetLinuxCPUShares(300)
				all = append(all, u)
			}
			return all
		}
	})
	pod := d.RunPod(d.Pod("a"))
	both := []*harness.Container{pod.Run(d.Sleeper("a")), pod.Run(d.Sleeper("b"))}
	ids = []string{both[0].ID, both[1].ID}
	for range 3 {
		failed := make(chan error)
		for _, c := range both {
			go func() {
				_, err := d.Runtime.UpdateContainerResources(d.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: &resources{CpuShares: 200}})
				failed <- err
			}()
		}
		for range both {
			if err := <-failed; err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range both {
		if got := linuxOf(c).GetCpuShares(); got != 300 {
			t.Errorf("%d shares", got)
		}
	}
}

// TestPluginJoinsWhileContainersAreCreated: each of them is told of once, when the plugin is synchronized or when it is created.
func TestPluginJoinsWhileContainersAreCreated(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("a"))
	const many = 40
	started := make(chan struct{}, many)
	all := make(chan *harness.Container, many)
	go func() {
		for i := range many {
			config := d.Sleeper("c" + strconv.Itoa(i))
			started <- struct{}{}
			go func() {
				c, err := pod.TryCreate(config)
				if err != nil {
					t.Errorf("CreateContainer: %v", err)
				}
				all <- c
			}()
			time.Sleep(5 * time.Millisecond)
		}
	}()
	for range many / 4 {
		<-started
	}
	p := join(d, "10-joins", func(p *nodePlugin) {
		p.synchronize = func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate {
			time.Sleep(100 * time.Millisecond)
			return nil
		}
	})
	names := map[string]int{}
	for range many {
		c := <-all
		if c == nil {
			continue
		}
		p.mu.Lock()
		if slices.Contains(p.containers, c.ID) {
			names[c.Config.GetMetadata().GetName()]++
		}
		p.mu.Unlock()
	}
	for _, e := range p.log() {
		if name, ok := strings.CutPrefix(e, "CreateContainer "); ok {
			names[name]++
		}
	}
	for i := range many {
		if n := names["c"+strconv.Itoa(i)]; n != 1 {
			t.Errorf("the plugin was told of container %d %d times", i, n)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t.Logf("%d of %d when it was synchronized", len(p.containers), many)
}

// TestPluginJoinsAboveBigContainers: what there is takes several messages, and the daemon lives on.
func TestPluginJoinsAboveBigContainers(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("a"))
	const many = 11
	for i := range many {
		config := d.Sleeper("c" + strconv.Itoa(i))
		for j := range 9 {
			config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: "BIG" + strconv.Itoa(j), Value: []byte(strings.Repeat("x", 100<<10))})
		}
		pod.Create(config)
	}
	p := join(d, "10-joins", nil)
	p.mu.Lock()
	if len(p.pods) != 1 || len(p.containers) != many {
		t.Errorf("told of %d pods and %d containers, want 1 and %d", len(p.pods), len(p.containers), many)
	}
	p.mu.Unlock()
	pod.Create(d.Sleeper("after"))
	p.saw(t, d, "CreateContainer after")
}

// TestPluginsAndADaemonThatIsKilled: containers run on, and the plugin that comes again is told of all of them.
func TestPluginsAndADaemonThatIsKilled(t *testing.T) {
	d := harness.Start(t)
	p := join(d, "10-before", nil)
	pod := d.RunPod(d.Pod("a"))
	running, created := pod.Run(d.Sleeper("running")), pod.Create(d.Sleeper("created"))
	began := startTime(t, running.PID())
	d.Kill()
	<-p.closed
	d.Start()
	again := join(d, "10-again", nil)
	again.mu.Lock()
	if !slices.Equal(again.pods, []string{pod.ID}) || len(again.containers) != 2 || !slices.Contains(again.containers, running.ID) || !slices.Contains(again.containers, created.ID) {
		t.Errorf("told of pods %q, containers %q", again.pods, again.containers)
	}
	again.mu.Unlock()
	if startTime(t, running.PID()) != began {
		t.Error("the container was started again")
	}
	created.Start()
	pod.Remove()
	again.saw(t, d, "StartContainer created", "StopContainer created", "StopPodSandbox a", "RemovePodSandbox a")
	again.saw(t, d, "StopContainer running", "RemoveContainer running")
}

// asPlugin makes this program one that connects to the daemon, or stands in its folder of plugins.
func asPlugin(d *harness.Daemon) *exec.Cmd {
	d.T.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pluginRole+"="+pluginSocket(d))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		d.T.Fatal(err)
	}
	d.T.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// TestPluginIsKilledWhileAContainerIsCreated: the container is created without it, and the next one too.
func TestPluginIsKilledWhileAContainerIsCreated(t *testing.T) {
	d := harness.Start(t, harness.WithConfig("[nri]\nplugin_request_timeout = \"20s\"\n"))
	cmd := asPlugin(d)
	pod := d.RunPod(d.Pod("a"))
	n := 0
	d.Eventually(harness.Timeout, "the plugin adjusts containers", func() bool {
		n++
		config := d.Sleeper("c")
		config.Metadata.Attempt = uint32(n)
		c := pod.Run(config)
		defer c.Remove()
		return strings.Contains(c.Sh("echo $PLUGIN"), "config=")
	})
	created := make(chan error, 1)
	go func() {
		_, err := pod.TryCreate(d.Sleeper("deadly"))
		created <- err
	}()
	select {
	case err := <-created:
		t.Fatalf("created without waiting for the plugin: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-created; err != nil {
		t.Errorf("the plugin died meanwhile: %v", err)
	}
	if got := pod.Run(d.Sleeper("after")).Sh("echo -n $PLUGIN"); strings.TrimSpace(got) != "" {
		t.Errorf("the dead plugin has adjusted a container: %q", got)
	}
}

// TestPluginsThatStall cost what waits for them their time once, and are dropped.
func TestPluginsThatStall(t *testing.T) {
	d := harness.Start(t, harness.WithConfig("[nri]\nplugin_request_timeout = \"2s\"\nplugin_synchronization_timeout = \"4s\"\nplugin_registration_timeout = \"4s\"\n"))
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	pod := d.RunPod(d.Pod("a"))
	stalls := join(d, "10-stalls", func(p *nodePlugin) {
		p.told = func(event string) error {
			if event == "CreateContainer c" {
				<-stop
			}
			return nil
		}
	})
	begin := time.Now()
	pod.Create(d.Sleeper("c"))
	if took := time.Since(begin); took < 1900*time.Millisecond || took > harness.Patience {
		t.Errorf("a plugin with 2 s stalled for %v", took)
	}
	select {
	case <-stalls.closed:
	case <-time.After(2 * harness.Timeout):
		t.Error("the plugin is still connected")
	}
	// One that stalls when it joins never does.
	if _, err := tryJoin(d, "20-joins", func(p *nodePlugin) {
		p.synchronize = func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate { <-stop; return nil }
	}, nil); err == nil {
		t.Error("a plugin joined that was not synchronized")
	}
	pod.Create(d.Sleeper("after"))
}

// TestPluginThatMustNotFail: one that says so is not done without, and may stay when it has been slow.
func TestPluginThatMustNotFail(t *testing.T) {
	d := harness.Start(t, harness.WithConfig("[nri]\nplugin_request_timeout = \"2s\"\n"))
	stop := make(chan struct{})
	t.Cleanup(func() { close(stop) })
	pod := d.RunPod(d.Pod("a"))
	p := join(d, "10-needed", func(p *nodePlugin) {
		p.policy.FailRequest, p.policy.KeepConnected = true, true
		p.told = func(event string) error {
			if event == "CreateContainer slow" {
				<-stop
			}
			return nil
		}
	})
	if _, err := pod.TryCreate(d.Sleeper("slow")); !contains(err, "10-needed") {
		t.Errorf("a plugin that may not be done without stalled: %v", err)
	}
	n := 0
	d.Eventually(harness.Timeout, "the plugin, which has stayed, sees other containers", func() bool { // in time, on a busy machine not always
		n++
		name := "after" + strconv.Itoa(n)
		_, err := pod.TryCreate(d.Sleeper(name))
		return err == nil && slices.Contains(p.log(), "CreateContainer "+name)
	})
}

// TestPluginOfTheFolder is started by the daemon before it serves, and gets its configuration. What else is there keeps neither from starting.
func TestPluginOfTheFolder(t *testing.T) {
	base := t.TempDir()
	folder, configs := filepath.Join(base, "plugins"), filepath.Join(base, "conf.d")
	for _, dir := range []string{folder, configs} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(self, filepath.Join(folder, "30-folder")), os.WriteFile(filepath.Join(configs, "folder.conf"), []byte("mine"), 0o600),
		os.WriteFile(filepath.Join(folder, "README"), nil, 0o755), os.WriteFile(filepath.Join(folder, "40-unreadable"), nil, 0o755),
		os.Mkdir(filepath.Join(configs, "40-unreadable.conf"), 0o755)); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.WithConfig("[nri]\nplugin_path = \""+folder+"\"\nplugin_config_path = \""+configs+"\"\n"))
	c := d.RunPod(d.Pod("a")).Run(d.Sleeper("c"))
	if got := strings.TrimSpace(c.Sh("echo $PLUGIN")); got != "config=mine" {
		t.Errorf("the plugin made %q of its configuration", got)
	}
	d.Restart()
	c = d.RunPod(d.Pod("b")).Run(d.Sleeper("c"))
	if got := strings.TrimSpace(c.Sh("echo $PLUGIN")); got != "config=mine" {
		t.Errorf("after a restart the plugin made %q of its configuration", got)
	}
	log := readRaw(t, d.Log)
	for _, name := range []string{"README", "40-unreadable"} {
		if !strings.Contains(log, filepath.Join(folder, name)) {
			t.Errorf("the log does not say that %s was left out", name)
		}
	}
}

// TestPluginSocket is root's alone, and not there when plugins are disabled. A test's daemon starts no plugins of this host.
func TestPluginSocket(t *testing.T) {
	d := harness.Start(t)
	if config := readRaw(t, d.Options().Config); !strings.Contains(config, "plugin_path = \""+d.Dir) || !strings.Contains(config, "spec_dirs = [\""+d.Dir) {
		t.Errorf("the daemon may start plugins of this host, and find its devices: %s", config)
	}
	if st, err := os.Stat(pluginSocket(d)); err != nil || st.Mode().Perm() != 0o600 || st.Mode().Type() != os.ModeSocket {
		t.Errorf("the socket: %v, %v", st, err)
	}
	without := harness.Start(t, harness.WithConfig("[nri]\ndisable = true\n"))
	if _, err := os.Stat(pluginSocket(without)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of a daemon without plugins: %v", err)
	}
	without.RunPod(without.Pod("a")).Run(without.Sleeper("c"))
}
