package integration_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// hooked is a daemon with a folder of hooks, and where its hooks write what they see.
type hooked struct {
	*harness.Daemon
	folder, log string
}

func startHooked(t *testing.T, options ...harness.Option) *hooked {
	t.Helper()
	folder := t.TempDir()
	h := &hooked{folder: folder, log: filepath.Join(folder, "log")}
	h.Daemon = harness.Start(t, append(options, harness.WithConfig(fmt.Sprintf("[hooks]\ndirs = [%q]\n", folder)))...)
	return h
}

// hook configures a script as the hook of a stage. In it $stage is the stage, and say puts a line into the log.
func (h *hooked) hook(name, stage, script string, timeout int) {
	h.T.Helper()
	program := filepath.Join(h.folder, name+".sh")
	text := "#!/bin/sh\nstage=$1\nsay() { echo \"$stage $*\" >> " + h.log + "; }\n" + script + "\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		h.T.Fatal(err)
	}
	h.describe(name, stage, program, timeout)
}

func (h *hooked) describe(name, stage, program string, timeout int) {
	h.T.Helper()
	hook := specs.Hook{Path: program, Args: []string{"the-hook", stage}, Env: []string{"PATH=/usr/bin:/bin", "OWN=value"}}
	if strings.HasPrefix(program, "/bin/") { // the shell's, which goes by its name
		hook.Args = nil
	}
	if timeout > 0 {
		hook.Timeout = &timeout
	}
	text, err := json.Marshal(map[string]any{"version": "1.0.0", "hook": hook, "stages": []string{stage},
		"when": map[string]any{"annotations": map[string]string{"^hooked$": "yes"}}})
	if err != nil {
		h.T.Fatal(err)
	}
	h.Write(filepath.Join(h.folder, name+".json"), string(text))
}

// said are the lines of the log that begin with a word, without it.
func (h *hooked) said(first string) []string {
	text, err := os.ReadFile(h.log)
	if err != nil && !os.IsNotExist(err) {
		h.T.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(strings.TrimSpace(line), first+" "); found {
			lines = append(lines, rest)
		}
	}
	return lines
}

func annotated(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{"hooked": "yes"} }

var hostStages = []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"}

