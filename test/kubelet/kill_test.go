package kubelet_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/kubelet"
)

// kills is how often berthd is killed.
const kills = 10

// life is what a restarted container would not keep.
type life struct {
	ID       string
	Restarts int
	Started  time.Time
	Ended    int
	PodIP    string
}

// lives of all containers, by pod and name.
func lives(pods map[string]kubelet.Pod) map[string]life {
	all := map[string]life{}
	for name, p := range pods {
		for _, c := range slices.Concat(p.Status.Containers, p.Status.InitContainers) {
			l := life{ID: c.ID(), Restarts: c.RestartCount}
			switch s := c.State; {
			case s.Running != nil:
				l.Started, l.PodIP = s.Running.StartedAt, p.Status.PodIP
			case s.Ended != nil:
				l.Started, l.Ended = s.Ended.StartedAt, 1
			}
			all[name+"/"+c.Name] = l
		}
	}
	return all
}

// killBerthd kills and starts berthd under everything that runs, with a new pod on its way each time.
func (w *world) killBerthd(t *testing.T, list []scenario) {
	before := w.pods(t)
	for i := range kills {
		churn := scenario{name: fmt.Sprintf("churn-%d", i), spec: "containers: [{name: c, image: $IMAGE, command: [sh, -c, \"$WAIT\"]}]"}
		w.put(t, churn)
		after := w.watch(t, "streams").interrupted()
		time.Sleep(rand.N(1500 * time.Millisecond)) // anywhere in the new pod's start
		w.d.Kill()
		for name, p := range before {
			if name == "web" || name == "host-port" {
				if err := fetch("http://" + p.Status.PodIP); err != nil {
					t.Errorf("pod %s without a daemon: %v", name, err)
				}
			}
		}
		if err := fetch("http://127.0.0.1:" + w.ports["$HOSTPORT"]); err != nil {
			t.Errorf("host port without a daemon: %v", err)
		}
		time.Sleep(rand.N(2 * time.Second)) // probes and syncs meet no daemon
		w.d.Start()
		until(t, "pods are as they were, and the new one is ready", func() (any, bool) {
			pods := w.pods(t)
			var missing []string
			for name, p := range before {
				if ready(p) && !ready(pods[name]) || p.Status.Phase != pods[name].Status.Phase {
					missing = append(missing, name)
				}
			}
			if !ready(pods[churn.name]) {
				missing = append(missing, churn.name)
			}
			return missing, len(missing) == 0
		})
		until(t, "the kubelet runs a command in a pod", func() (any, bool) { // it takes a moment to connect again
			got, err := w.k.Run(t.Context(), "web", "server", "hostname")
			return fmt.Sprint(got, err), got == "web-"+kubelet.Node+"\n"
		})
		after()
		w.watch(t, "counter").counted()
		if t.Failed() {
			return
		}
	}
	checkStreams(w.watch(t, "streams"))
	after := w.pods(t)
	new := map[string]kubelet.Pod{}
	for name, p := range after {
		if strings.HasPrefix(name, "churn-") {
			new[name] = p
			delete(after, name)
		}
	}
	if diff := cmp.Diff(lives(before), lives(after)); diff != "" {
		t.Errorf("containers (-before the kills, +after them):\n%s", diff)
	}
	w.ranOnce(t, new)
	w.d.Check()
}

// ranOnce fails the test if a container of the pods ran and ended.
func (w *world) ranOnce(t *testing.T, pods map[string]kubelet.Pod) {
	t.Helper()
	r, err := w.d.Runtime.ListContainers(w.d.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Containers {
		if name := c.Labels["io.kubernetes.pod.uid"]; pods[name].Metadata.Name != "" && c.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("container %s of pod %s ran and ended", c.Id, name)
		}
	}
}

// remove takes all pods' files away, and waits until the kubelet has removed everything that was theirs.
func (w *world) remove(t *testing.T, list []scenario) {
	files, err := os.ReadDir(w.k.Pods)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if err := w.k.Take(strings.TrimSuffix(f.Name(), ".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "berthd lists nothing", func() (any, bool) {
		pods, err := w.d.Runtime.ListPodSandbox(w.d.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		containers, err := w.d.Runtime.ListContainers(w.d.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(pods.Items, containers.Containers), len(pods.Items)+len(containers.Containers) == 0
	})
	for _, s := range list {
		if s.gone != nil {
			t.Run(s.name, func(t *testing.T) { s.gone(w.watch(t, s.name)) })
		}
	}
}

// nothing checks that of no pod anything is left: cgroups, mounts, folders, logs. What is berthd's the harness checks at the test's end.
func (w *world) nothing(t *testing.T) {
	until(t, "no pod's cgroups, mounts, volumes and logs", func() (any, bool) {
		var left []string
		cgroups, err := kubelet.Cgroups(w.root)
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range cgroups {
			if base := filepath.Base(dir); base != "kubepods" && base != "besteffort" && base != "burstable" {
				left = append(left, dir)
			}
		}
		dir := filepath.Dir(w.k.Pods)
		mounts, err := kubelet.Mounts(dir)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, mounts[1:]...) // the first is the folder itself
		for _, pattern := range []string{"root/pods/*", "logs/*"} {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		return strings.Join(left, "\n"), len(left) == 0
	})
}

// parameters of the kernel that a kubelet sets.
var parameters = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"}

func readParameters(t *testing.T) map[string]string {
	t.Helper()
	values := map[string]string{}
	for _, name := range parameters {
		text, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			t.Fatal(err)
		}
		values[name] = string(text)
	}
	return values
}

// checkHost fails the test if the kubelet changed what is the host's.
func (w *world) checkHost(t *testing.T) {
	if diff := cmp.Diff(w.before, readParameters(t)); diff != "" {
		t.Errorf("kernel parameters (-before the kubelet, +with it):\n%s", diff)
	}
	for _, path := range []string{"/var/lib/kubelet/device-plugins/kubelet.sock", "/var/log/containers/web-" + kubelet.Node + "*"} {
		if found, err := filepath.Glob(path); err != nil || len(found) > 0 {
			t.Errorf("the kubelet left %q on the host (%v)", found, err)
		}
	}
}
