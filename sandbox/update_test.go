package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/store"
)

// kernel are a container's limits as the kernel keeps them now.
func kernel(t *testing.T, m *Manager, containerID string) *linuxResources {
	t.Helper()
	c, err := m.findContainer(containerID)
	if err != nil {
		t.Fatal(err)
	}
	c.limits.applied.Store(nil) // read anew
	r, err := m.Resources(containerID)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func asked() *linuxResources {
	return &linuxResources{CpuShares: 500, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 128 << 20}
}

func TestUpdateOfARunningContainer(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, limited(createRequest(p, "c", "exec sleep 1000"), asked()))
	before := kernel(t, m, c)
	for _, tc := range []struct {
		name   string
		update *linuxResources
		want   func(*linuxResources)
	}{
		{"nothing", nil, func(*linuxResources) {}},
		{"shares", &linuxResources{CpuShares: 700}, func(r *linuxResources) { r.CpuShares = 700 }},
		{"period alone", &linuxResources{CpuPeriod: 50000}, func(r *linuxResources) { r.CpuPeriod = 50000 }},
		{"quota alone", &linuxResources{CpuQuota: 10000}, func(r *linuxResources) { r.CpuQuota = 10000 }},
		{"no quota", &linuxResources{CpuQuota: -1}, func(r *linuxResources) { r.CpuQuota = -1 }},
		{"less memory", &linuxResources{MemoryLimitInBytes: 64 << 20}, func(r *linuxResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 64<<20, 64<<20 }},
		{"more memory and swap", &linuxResources{MemoryLimitInBytes: 256 << 20, MemorySwapLimitInBytes: 300 << 20},
			func(r *linuxResources) { r.MemoryLimitInBytes, r.MemorySwapLimitInBytes = 256<<20, 300<<20 }},
		{"less memory, swap as it was", &linuxResources{MemoryLimitInBytes: 128 << 20}, func(r *linuxResources) { r.MemoryLimitInBytes = 128 << 20 }},
		{"processors", &linuxResources{CpusetCpus: "0"}, func(r *linuxResources) { r.CpusetCpus = "0" }},
		{"a score", &linuxResources{OomScoreAdj: 900}, func(*linuxResources) {}},
	} {
		if err := m.UpdateContainer(t.Context(), c, tc.update); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		want := proto.CloneOf(before)
		tc.want(want)
		if !m.cfg.Host.SwapLimit {
			want.MemorySwapLimitInBytes = 0
		}
		got, err := m.Resources(c)
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", tc.name, err, diff)
		}
		before = got
	}
	for _, tc := range []struct {
		name   string
		update *linuxResources
		want   error
	}{
		{"a processor that is not there", &linuxResources{CpusetCpus: "5000", CpuShares: 3, MemoryLimitInBytes: 100 << 20}, ErrInvalid},
		{"swap below memory", &linuxResources{MemorySwapLimitInBytes: 1 << 20}, nil},
		{"a bad quota", &linuxResources{CpuQuota: 5}, nil},
		{"huge pages of no size", &linuxResources{CpuShares: 3, HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "3KB", Limit: 1}}}, ErrInvalid},
	} {
		err := m.UpdateContainer(t.Context(), c, tc.update)
		var invalid *spec.InvalidError
		if err == nil || tc.want != nil && !errors.Is(err, tc.want) || tc.want == nil && !errors.As(err, &invalid) {
			t.Errorf("%s: %v", tc.name, err)
		}
		if diff := cmp.Diff(before, kernel(t, m, c), protocmp.Transform()); diff != "" {
			t.Errorf("%s (-before +after):\n%s", tc.name, diff)
		}
	}
	if !w.cgroups.V2() {
		var invalid *spec.InvalidError
		if err := m.UpdateContainer(t.Context(), c, &linuxResources{Unified: map[string]string{"memory.high": "1"}}); !errors.As(err, &invalid) {
			t.Errorf("unified on version 1: %v", err)
		}
	}
	// The next daemon knows it, and so does the one after it.
	for range 2 {
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		m = w.open(nil)
		w.recovered(m)
		if diff := cmp.Diff(before, kernel(t, m, c), protocmp.Transform()); diff != "" {
			t.Errorf("after a restart (-before +after):\n%s", diff)
		}
	}
	if err := m.StopContainer(t.Context(), c, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.UpdateContainer(t.Context(), c, &linuxResources{CpuShares: 3}); !errors.Is(err, ErrState) {
		t.Errorf("of a container that has exited: %v", err)
	}
	if got, err := m.Container(c); err != nil || got.Resources.GetLinux().GetCpuShares() != before.CpuShares || got.Resources.GetLinux().GetCpusetCpus() != "0" {
		t.Errorf("of a container that has exited: %v, %v", got.Resources, err)
	}
	if err := m.UpdateContainer(t.Context(), "none", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an unknown container: %v", err)
	}
}