// Hooks run in the order, the namespaces and with the state that the runtime specification says. They have nothing of the environment of the daemon,
// nor of the container's, which is the image's to say.
func TestHooks(t *testing.T) {
	h := startHooked(t, harness.WithEnv("LEAK=daemon"))
	for i, stage := range hostStages {
		h.hook(fmt.Sprintf("%d", i), stage, `
say began
say state "$(cat)"
for ns in net mnt pid uts; do say ns-$ns "$(readlink /proc/self/ns/$ns)"; done
say env "$OWN" "$#" "${LEAK-none}" "$(pwd)"
say root "[$(echo $(ls rootfs/bin/sh rootfs/proc/self/stat 2>/dev/null))]"
[ "$stage" != createContainer ] || { echo inside > rootfs/of-the-hook; mkdir rootfs/mnt; mount -t tmpfs -o size=1m hooktmp rootfs/mnt; touch rootfs/mnt/there; }
exit 0`, 20)
	}
	pod := h.RunPod(h.Pod("hooks"))
	unhooked := pod.Run(h.Sleeper("plain"))
	if lines := h.said("prestart"); len(lines) != 0 {
		t.Errorf("a container without the annotation had hooks: %q", lines)
	}
	unhooked.Remove()

	c := pod.Run(h.Sleeper("c", annotated, func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "LEAK", Value: []byte("container")}}
	}))
	if harness.Handler == "" {
		if got := c.Sh("cat /of-the-hook; ls /mnt"); got != "inside\nthere" {
			t.Errorf("what the createContainer hook did is in the container as %q", got)
		}
	}
	pid, podNet, podUTS := strconv.Itoa(c.PID()), namespace(t, strconv.Itoa(c.PID()), "net"), namespace(t, strconv.Itoa(c.PID()), "uts")
	containerMounts, containerPID := namespace(t, pid, "mnt"), namespace(t, pid, "pid")
	c.Stop(10 * time.Second)
	h.Eventually(10*time.Second, "poststop hook", func() bool { return len(h.said("poststop root")) > 0 })

	var order []string
	text, _ := os.ReadFile(h.log)
	for line := range strings.Lines(string(text)) {
		if stage, found := strings.CutSuffix(strings.TrimSpace(line), " began"); found {
			order = append(order, stage)
		}
	}
	if !slices.Equal(order, hostStages) {
		t.Errorf("hooks ran in the order %q", order)
	}
	for _, stage := range hostStages {
		var state specs.State
		if err := json.Unmarshal([]byte(strings.Join(h.said(stage+" state"), "")), &state); err != nil {
			t.Errorf("state of %s: %v", stage, err)
			continue
		}
		inside := stage == "createContainer"
		want := map[string]specs.ContainerState{"poststart": specs.StateRunning, "poststop": specs.StateStopped}[stage]
		if harness.Handler != "" && stage == "poststart" {
			want = state.Status // runc 1.1 says created
		}
		if want == "" {
			want = specs.StateCreating
		}
		if state.ID != c.ID || state.Status != want || state.Version == "" {
			t.Errorf("state of %s: %+v", stage, state)
		}
		switch {
		case stage == "poststop":
		case inside && state.Pid != 1 || !inside && strconv.Itoa(state.Pid) != pid:
			t.Errorf("%s has the process %d; it is %s", stage, state.Pid, pid)
		}
		if harness.Handler != "" {
			continue // what another runtime's hooks see is its own
		}
		if env := strings.Join(h.said(stage+" env"), ""); env != "value 1 none "+state.Bundle {
			t.Errorf("%s has the environment, number of arguments, somebody else's variable and folder %q", stage, env)
		}
		root := "[rootfs/bin/sh]"
		if inside {
			root = "[rootfs/bin/sh rootfs/proc/self/stat]"
		}
		if got := strings.Join(h.said(stage+" root"), ""); got != root {
			t.Errorf("%s sees of the root %q, want %q", stage, got, root)
		}
		for _, ns := range []struct{ name, container string }{{"net", podNet}, {"uts", podUTS}, {"mnt", containerMounts}, {"pid", containerPID}} {
			want := namespace(t, "self", ns.name)
			if inside {
				want = ns.container
			}
			if got := strings.Join(h.said(stage+" ns-"+ns.name), ""); got != want {
				t.Errorf("%s is in the namespace %s, want %s", stage, got, want)
			}
		}
	}
	c.Remove()
	pod.Remove()
}

// A startContainer hook is a program of the container, with its rights.
func TestStartContainerHook(t *testing.T) {
	h := startHooked(t)
	dir := folder(t, h.Daemon, "shared")
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	h.Write(filepath.Join(dir, "hook"), "#!/bin/sh\ncat > /vol/state; (id -u; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; pwd; hostname; ls /proc/1/fd 2>&1; true) > /vol/seen\n")
	if err := os.Chmod(filepath.Join(dir, "hook"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.describe("start", "startContainer", "/vol/hook", 20)
	pod := h.RunPod(h.Pod("start-hook"))
	c := pod.Run(h.Shell("c", "grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; sleep 100", annotated, bind(dir, "/vol"),
		harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.NoNewPrivs = &runtimeapi.Int64Value{Value: 1234}, true
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		})))
	c.WaitOutput("Seccomp:\t2")
	seen := strings.Fields(readFile(t, filepath.Join(dir, "seen")))
	want := append(append([]string{"1234"}, strings.Fields(c.Output())...), "/", "start-hook")
	if len(seen) < len(want) || !slices.Equal(seen[:len(want)], want) {
		t.Errorf("the hook saw %q, want %q", seen, want)
	}
	if rest := strings.Join(seen[min(len(seen), len(want)):], " "); harness.Handler == "" && !strings.HasSuffix(rest, "Permission denied") {
		t.Errorf("the hook saw into the process that waits for it: %q", rest)
	}
	var state specs.State
	if err := json.Unmarshal([]byte(readFile(t, filepath.Join(dir, "state"))), &state); err != nil || state.Pid != 1 || state.Status != specs.StateCreated || state.ID != c.ID {
		t.Errorf("state %+v, %v", state, err)
	}
}

