package kubelet_test

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/kubelet"
	"github.com/berthd/berth/test/wait"
)

// patience is how long something may take that takes a second on an idle machine.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	kubelet.Enter()
	flag.Parse()
	flag.Set("test.parallel", "100") // the scenarios wait more than they work
	harness.Main(m)
}

// world is what the scenarios share.
type world struct {
	d      *harness.Daemon
	k      *kubelet.Process
	root   string // of the kubelet's cgroups
	ports  map[string]string
	before map[string]string // the host's kernel parameters
	hooks  *httptest.Server
	mu     sync.Mutex
	called []string // paths that were asked of hooks
}

func TestKubelet(t *testing.T) {
	w := open(t)
	list := scenarios()
	if !w.mapsUsers(t) {
		t.Log("no pod with a user namespace: this kernel, the file system of the test's folder, or the OCI runtime that is tested cannot")
		list = slices.DeleteFunc(list, func(s scenario) bool { return strings.HasPrefix(s.name, "user-namespace") })
	}
	more := again()
	for _, s := range list {
		w.put(t, s)
	}
	if !t.Run("pods", func(t *testing.T) {
		for _, s := range list {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				s.check(w.watch(t, s.name))
			})
		}
	}) {
		return
	}
	for _, step := range []struct {
		name string
		do   func(*testing.T)
	}{
		{"host", w.checkHost},
		{"statistics", func(t *testing.T) { w.checkSummary(t, "cpu", "memory") }},
		{"berthd killed ten times", func(t *testing.T) { w.killBerthd(t, list) }},
		{"kubelet killed", func(t *testing.T) { w.restartKubelet(t, "", "PodAndContainerStatsFromCRI") }},
		{"statistics of berth", func(t *testing.T) { w.checkSummary(t, "network", "process_stats", "cpu", "memory"); w.checkCadvisor(t) }},
		{"events", func(t *testing.T) { w.checkEvents(t, more) }},
		{"processors", w.checkProcessors},
		{"removed", func(t *testing.T) { w.remove(t, slices.Concat(list, more)) }},
		{"nothing is left", w.nothing},
	} {
		if !t.Run(step.name, step.do) {
			return
		}
	}
}

