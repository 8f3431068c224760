package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
)

// otherHandler is the configuration of a handler "other" that is runc.
func otherHandler(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("runc is needed:", err)
	}
	return fmt.Sprintf("[runtimes.other]\ntype = \"oci\"\npath = %q\n\n[runtimes.mine]\ntype = \"native\"\n", program)
}

// runWith runs a pod with a handler.
func runWith(d *harness.Daemon, name, handler string) *harness.Pod {
	d.T.Helper()
	config := d.Pod(name)
	r, err := d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		d.T.Fatalf("RunPodSandbox with handler %q: %v", handler, err)
	}
	return &harness.Pod{Daemon: d, ID: r.PodSandboxId, Config: config}
}

// stateOf is where runc keeps the container; it is there only if runc made it.
func stateOf(d *harness.Daemon, c *harness.Container, handler string) string {
	return filepath.Join(d.Options().State, "runtimes", handler, c.ID)
}

// tellsFeatures tells whether the default handler's program has the command features, which is younger than crun 1.8.
func tellsFeatures() bool {
	return harness.Handler == "" || exec.Command(harness.Handler, "features").Run() == nil
}

func TestHandlers(t *testing.T) {
	d := harness.Start(t, harness.WithConfig(otherHandler(t)))
	status, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	for _, h := range status.RuntimeHandlers {
		listed[h.Name] = h.Features
	}
	for name, want := range map[string]bool{"": tellsFeatures(), "berth": true, "mine": true, "other": true} {
		if listed[name].GetRecursiveReadOnlyMounts() != want {
			t.Errorf("handler %q has features %v, want recursive read-only mounts: %t", name, listed[name], want)
		}
	}
	if listed["other"].GetUserNamespaces() {
		t.Error("runc is said to have user namespaces")
	}
	_, err = d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.Pod("bad"), RuntimeHandler: "gvisor"})
	refused(t, "unknown handler", err, codes.InvalidArgument, "gvisor", "other")

	for handler, external := range map[string]bool{"berth": false, "mine": false, "other": true} {
		pod := runWith(d, "pod-"+handler, handler)
		c := pod.Run(d.Shell("c", "trap 'exit 7' TERM; echo to stdout; echo to stderr >&2; sleep 1000 & wait"))
		if _, err := os.Stat(stateOf(d, c, handler)); (err == nil) != external {
			t.Errorf("handler %q: state of runc: %v", handler, err)
		}
		if got := c.Sh("cat /proc/1/comm"); got != "sh" {
			t.Errorf("handler %q: first process is %q", handler, got)
		}
		// runc is told one cgroup for the exec in all hierarchies; the engine needs one in the unified hierarchy alone.
		if _, memory, v1 := strings.Cut(c.Sh("cat /proc/self/cgroup"), ":memory:"); v1 && hasV2(unifiedMount()) {
			memory, _, _ = strings.Cut(memory, "\n")
			if strings.Contains(memory, "/exec-") != external {
				t.Errorf("handler %q: an exec is in %s", handler, memory)
			}
		}
		list, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: pod.ID}})
		if err != nil || len(list.Items) != 1 || list.Items[0].RuntimeHandler != handler {
			t.Errorf("handler %q: listed as %v, %v", handler, list.GetItems(), err)
		}
		d.Eventually(10*time.Second, "both lines are logged", func() bool { return len(c.Lines()) == 2 })
		c.Stop(10 * time.Second)
		if s := c.Wait(10 * time.Second); s.ExitCode != 7 {
			t.Errorf("handler %q: exit code %d, want 7", handler, s.ExitCode)
		}
		for _, line := range c.Lines() {
			if line.Text != "to "+line.Stream || !line.Full {
				t.Errorf("handler %q: log line %+v", handler, line)
			}
		}
		d.Eventually(10*time.Second, "runc has forgotten the container", func() bool {
			_, err := os.Stat(stateOf(d, c, handler))
			return os.IsNotExist(err)
		})
		pod.Remove()
	}
	d.AsBefore()
}

