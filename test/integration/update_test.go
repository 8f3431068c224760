package integration_test

import (
	"context"
	"math/rand/v2"
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

func tryUpdate(c *harness.Container, r *resources) error {
	_, err := c.Runtime.UpdateContainerResources(c.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID, Linux: r})
	return err
}

func update(c *harness.Container, r *resources) {
	c.T.Helper()
	if err := tryUpdate(c, r); err != nil {
		c.T.Fatalf("UpdateContainerResources(%v): %v", r, err)
	}
}

func linuxOf(c *harness.Container) *resources {
	c.T.Helper()
	return c.Status().GetResources().GetLinux()
}

// quotaOf is the processors' quota that the kernel keeps.
func quotaOf(c *harness.Container) string {
	c.T.Helper()
	text := readFile(c.T, cgroupFile(c.T, cgroupOf(c, "cpu"), "cpu", "cpu.cfs_quota_us", "cpu.max"))
	return strings.Fields(text)[0]
}

// memoryOf is the memory limit that the kernel keeps.
func memoryOf(c *harness.Container) string {
	c.T.Helper()
	return readFile(c.T, cgroupFile(c.T, cgroupOf(c, "memory"), "memory", "memory.limit_in_bytes", "memory.max"))
}

// hasCpuset tells whether the host lets processors be chosen.
func hasCpuset() bool {
	if !isUnified() {
		_, err := os.Stat("/sys/fs/cgroup/cpuset")
		return err == nil
	}
	text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	return err == nil && strings.Contains(string(text), "cpuset")
}

func TestUpdateRunningContainer(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("update"))
	c := pod.Run(d.Shell("c", "while :; do :; done", harness.Resources(&resources{CpuShares: 512, CpuPeriod: 100000, CpuQuota: 10000, MemoryLimitInBytes: 64 << 20})))
	began := startTime(t, c.PID())
	update(c, &resources{CpuQuota: 20000, MemoryLimitInBytes: 128 << 20, CpusetCpus: "0", OomScoreAdj: 700})
	if quotaOf(c) != "20000" || memoryOf(c) != strconv.Itoa(128<<20) {
		t.Errorf("the kernel keeps quota %s, memory %s", quotaOf(c), memoryOf(c))
	}
	if r := linuxOf(c); r.GetCpuQuota() != 20000 || r.GetCpuPeriod() != 100000 || r.GetMemoryLimitInBytes() != 128<<20 || r.GetCpusetCpus() != "0" && hasCpuset() || r.GetCpuShares() != 512 {
		t.Errorf("status: %v", r)
	}
	if m := statsOf(c).GetMemory(); m.GetAvailableBytes().GetValue() != 128<<20-m.GetWorkingSetBytes().GetValue() {
		t.Errorf("available of 128 MiB: %v", m)
	}
	// A fifth of a processor, and no more. A measurement is wrong when the daemon pauses between the time and what was used, so there are several.
	d.Eventually(2*time.Minute, "the container uses a fifth of a processor at most", func() bool {
		before := statsOf(c).GetCpu()
		d.Eventually(time.Minute, "the container has used the processor", func() bool {
			return statsOf(c).GetCpu().GetUsageCoreNanoSeconds().GetValue() > before.GetUsageCoreNanoSeconds().GetValue()+3e8
		})
		after := statsOf(c).GetCpu()
		used := float64(after.GetUsageCoreNanoSeconds().GetValue() - before.GetUsageCoreNanoSeconds().GetValue())
		share := used / float64(after.GetTimestamp()-before.GetTimestamp())
		if share > 0.3 {
			t.Logf("it used %.2f of a processor, 0.2 is the limit", share)
		}
		return share <= 0.3
	})
	// What is refused changes nothing.
	for name, tc := range map[string]struct {
		r    *resources
		code codes.Code
	}{
		"a processor that is not there": {&resources{CpusetCpus: "5000", CpuQuota: 50000}, codes.InvalidArgument},
		"negative memory":               {&resources{MemoryLimitInBytes: -5, CpuQuota: 50000}, codes.InvalidArgument},
		"a quota below the kernel's":    {&resources{CpuQuota: 5}, codes.InvalidArgument},
		"swap below memory":             {&resources{MemorySwapLimitInBytes: 1 << 20, CpuQuota: 50000}, codes.InvalidArgument},
	} {
		if !hasCpuset() && tc.r.CpusetCpus != "" {
			continue // no processors to choose from: dropped with a note, as at the start
		}
		wantCode(t, name, tryUpdate(c, tc.r), tc.code)
		if quotaOf(c) != "20000" || memoryOf(c) != strconv.Itoa(128<<20) {
			t.Errorf("%s: the kernel keeps quota %s, memory %s", name, quotaOf(c), memoryOf(c))
		}
	}
	if !isUnified() {
		wantCode(t, "unified on version 1", tryUpdate(c, &resources{Unified: map[string]string{"memory.high": "100000000"}}), codes.InvalidArgument)
	}
	d.Restart()
	if r := linuxOf(c); r.GetCpuQuota() != 20000 || r.GetMemoryLimitInBytes() != 128<<20 || quotaOf(c) != "20000" {
		t.Errorf("after a restart: %v", r)
	}
	update(c, &resources{CpuQuota: -1})
	if got := quotaOf(c); got != "-1" && got != "max" {
		t.Errorf("quota is %s", got)
	}
	if startTime(t, c.PID()) != began {
		t.Error("the container was restarted")
	}
	c.Stop(0)
	wantCode(t, "of a container that has exited", tryUpdate(c, &resources{CpuShares: 5}), codes.FailedPrecondition)
	c.Remove()
	wantCode(t, "of an unknown container", tryUpdate(c, &resources{CpuShares: 5}), codes.NotFound)
}