func TestUpdateOfACreatedContainer(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	var all []string
	for _, name := range []string{"now", "later"} {
		all = append(all, create(t, m, limited(createRequest(p, name, "exec sleep 1000"), asked())))
		if err := m.UpdateContainer(t.Context(), all[len(all)-1], &linuxResources{CpuShares: 700, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 800}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(id string) {
		t.Helper()
		if err := m.StartContainer(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if got := kernel(t, m, id); got.CpuShares != 700 || got.MemoryLimitInBytes != 64<<20 || got.CpuQuota != 50000 {
			t.Errorf("the kernel keeps %v", got)
		}
		c, err := m.findContainer(id)
		if err != nil {
			t.Fatal(err)
		}
		if made, err := m.specOf(c); err != nil || *made.Process.OOMScoreAdj != 800 {
			t.Errorf("score = %v, %v", made.Process.OOMScoreAdj, err)
		}
	}
	check(all[0])
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = w.open(nil)
	w.recovered(m)
	check(all[1])
}

// TestUpdateIsOldOrNew: a daemon that is killed at any step of an update leaves the old limits or the new ones, and the record says which.
func TestUpdateIsOldOrNew(t *testing.T) {
	for n := 1; n <= 3; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWorld(t)
			first := w.open(nil)
			p := run(t, first, podConfig("a"))
			c := start(t, first, limited(createRequest(p, "c", "exec sleep 1000"), asked()))
			if err := first.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			armed := false
			fault := &crash{at: n, end: w.end, died: make(chan struct{})}
			dying := w.open(func(step string) error {
				mu.Lock()
				on := armed
				mu.Unlock()
				if !on || strings.HasPrefix(step, "sweep") { // the sweep comes some time after the recovery
					return nil
				}
				return fault.effect(step)
			})
			w.recovered(dying)
			mu.Lock()
			armed = true
			mu.Unlock()
			ctx, cancel := context.WithCancel(t.Context())
			w.callers.Go(func() {
				dying.UpdateContainer(ctx, c, &linuxResources{CpuShares: 700, MemoryLimitInBytes: 64 << 20})
			})
			select {
			case <-fault.died:
			case <-time.After(time.Minute):
				t.Fatal("it does not die")
			}
			cancel()
			m := w.open(nil)
			w.recovered(m)
			got := kernel(t, m, c)
			wasOld := got.CpuShares == 500 && got.MemoryLimitInBytes == 128<<20
			isNew := got.CpuShares == 700 && got.MemoryLimitInBytes == 64<<20
			if wasOld != (n == 1) || wasOld == isNew {
				t.Errorf("after step %d: %v", n, got)
			}
			k, _ := m.findContainer(c)
			if rec := m.containerRecord(k); len(rec.Changing) != 0 {
				t.Error("the update is not settled")
			}
			if a := k.asked(); a.CpuShares != got.CpuShares {
				t.Errorf("the record says %v", a)
			}
		})
	}
}

// TestUpdateThatWasAppliedInPart: recovery makes it whole, or takes it back when the kernel refuses the rest.
func TestUpdateThatWasAppliedInPart(t *testing.T) {
	for name, tc := range map[string]struct {
		changing *linuxResources
		shares   int64
	}{
		"made whole": {&linuxResources{CpuShares: 700, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20}, 700},
		"taken back": {&linuxResources{CpuShares: 700, CpuQuota: 50000, CpuPeriod: 100000, MemoryLimitInBytes: 64 << 20, CpusetCpus: "5000"}, 500},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			m := w.open(nil)
			p := run(t, m, podConfig("a"))
			c := start(t, m, limited(createRequest(p, "c", "exec sleep 1000"), asked()))
			k, _ := m.findContainer(c)
			packed, err := proto.Marshal(tc.changing)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.updateContainer(k, func(rec *store.Container) { rec.Changing = packed }); err != nil {
				t.Fatal(err)
			}
			part, err := spec.Resources(&linuxResources{MemoryLimitInBytes: 64 << 20}, m.cfg.Host)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.cgroups.Update(m.containerRecord(k).Cgroup, part.Spec); err != nil {
				t.Fatal(err)
			}
			if err := m.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			m = w.open(nil)
			w.recovered(m)
			got := kernel(t, m, c)
			if got.CpuShares != tc.shares || (got.MemoryLimitInBytes == 64<<20) != (tc.shares == 700) {
				t.Errorf("%v", got)
			}
			k, _ = m.findContainer(c)
			if rec := m.containerRecord(k); len(rec.Changing) != 0 || k.asked().CpuShares != tc.shares {
				t.Errorf("the record says %v", k.asked())
			}
		})
	}
}