// TestHandlerLeavesTheConfiguration: a pod keeps what its handler meant when it was made.
func TestHandlerLeavesTheConfiguration(t *testing.T) {
	d := harness.Start(t, harness.WithConfig(otherHandler(t)))
	pod := runWith(d, "pod", "other")
	c := pod.Run(d.Sleeper("c"))
	path := d.Options().Config
	text := readRaw(t, path)
	d.Write(path, text[:strings.Index(text, "[runtimes.other]")])
	d.Restart()
	_, err := d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.Pod("new"), RuntimeHandler: "other"})
	refused(t, "handler that was taken away", err, codes.InvalidArgument, "other")
	if got := c.Sh("echo still here"); got != "still here" {
		t.Errorf("exec = %q", got)
	}
	again := pod.Run(d.Sleeper("again"))
	if _, err := os.Stat(stateOf(d, again, "other")); err != nil {
		t.Errorf("a second container of the pod has another handler: %v", err)
	}
	d.Check()
	c.Stop(5 * time.Second)
	pod.Remove()
	d.AsBefore()
}

// TestReload: what SIGHUP takes over is not only told by Status: pods, pulls and the log go by it, and again by what was before when that is back.
func TestReload(t *testing.T) {
	d := imageCalls{harness.Start(t, func(_ *harness.Daemon, o *berthd.Options) { o.Verbosity = 0 })}
	image := d.Pull(harness.Base(t).Ref)
	d.Mirror("127.0.0.1:1")
	run := func() (*runtimeapi.RunPodSandboxResponse, error) {
		return d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.Pod("pod"), RuntimeHandler: "reloaded"})
	}
	holds := func(want codes.Code) { // of a pod with that handler
		t.Helper()
		reloaded := want == codes.OK
		r, err := run()
		wantCode(t, "RunPodSandbox", err, want)
		if err == nil {
			(&harness.Pod{Daemon: d.Daemon, ID: r.PodSandboxId}).Remove()
		}
		if got := d.status(image).Pinned; got != reloaded {
			t.Errorf("the image is pinned: %t", got)
		}
		if _, err := d.TryPull("127.0.0.1:1/test/base:1"); (err == nil) == reloaded { // the folder with its mirror is another one
			t.Errorf("reloaded: %t, a pull from a mirror: %v", reloaded, err)
		}
	}
	reload := func(over func() bool) {
		t.Helper()
		if err := d.Reload(); err != nil {
			t.Fatal(err)
		}
		d.Eventually(20*time.Second, "the configuration is taken over", over)
	}
	const debugged = `"Answered a call" method="Status"`
	holds(codes.InvalidArgument)
	if strings.Contains(readRaw(t, d.Log), debugged) {
		t.Error("the log has what debugging asks for")
	}
	d.DropIn("10.toml", fmt.Sprintf("[runtimes.reloaded]\ntype = \"native\"\n[images]\npinned = [%q]\n[registry]\nconfig_path = %q\n[log]\nverbosity = 5\n", image, d.Dir+"/none"))
	reload(func() bool { return offered(d.Daemon, "reloaded") })
	holds(codes.OK)
	if !strings.Contains(readRaw(t, d.Log), debugged) {
		t.Error("the log lacks what debugging asks for")
	}
	d.DropIn("10.toml", "")
	reload(func() bool { return !offered(d.Daemon, "reloaded") })
	holds(codes.InvalidArgument)
}