// A hook that fails makes the start fail: the container has exited, nothing of it is left, and poststop hooks run.
func TestFailingHooks(t *testing.T) {
	h := startHooked(t)
	pod := h.RunPod(h.Pod("failing"))
	for _, stage := range []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart"} {
		if harness.Handler != "" && stage == "startContainer" {
			continue // runc 1.1 says that it has started, and then it ends
		}
		os.Remove(h.log)
		if stage == "startContainer" {
			h.describe("fail", stage, "/bin/false", 0)
		} else {
			rest := "sleep 1000 &"
			if harness.Handler != "" {
				rest = "" // runc waits for all that has a hook's streams
			}
			h.hook("fail", stage, "say ran; "+rest+" echo the reason >&2; exit 3", 0)
		}
		h.hook("stop", "poststop", "say ran", 0)
		c := pod.Create(h.Sleeper(stage, annotated))
		err := c.TryStart()
		if err == nil {
			t.Errorf("%s: a container started whose hook failed", stage)
		} else if harness.Handler == "" && (!contains(err, stage) || stage != "startContainer" && (!contains(err, "the reason") || !contains(err, "exit status 3"))) {
			t.Errorf("%s: %v does not say why", stage, err)
		}
		if s := c.Status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.Reason != "StartError" {
			t.Errorf("%s: state %v, reason %q", stage, s.State, s.Reason)
		}
		h.Eventually(10*time.Second, "poststop hook", func() bool { return len(h.said("poststop")) > 0 })
		unstarted := pod.Create(h.Sleeper(stage + "-later"))
		unstarted.Start() // the pod is as good as before
		unstarted.Remove()
		c.Remove()
	}
	os.Remove(filepath.Join(h.folder, "fail.json"))

	// After its end they are only logged.
	os.Remove(h.log)
	h.hook("stop", "poststop", "say ran; exit 1", 0)
	c := pod.Run(h.Sleeper("after", annotated))
	c.WaitOutput("up")
	c.Stop(10 * time.Second)
	h.Eventually(10*time.Second, "hooks", func() bool { return len(h.said("poststop")) == 1 })
	c.Remove()
}

// A container that exits at once takes nothing from the hooks that follow its start, and those that follow its end come after them.
func TestPoststartHookOfAShortContainer(t *testing.T) {
	harness.Native(t, "another runtime runs its hooks itself")
	h := startHooked(t)
	h.hook("late", "poststart", "say began; while ! [ -e "+h.log+".exited ]; do sleep 0.05; done; sleep 0.3; say ended", 60)
	h.hook("stop", "poststop", "grep -q 'poststart ended' "+h.log+" && say after", 60)
	c := h.RunPod(h.Pod("short")).Create(h.Container("c", []string{"true"}, annotated))
	done := make(chan error)
	go func() { done <- c.TryStart() }()
	h.Eventually(harness.Timeout, "exit", func() bool { return c.Status().State == runtimeapi.ContainerState_CONTAINER_EXITED })
	h.Write(h.log+".exited", "")
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s := c.Status(); s.ExitCode != 0 || s.Reason != "Completed" {
		t.Errorf("exit code %d, reason %s", s.ExitCode, s.Reason)
	}
	h.Eventually(harness.Timeout, "poststop hook", func() bool { return slices.Equal(h.said("poststop"), []string{"after"}) })
}