func TestUpdateMemoryBelowWhatIsInUse(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("below"))
	c := pod.Run(d.Container("c", []string{"probe", "eat", "40"}, harness.Resources(&resources{MemoryLimitInBytes: 128 << 20, CpuPeriod: 100000, CpuQuota: 50000})))
	c.WaitOutput("ate 40 MiB")
	err := tryUpdate(c, &resources{MemoryLimitInBytes: 20 << 20, CpuQuota: 70000})
	wantCode(t, "20 MiB with 40 in use", err, codes.FailedPrecondition)
	if !contains(err, "in use") {
		t.Errorf("%v does not say why", err)
	}
	if quotaOf(c) != "50000" || memoryOf(c) != strconv.Itoa(128<<20) || c.Status().State != running {
		t.Errorf("quota %s, memory %s, %s", quotaOf(c), memoryOf(c), c.Status().State)
	}
	update(c, &resources{MemoryLimitInBytes: 64 << 20})
	if got := linuxOf(c); got.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("%v", got)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(d.Dir, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		return // what is written there is memory that cannot be given up
	}
	// Page cache is given up for a lower limit.
	cache := pod.Run(d.Shell("cache", "dd if=/dev/zero of=/file bs=1M count=60 conv=fsync 2>/dev/null; echo written; exec sleep 1000", harness.Resources(&resources{MemoryLimitInBytes: 128 << 20})))
	cache.WaitOutput("written")
	update(cache, &resources{MemoryLimitInBytes: 16 << 20})
	if got := memoryOf(cache); got != strconv.Itoa(16<<20) {
		t.Errorf("memory %s", got)
	}
}

func TestUpdateCreatedContainer(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("created"))
	c := pod.Create(d.Sleeper("c", harness.Resources(&resources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100000, CpuQuota: 50000})))
	update(c, &resources{CpuQuota: 30000, OomScoreAdj: 900})
	if r := linuxOf(c); r.GetCpuQuota() != 30000 || r.GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("status: %v", r)
	}
	d.Restart()
	c.Start()
	if quotaOf(c) != "30000" || memoryOf(c) != strconv.Itoa(64<<20) || strings.TrimSpace(c.Host("oom_score_adj")) != "900" {
		t.Errorf("quota %s, memory %s, score %s", quotaOf(c), memoryOf(c), c.Host("oom_score_adj"))
	}
	if got := c.Sh("cat /proc/self/oom_score_adj"); got != "900" {
		t.Errorf("score of an exec = %s", got)
	}
}

// TestUpdateWhileTheDaemonDies: limits are the old ones or the new ones, and the status says which.
func TestUpdateWhileTheDaemonDies(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("dies"))
	c := pod.Run(d.Sleeper("c", harness.Resources(&resources{CpuPeriod: 100000, CpuQuota: 10000, MemoryLimitInBytes: 64 << 20})))
	for n := range 8 {
		stop := make(chan struct{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := 1; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				d.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID,
					Linux: &resources{CpuQuota: int64(10000 + i%50*1000), MemoryLimitInBytes: int64(64+i%50) << 20}})
				cancel()
			}
		}()
		time.Sleep(time.Duration(5+rand.IntN(40)) * time.Millisecond)
		d.Kill()
		close(stop)
		<-done
		d.Start()
		d.Eventually(10*time.Second, "the pod is recovered", func() bool { return tryUpdate(c, nil) == nil })
		r := linuxOf(c)
		if quota := strconv.FormatInt(r.GetCpuQuota(), 10); quotaOf(c) != quota || memoryOf(c) != strconv.FormatInt(r.GetMemoryLimitInBytes(), 10) {
			t.Errorf("round %d: the kernel keeps quota %s and memory %s, the status says %v", n, quotaOf(c), memoryOf(c), r)
		}
		if steps := (r.GetCpuQuota() - 10000) / 1000; r.GetMemoryLimitInBytes() != (64+steps)<<20 {
			t.Errorf("round %d: old and new are mixed: %v", n, r)
		}
	}
}

func TestUpdatePodResources(t *testing.T) {
	parent := newParent()
	d := harness.Start(t, harness.WithCgroupParent(parent))
	pod := d.RunPod(d.Pod("pod", harness.CgroupParent(parent)))
	pod.Run(d.Sleeper("c"))
	file := cgroupFile(t, parent, "memory", "memory.limit_in_bytes", "memory.max")
	before := readFile(t, file)
	ask := func(r *runtimeapi.UpdatePodSandboxResourcesRequest) error {
		r.PodSandboxId = pod.ID
		_, err := d.Runtime.UpdatePodSandboxResources(d.Context(), r)
		return err
	}
	if err := ask(&runtimeapi.UpdatePodSandboxResourcesRequest{Resources: &resources{CpuQuota: 12345, MemoryLimitInBytes: 256 << 20}, Overhead: &resources{CpuShares: 77}}); err != nil {
		t.Fatal(err)
	}
	d.Restart()
	r, err := d.Runtime.PodSandboxStatus(d.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
	if err != nil || !strings.Contains(r.Info["info"], "12345") || !strings.Contains(r.Info["info"], "77") {
		t.Errorf("%v, %v", r.GetInfo(), err)
	}
	if got := readFile(t, file); got != before {
		t.Errorf("the kubelet's cgroup %s had %s, has %s", filepath.Dir(file), before, got)
	}
	wantCode(t, "a bad quota", ask(&runtimeapi.UpdatePodSandboxResourcesRequest{Resources: &resources{CpuQuota: 5}}), codes.InvalidArgument)
}