// mapsUsers tells whether pods can have user namespaces.
func (w *world) mapsUsers(t *testing.T) bool {
	t.Helper()
	r, err := w.d.Runtime.Status(w.d.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(r.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool {
		return h.Name == "" && h.Features.GetUserNamespaces()
	})
}

// open starts berthd and the kubelet, and arranges that they end.
func open(t *testing.T) *world {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: namespaces, mounts, cgroups, links")
	}
	start := time.Now()
	program, err := kubelet.Build(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the kubelet was built or found in %s", time.Since(start).Round(time.Second))
	if err := kubelet.Sweep(); err != nil {
		t.Fatal(err)
	}
	ports := map[string]string{"$HOSTNETWORK": fmt.Sprint(harness.FreePort(t)), "$HOSTPORT": fmt.Sprint(harness.FreePort(t))}
	w := &world{root: kubelet.CgroupRoot(), ports: ports, before: readParameters(t)}
	w.d = harness.Start(t, harness.WithCgroupParent(w.root))
	w.hooks = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.called = append(w.called, r.URL.Path)
	}))
	t.Cleanup(w.hooks.Close)
	w.k, err = kubelet.New(kubelet.Options{Program: program, Dir: kubelet.Folder(w.d.Dir), Socket: w.d.Options().Socket, CgroupRoot: w.root,
		Port: int(harness.FreePort(t))})
	if w.k != nil {
		t.Cleanup(func() { w.close(t) })
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := w.k.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

// close ends the kubelet, then what it left, and prints the end of its log if the test has failed.
func (w *world) close(t *testing.T) {
	if err := w.k.Kill(); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if w.d.PID() != 0 {
		if err := w.d.RemovePods(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := w.k.Close(); err != nil {
		t.Error(err)
	}
	if t.Failed() {
		t.Logf("the kubelet's log ends with:\n%s", tail(w.k.Log, 150))
	}
}

// tail reads the last lines of a file, each cut to a length that can be read.
func tail(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, line := range lines {
		lines[i] = line[:min(len(line), 400)]
	}
	return strings.Join(lines, "\n")
}

// put hands a scenario's pod to the kubelet. Names that begin with $ stand for what is known only now.
func (w *world) put(t *testing.T, s scenario) {
	t.Helper()
	dir := filepath.Join(w.d.Dir, "host", s.name)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	words := []string{
		"$IMAGE", harness.Base(t).Ref, "$DIR", dir, "$HOOKS", strings.TrimPrefix(w.hooks.URL, "http://127.0.0.1:"),
		// A shell waits for its children's end before it handles a signal, except in wait.
		"$WAIT", "trap 'exit 0' TERM; sleep 3600 & wait",
	}
	for name, port := range w.ports {
		words = append(words, name, port)
	}
	if err := w.k.Put(s.name, strings.NewReplacer(words...).Replace(s.spec)); err != nil {
		t.Fatal(err)
	}
}

// watch looks at one pod.
type watch struct {
	*testing.T
	*world
	name string
	dir  string // the pod's folder on the host
}

func (w *world) watch(t *testing.T, name string) *watch {
	return &watch{T: t, world: w, name: name, dir: filepath.Join(w.d.Dir, "host", name)}
}

// pods lists all of them.
func (w *world) pods(t *testing.T) (pods map[string]kubelet.Pod) {
	t.Helper()
	if !wait.Until(patience, time.Second, func() bool { // a kubelet that has much to do answers late
		var err error
		if pods, err = w.k.List(t.Context()); err != nil {
			t.Log(err)
		}
		return err == nil
	}) {
		t.FailNow()
	}
	return pods
}

// until polls, and fails the test when it takes too long. What it waited for is shown with what there is instead.
func until(t *testing.T, what string, ok func() (there any, is bool)) {
	t.Helper()
	var there any
	if !wait.Until(patience, 100*time.Millisecond, func() (is bool) {
		there, is = ok()
		return is
	}) {
		t.Fatalf("not within %s: %s; there is\n%v", patience, what, there)
	}
}

// until waits for a state of the pod and returns it.
func (w *watch) until(what string, ok func(kubelet.Pod) bool) (p kubelet.Pod) {
	w.Helper()
	until(w.T, w.name+": "+what, func() (any, bool) {
		p = w.pods(w.T)[w.name]
		return cmp.Diff(kubelet.Pod{}, p), ok(p)
	})
	return p
}

// ready waits until the pod is ready and returns it.
func (w *watch) ready() kubelet.Pod {
	w.Helper()
	return w.until("ready", ready)
}

func ready(p kubelet.Pod) bool { return p.Condition("Ready") == "True" }

// file waits until a file in the pod's folder of the host contains a text, and returns all of it.
func (w *watch) file(name, want string) (text string) {
	w.Helper()
	until(w.T, fmt.Sprintf("%s: file %s contains %q", w.name, name, want), func() (any, bool) {
		b, err := os.ReadFile(filepath.Join(w.dir, name))
		text = string(b)
		return fmt.Sprint(text, err), err == nil && strings.Contains(text, want)
	})
	return text
}

// touch makes a file in the pod's folder.
func (w *watch) touch(name string) {
	w.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, name), nil, 0o644); err != nil {
		w.Fatal(err)
	}
}

// run runs a command in a container, through the kubelet.
func (w *watch) run(container string, command ...string) string {
	w.Helper()
	out, err := w.k.Run(w.Context(), w.name, container, command...)
	if err != nil {
		w.Fatalf("run %q: %v", command, err)
	}
	return out
}

// logs reads a container's log, through the kubelet.
func (w *watch) logs(container, query string) string {
	w.Helper()
	out, err := w.k.Logs(w.Context(), w.name, container, query)
	if err != nil {
		w.Fatalf("log of %s: %v", container, err)
	}
	return out
}

// logged waits until a container's log contains a text, and returns all of it.
func (w *watch) logged(container, want string) (text string) {
	w.Helper()
	until(w.T, fmt.Sprintf("%s: log of %s contains %q", w.name, container, want), func() (any, bool) {
		var err error
		text, err = w.k.Logs(w.Context(), w.name, container, "")
		return fmt.Sprint(text, err), strings.Contains(text, want)
	})
	return text
}

// fetch gets a page from the host's side.
func fetch(url string) error {
	client := http.Client{Timeout: harness.Timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// hooked tells whether a hook's path was asked for.
func (w *world) hooked(path string) (any, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.called), slices.Contains(w.called, path)
}