// A hook that takes longer than its timeout ends with all that it started.
func TestHookTimeout(t *testing.T) {
	harness.Native(t, "timeouts of hooks are the runtime's own")
	h := startHooked(t)
	pod := h.RunPod(h.Pod("slow"))
	for _, stage := range []string{"createRuntime", "createContainer"} {
		os.Remove(h.log)
		h.hook("slow", stage, "sleep 5000 & say $!; wait", 1)
		c := pod.Create(h.Sleeper(stage, annotated))
		if err := c.TryStart(); !contains(err, "did not end within 1s") {
			t.Errorf("%s: %v", stage, err)
		}
		c.Remove()
	}
}

// A daemon that is killed while a hook runs leaves nothing: the container is as it was before its start, and can be started.
func TestKilledInHook(t *testing.T) {
	harness.Native(t, "another runtime runs its hooks itself")
	h := startHooked(t)
	pod := h.RunPod(h.Pod("killed"))
	for _, stage := range []string{"createRuntime", "createContainer"} {
		os.Remove(h.log)
		h.hook("block", stage, "say ran; sleep 5000", 0)
		c := pod.Create(h.Sleeper(stage, annotated))
		done := make(chan error)
		go func() { done <- c.TryStart() }()
		h.Eventually(10*time.Second, "hook", func() bool { return len(h.said(stage)) > 0 })
		h.Kill()
		if err := <-done; err == nil {
			t.Errorf("%s: a start succeeded that was cut short", stage)
		}
		os.Remove(filepath.Join(h.folder, "block.json"))
		h.hook("block", stage, "say ran", 0)
		h.Daemon.Start()
		// What the container's spec says was fixed when it was created: the same program, which now returns.
		h.Eventually(10*time.Second, "container that was not started", func() bool {
			return c.Status().State == runtimeapi.ContainerState_CONTAINER_CREATED
		})
		c.Start()
		c.WaitOutput("up")
		c.Remove()
	}
}

// A daemon that is killed while a poststart hook runs has the next one end it. The container runs on.
func TestKilledInPoststartHook(t *testing.T) {
	harness.Native(t, "another runtime runs its hooks itself")
	h := startHooked(t)
	h.hook("late", "poststart", "say $$; sleep 5000", 60)
	c := h.RunPod(h.Pod("killed-late")).Create(h.Sleeper("c", annotated))
	done := make(chan error)
	go func() { done <- c.TryStart() }()
	h.Eventually(harness.Timeout, "hook", func() bool { return len(h.said("poststart")) > 0 })
	pid := c.PID()
	h.Kill()
	<-done
	hook, err := strconv.Atoi(h.said("poststart")[0])
	if err != nil {
		t.Fatal(err)
	}
	h.Daemon.Start()
	h.Eventually(harness.Timeout, "end of the hook", func() bool { return !lives(hook) })
	if s := c.Status(); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || c.PID() != pid {
		t.Errorf("the container is %v, process %d, before %d", s.State, c.PID(), pid)
	}
}

// A daemon that is killed while a poststop hook runs has the next one run it again, in its time, and take away what was there for it. Nobody waits
// for that.
func TestKilledInPoststopHook(t *testing.T) {
	harness.Native(t, "another runtime runs its hooks itself")
	h := startHooked(t)
	h.hook("stop", "poststop", "say ran; sleep 5000", 60)
	pod := h.RunPod(h.Pod("killed-late"))
	c := pod.Run(h.Sleeper("c", annotated))
	c.Stop(10 * time.Second)
	h.Eventually(10*time.Second, "hook", func() bool { return len(h.said("poststop")) == 1 })
	h.Kill()
	let := filepath.Join(h.folder, "let")
	h.hook("stop", "poststop", "say again; while ! [ -e "+let+" ]; do sleep 0.05; done; say ended", 0)
	h.Daemon.Start()
	h.Eventually(20*time.Second, "hook once more", func() bool { return slices.Contains(h.said("poststop"), "again") })
	pod.Run(h.Sleeper("other"))
	h.Write(let, "")
	h.Eventually(20*time.Second, "end of the hook", func() bool { return slices.Contains(h.said("poststop"), "ended") })
	bundle := filepath.Join(h.Dir, "s", "pods", pod.ID, c.ID)
	h.Eventually(20*time.Second, "end of the bundle", func() bool {
		_, err := os.Stat(bundle)
		return os.IsNotExist(err)
	})
	c.Remove()
	pod.Remove()
}

