package kubelet_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/test/kubelet"
)

// checkSummary waits until /stats/summary tells all of the pods that run, with these fields of each pod besides those that are always there.
func (w *world) checkSummary(t *testing.T, fields ...string) {
	t.Helper()
	running := w.running(t)
	until(t, "/stats/summary has everything", func() (any, bool) {
		text, err := w.k.Get(t.Context(), "/stats/summary")
		if err != nil {
			return err, false
		}
		missing, err := incomplete(text, running, fields)
		return fmt.Sprint(strings.Join(missing, "\n"), err, "\n", text), err == nil && len(missing) == 0
	})
}

// running maps the pods with networks of their own, all of whose containers run, to their containers.
func (w *world) running(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string][]string{}
	for name, p := range w.pods(t) {
		if name == "host-network" || !ready(p) {
			continue
		}
		for _, c := range p.Status.Containers {
			found[name] = append(found[name], c.Name)
		}
	}
	if len(found) < 10 {
		t.Fatalf("only %d pods run: %q", len(found), slices.Collect(maps.Keys(found)))
	}
	return found
}

// object is decoded JSON.
type object = map[string]any

// at looks up a path of keys; nil if there is none.
func at(o object, path string) any {
	var v any = o
	for _, key := range strings.Split(path, ".") {
		inner, _ := v.(object)
		v = inner[key]
	}
	return v
}

// figures of a pod, by the field of the summary that has them.
var figures = map[string][]string{
	"network": {"network.rxBytes", "network.txBytes"}, "process_stats": {"process_stats.process_count"},
	"cpu": {"cpu.usageCoreNanoSeconds"}, "memory": {"memory.workingSetBytes"},
}

// incomplete names what a summary does not tell. A figure that is 0 is not told.
func incomplete(text string, running map[string][]string, fields []string) (missing []string, err error) {
	var summary struct {
		Node object
		Pods []object
	}
	if err := json.Unmarshal([]byte(text), &summary); err != nil {
		return nil, err
	}
	want := func(where string, o object, paths ...string) {
		for _, path := range paths {
			if n, ok := at(o, path).(float64); !ok || n == 0 {
				missing = append(missing, fmt.Sprintf("%s: %s is %v", where, path, at(o, path)))
			}
		}
	}
	want("node", summary.Node, "runtime.imageFs.capacityBytes", "runtime.imageFs.usedBytes")
	left := maps.Clone(running)
	for _, pod := range summary.Pods {
		uid := fmt.Sprint(at(pod, "podRef.uid"))
		if left[uid] == nil {
			continue
		}
		delete(left, uid)
		want("pod "+uid, pod, "ephemeral-storage.usedBytes")
		for _, f := range fields {
			want("pod "+uid, pod, figures[f]...)
		}
		told := map[string]object{}
		containers, _ := pod["containers"].([]any)
		for _, c := range containers {
			told[fmt.Sprint(at(c.(object), "name"))] = c.(object)
		}
		for _, name := range running[uid] {
			want("pod "+uid+" container "+name, told[name],
				"cpu.usageCoreNanoSeconds", "memory.workingSetBytes", "rootfs.capacityBytes", "logs.capacityBytes")
		}
	}
	for uid := range left {
		missing = append(missing, "pod "+uid+" is not there")
	}
	return missing, nil
}

// checkCadvisor waits until /metrics/cadvisor has processor and memory of every container that runs, and nothing twice.
func (w *world) checkCadvisor(t *testing.T) {
	t.Helper()
	running := w.running(t)
	until(t, "/metrics/cadvisor has every container", func() (any, bool) {
		text, err := w.k.Get(t.Context(), "/metrics/cadvisor")
		if err != nil {
			return err, false
		}
		var missing []string
		for name, containers := range running {
			for _, c := range containers {
				for _, metric := range []string{"container_cpu_usage_seconds_total", "container_memory_working_set_bytes"} {
					labels := fmt.Sprintf(`container="%s",.*pod="%s-%s"`, c, name, kubelet.Node)
					if found := regexp.MustCompile(`(?m)^`+metric+`\{`+labels).FindAllString(text, -1); len(found) != 1 {
						missing = append(missing, fmt.Sprintf("%s of container %s of pod %s: %d times", metric, c, name, len(found)))
					}
				}
			}
		}
		return strings.Join(missing, "\n") + "\n" + text[:min(len(text), 20000)], len(missing) == 0
	})
}
