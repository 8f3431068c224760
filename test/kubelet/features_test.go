package kubelet_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/test/kubelet"
)

// restartKubelet kills the kubelet and starts one with other features: it finds everything as it was.
func (w *world) restartKubelet(t *testing.T, more string, gates ...string) {
	t.Helper()
	before := w.pods(t)
	if err := w.k.Kill(); err != nil {
		t.Fatal(err)
	}
	// The kubelet refuses to start with another policy than the one in this file.
	if err := os.Remove(filepath.Join(filepath.Dir(w.k.Pods), "root/cpu_manager_state")); err != nil {
		t.Fatal(err)
	}
	if err := w.k.Configure(more, gates...); err != nil {
		t.Fatal(err)
	}
	if err := w.k.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var after map[string]kubelet.Pod
	until(t, "pods are as they were", func() (any, bool) {
		after = w.pods(t)
		var missing []string
		for name, p := range before {
			if ready(p) && !ready(after[name]) || p.Status.Phase != after[name].Status.Phase {
				missing = append(missing, name)
			}
		}
		return missing, len(missing) == 0
	})
	if diff := cmp.Diff(lives(before), lives(after)); diff != "" {
		t.Errorf("containers (-before the kubelet's kill, +after it):\n%s", diff)
	}
}

// again are scenarios for a kubelet that learns from berth's events what has become of pods: without them it looks every five minutes.
func again() []scenario {
	list := slices.DeleteFunc(scenarios(), func(s scenario) bool {
		return !slices.Contains([]string{"order", "crash", "on-failure", "failed", "unwell"}, s.name)
	})
	for i := range list {
		list[i].name += "-by-events"
	}
	return list
}

// checkEvents runs pods on a kubelet that trusts in events, and in lists that come in pieces; berthd is killed once.
func (w *world) checkEvents(t *testing.T, list []scenario) {
	w.restartKubelet(t, "", "PodAndContainerStatsFromCRI", "EventedPLEG", "CRIListStreaming")
	for _, s := range list {
		w.put(t, s)
	}
	t.Run("pods", func(t *testing.T) {
		for _, s := range list {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				s.check(w.watch(t, s.name))
			})
		}
	})
	metrics, err := w.k.Get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(metrics, "\nkubelet_evented_pleg_connection_success_count 1\n") {
		t.Error("the kubelet has not connected once to berth's events")
	}
	before := w.pods(t)
	w.d.Restart()
	w.put(t, scenario{name: "after-events", spec: "containers: [{name: c, image: $IMAGE, command: [sh, -c, \"$WAIT\"]}]"})
	w.watch(t, "after-events").ready()
	after := w.pods(t)
	delete(after, "after-events")
	if diff := cmp.Diff(lives(before), lives(after)); diff != "" {
		t.Errorf("containers (-before the kill, +after it):\n%s", diff)
	}
}

// checkProcessors gives one pod a processor of its own: the kubelet takes it from all that run, by UpdateContainerResources.
func (w *world) checkProcessors(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("one processor cannot be kept for a pod")
	}
	w.restartKubelet(t, "cpuManagerPolicy: static\nsystemReserved: {cpu: 500m}\ncpuManagerReconcilePeriod: 1s\n", "PodAndContainerStatsFromCRI")
	w.put(t, scenario{name: "alone", spec: `
containers:
- name: c
  image: $IMAGE
  command: [sh, -c, "$WAIT"]
  resources: {limits: {cpu: "1", memory: 32Mi}}
`})
	alone := w.watch(t, "alone").ready()
	until(t, "no other container may use the processor", func() (any, bool) {
		own, err := w.processors(alone.Container("c").ID())
		if err != nil {
			return err, false
		}
		others, err := w.processors(w.pods(t)["resources"].Container("limited").ID())
		return fmt.Sprint(own, others, err), err == nil && len(own) == 1 && len(others) > 0 && !slices.Contains(others, own[0])
	})
	w.watch(t, "resources").cgroup(w.pods(t)["resources"], "limited", map[string]string{"cpu/cpu.shares": "102", "cpu/cpu.cfs_quota_us": "25000"})
}

// processors reads which processors a container may use.
func (w *world) processors(id string) (all []int, err error) {
	dirs, err := kubelet.Cgroups(w.root)
	if err != nil {
		return nil, err
	}
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cpuset.cpus"))
		if filepath.Base(dir) != id || err != nil {
			continue
		}
		for _, r := range strings.Split(strings.TrimSpace(string(text)), ",") {
			var first, last int
			if n, err := fmt.Sscanf(r, "%d-%d", &first, &last); n == 0 {
				return nil, fmt.Errorf("processors %q: %w", text, err)
			} else if n == 1 {
				last = first
			}
			for ; first <= last; first++ {
				all = append(all, first)
			}
		}
		return all, nil
	}
	return nil, fmt.Errorf("container %s has no cpuset", id)
}