// TestRuntimeIsMissing: a handler whose program is missing or broken is not offered, and is said; its pods are refused before anything is made, and
// taken once the program is there.
func TestRuntimeIsMissing(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("runc is needed:", err)
	}
	late := filepath.Join(t.TempDir(), "runc")
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf(
		"[runtimes.late]\ntype = \"oci\"\npath = %q\n[runtimes.broken]\ntype = \"oci\"\npath = \"/bin/false\"\n", late)))
	for handler, says := range map[string]string{"late": late, "broken": "/bin/false"} {
		if offered(d, handler) {
			t.Errorf("handler %q is offered", handler)
		}
		if c := d.Status()["HandlersMissing"]; !c.GetStatus() || !strings.Contains(c.GetMessage(), says) {
			t.Errorf("condition = %v, want %s in it", c, says)
		}
		_, err := d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.Pod("pod-" + handler), RuntimeHandler: handler})
		refused(t, "handler "+handler, err, codes.FailedPrecondition, handler, says)
	}
	if !d.Status()["RuntimeReady"].GetStatus() {
		t.Error("not ready for want of a handler that is not the default one")
	}
	d.AsBefore()

	if err := os.Symlink(runc, late); err != nil {
		t.Fatal(err)
	}
	if !offered(d, "late") {
		t.Error("the handler is not offered once its program is there")
	}
	pod := runWith(d, "pod-late", "late")
	c := pod.Run(d.Sleeper("c"))
	if err := os.Remove(late); err != nil {
		t.Fatal(err)
	}
	// A pod that is there goes on: what cannot be done without the program says so, and it can be ended.
	again := pod.Create(d.Sleeper("again"))
	if err := again.TryStart(); err == nil || !strings.Contains(err.Error(), late) {
		t.Errorf("StartContainer = %v, want an error that names %s", err, late)
	}
	if s := again.Status(); s.State != exited || !strings.Contains(s.Message, late) {
		t.Errorf("status = %s, %q", s.State, s.Message)
	}
	c.Stop(5 * time.Second)
	pod.Remove()
	d.AsBefore()
}

// offered tells whether Status lists a handler.
func offered(d *harness.Daemon, handler string) bool {
	d.T.Helper()
	r, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		d.T.Fatal(err)
	}
	return slices.ContainsFunc(r.RuntimeHandlers, func(h *runtimeapi.RuntimeHandler) bool { return h.Name == handler })
}

// TestDefaultRuntimeIsMissing: the node is not ready, in a sentence, and becomes ready without a restart.
func TestDefaultRuntimeIsMissing(t *testing.T) {
	harness.Native(t, "the default handler is the test's own")
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal("runc is needed:", err)
	}
	program := filepath.Join(t.TempDir(), "runc")
	if err := os.Symlink(runc, program); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[runtime]\ndefault = \"r\"\n[runtimes.r]\ntype = \"oci\"\npath = %q\n", program)))
	if err := os.Remove(program); err != nil {
		t.Fatal(err)
	}
	d.Restart()
	if c := d.Status()["RuntimeReady"]; c.GetStatus() || c.GetReason() == "" || !strings.Contains(c.GetMessage(), program) {
		t.Errorf("condition = %v, want not ready, with %s", c, program)
	}
	if offered(d, "") || offered(d, "r") || !offered(d, "berth") {
		t.Error("offered are not those that work")
	}
	_, err = d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.Pod("refused")})
	refused(t, "default handler", err, codes.FailedPrecondition, program)
	runWith(d, "native", "berth").Remove()
	if err := os.Symlink(runc, program); err != nil {
		t.Fatal(err)
	}
	if !d.Status()["RuntimeReady"].GetStatus() {
		t.Error("not ready with the program there again")
	}
	d.RunPod(d.Pod("taken")).Remove()
	d.AsBefore()
}

// TestAnnotationsStayOutside: what is a runtime's special key in config.json is a text like any other in a pod (CVE-2024-3154).
func TestAnnotationsStayOutside(t *testing.T) {
	d := harness.Start(t, harness.WithConfig(otherHandler(t)))
	special := map[string]string{"org.systemd.property.CollectMode": "'inactive-or-failed'", "run.oci.keep_original_groups": "1",
		"org.criu.config": "/etc/shadow", "bundle": "/", "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw": "true"}
	config := d.Pod("pod", func(p *runtimeapi.PodSandboxConfig) { p.Annotations = special })
	r, err := d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: "other"})
	if err != nil {
		t.Fatal(err)
	}
	pod := &harness.Pod{Daemon: d, ID: r.PodSandboxId, Config: config}
	c := pod.Run(d.Sleeper("c", func(c *runtimeapi.ContainerConfig) { c.Annotations = special }))
	text := readRaw(t, filepath.Join(d.Options().State, "pods", pod.ID, c.ID, "config.json"))
	for key, value := range special {
		if strings.Contains(text, key+`"`) && key != "bundle" {
			t.Errorf("%s is in config.json", key)
		}
		if pod.Status().Annotations[key] != value || c.Status().Annotations[key] != value {
			t.Errorf("%s is not in the status as it was given", key)
		}
	}
	if strings.Contains(text, "annotations") {
		t.Error("config.json has annotations")
	}
}