// TestUpdateOnAFullDisk: nothing that cannot be recorded is applied.
func TestUpdateOnAFullDisk(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	full := false
	m := w.open(func(step string) error {
		mu.Lock()
		defer mu.Unlock()
		if full && step == "write container record" {
			return errors.New("no space")
		}
		return nil
	})
	p := run(t, m, podConfig("a"))
	running := start(t, m, limited(createRequest(p, "c", "exec sleep 1000"), asked()))
	created := create(t, m, limited(createRequest(p, "d", "exec sleep 1000"), asked()))
	mu.Lock()
	full = true
	mu.Unlock()
	for _, id := range []string{running, created} {
		if err := m.UpdateContainer(t.Context(), id, &linuxResources{CpuShares: 700}); err == nil {
			t.Error("no error")
		}
	}
	mu.Lock()
	full = false
	mu.Unlock()
	if got := kernel(t, m, running); got.CpuShares != 500 {
		t.Errorf("of the running one: %v", got)
	}
	if got, err := m.Resources(created); err != nil || got.CpuShares != 500 {
		t.Errorf("of the created one: %v, %v", got, err)
	}
	k, _ := m.findContainer(running)
	if rec := m.containerRecord(k); len(rec.Changing) != 0 {
		t.Error("the update is not settled")
	}
}

// TestUpdatesAtOnce: many updates, reads, and the end of the container at the same time.
func TestUpdatesAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	c := start(t, m, limited(createRequest(p, "c", "exec sleep 1000"), asked()))
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 10 {
				err := m.UpdateContainer(t.Context(), c, &linuxResources{CpuShares: int64(100 + i*10 + j), CpuQuota: int64(20000 + i*1000)})
				if err != nil && !errors.Is(err, ErrState) {
					t.Error(err)
				}
				if _, err := m.Resources(c); err != nil {
					t.Error(err)
				}
				if _, err := m.ContainerStats(c); err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	k, _ := m.findContainer(c)
	want := k.asked()
	if got := kernel(t, m, c); got.CpuShares != want.CpuShares || got.CpuQuota != want.CpuQuota {
		t.Errorf("the kernel keeps %v, asked for is %v", got, want)
	}
	all.Go(func() {
		for range 20 {
			if err := m.UpdateContainer(t.Context(), c, &linuxResources{CpuShares: 300}); err != nil && !errors.Is(err, ErrState) && !errors.Is(err, ErrNotFound) {
				t.Error(err)
			}
		}
	})
	all.Go(func() {
		if err := m.RemovePod(t.Context(), p); err != nil {
			t.Error(err)
		}
	})
	all.Wait()
}

func TestUpdateOfAPod(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	config := podConfig("a")
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{Overhead: &linuxResources{CpuShares: 1}, Resources: &linuxResources{CpuShares: 2}}
	p := run(t, m, config)
	shown := func() (overhead, resources int64) {
		got, err := m.Pod(p)
		if err != nil {
			t.Fatal(err)
		}
		return got.Config.GetLinux().GetOverhead().GetCpuShares(), got.Config.GetLinux().GetResources().GetCpuShares()
	}
	if err := m.UpdatePod(t.Context(), p, nil, &linuxResources{CpuShares: 20}); err != nil {
		t.Fatal(err)
	}
	if o, r := shown(); o != 1 || r != 20 {
		t.Errorf("shares %d and %d", o, r)
	}
	if err := m.UpdatePod(t.Context(), p, &linuxResources{CpuShares: 10}, nil); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m = w.open(nil)
	w.recovered(m)
	if o, r := shown(); o != 10 || r != 20 {
		t.Errorf("after a restart: shares %d and %d", o, r)
	}
	if again, err := m.RunPod(t.Context(), config, ""); err != nil || again != p {
		t.Errorf("the same request is another pod: %s, %v", again, err)
	}
	var invalid *spec.InvalidError
	if err := m.UpdatePod(t.Context(), p, nil, &linuxResources{CpuQuota: 5}); !errors.As(err, &invalid) {
		t.Errorf("a bad quota: %v", err)
	}
	if err := m.UpdatePod(t.Context(), "none", nil, nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown pod: %v", err)
	}
}

// TestUpdateBelowWhatIsInUse: nothing is killed, and nothing is changed.
func TestUpdateBelowWhatIsInUse(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	p := run(t, m, podConfig("a"))
	script := `x=$(head -c 31457280 /dev/zero | tr '\0' x); while :; do sleep 1000; echo "$x" >/dev/null; done`
	c := start(t, m, limited(createRequest(p, "c", script), asked()))
	waitFor(t, func() bool {
		s, err := m.ContainerStats(c)
		return err == nil && s.Memory.RSS > 30<<20
	})
	before := kernel(t, m, c)
	err := m.UpdateContainer(t.Context(), c, &linuxResources{MemoryLimitInBytes: 10 << 20, CpuShares: 700})
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("10 MiB with 30 in use: %v, want ErrState", err)
	}
	if diff := cmp.Diff(before, kernel(t, m, c), protocmp.Transform()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	got, err := m.Container(c)
	if err != nil || got.State != ContainerRunning {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := os.Stat("/proc/" + strconv.Itoa(got.PID)); err != nil {
		t.Error(err)
	}
}