// A file that is no hook refuses containers, and nothing is made.
func TestBadHookFile(t *testing.T) {
	h := startHooked(t)
	pod := h.RunPod(h.Pod("bad"))
	h.Write(filepath.Join(h.folder, "broken.json"), "{")
	unchanged(h.Daemon, func() {
		_, err := pod.TryCreate(h.Sleeper("c"))
		refused(t, "broken hook", err, codes.Internal, filepath.Join(h.folder, "broken.json"))
	})
	os.Remove(filepath.Join(h.folder, "broken.json"))
	pod.Run(h.Sleeper("c"))
}

// Hooks do not depend on what else a container is.
func TestHooksOfContainersOfAllKinds(t *testing.T) {
	h := startHooked(t)
	h.hook("a", "createRuntime", "say ran", 20)
	h.hook("b", "createContainer", "say ran; cat > /dev/null; cd $(dirname $0); [ -n \"$(ls)\" ]", 20)
	h.describe("c", "startContainer", "/bin/true", 20)
	dir := folder(t, h.Daemon, "shared")
	if err := errors.Join(unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"), unix.Mount("", dir, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	pod := h.RunPod(h.Pod("kinds"))
	shared := h.RunPod(h.Pod("one-pid", harness.Namespaces(runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD)))
	strong := h.RunPod(h.Pod("strong", harness.Privileged))
	for _, tc := range []struct {
		name string
		pod  *harness.Pod
		with harness.ContainerOption
	}{
		{"read-only", pod, harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })},
		{"terminal", pod, func(c *runtimeapi.ContainerConfig) { c.Tty, c.Stdin = true, true }},
		{"masked", pod, harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.MaskedPaths, s.ReadonlyPaths = []string{"/etc", "/proc/keys"}, []string{"/tmp"}
		})},
		{"volume", pod, bind(dir, "/vol", propagation(runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER))},
		{"shared volume", strong, func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Privileged = true
			bind(dir, "/vol", propagation(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL))(c)
		}},
		{"shared pid namespace", shared, harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
		})},
		{"privileged", strong, harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })},
	} {
		os.Remove(h.log)
		name := strings.ReplaceAll(tc.name, " ", "-")
		c := tc.pod.Run(h.Container(name, []string{"sleep", "1000"}, annotated, tc.with))
		if len(h.said("createRuntime")) != 1 || len(h.said("createContainer")) != 1 {
			t.Errorf("%s: hooks did not run", tc.name)
		}
		if got := c.Sh("ls /bin/sh"); !strings.HasPrefix(got, "/bin/sh") {
			t.Errorf("%s: %q", tc.name, got)
		}
		if got := c.Sh("cat /proc/1/comm"); tc.pod == shared && got != "pod-init" {
			t.Errorf("%s: an exec's first process is %q", tc.name, got)
		}
		c.Stop(0)
		c.Remove()
	}
}

// A pod is stopped while a hook of one of its containers runs: the hook and the start end.
func TestStopPodWhileHookRuns(t *testing.T) {
	harness.Native(t, "another runtime runs its hooks itself")
	h := startHooked(t)
	for _, stage := range []string{"createRuntime", "createContainer", "poststart"} {
		os.Remove(h.log)
		h.hook("block", stage, "say ran; sleep 5000", 100)
		h.hook("block2", stage, "sleep 5000", 100)
		pod := h.RunPod(h.Pod(stage))
		c := pod.Create(h.Sleeper("c", annotated))
		done := make(chan error)
		go func() { done <- c.TryStart() }()
		h.Eventually(10*time.Second, "hook", func() bool { return len(h.said(stage)) > 0 })
		pod.Stop()
		if err := <-done; err == nil {
			t.Errorf("%s: the start succeeded", stage)
		}
		if s := c.Status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("%s: state %v", stage, s.State)
		}
		pod.Remove()
	}
}
