package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/test/wait"
)

// world is a host as a Manager sees it: real cgroups, mounts, namespaces and processes, with a network, an image store and monitors that
// live as long as the test, whatever becomes of a Manager.
type world struct {
	t        testing.TB
	cfg      Config
	cgroups  *cgroup.Driver
	monitors *cgroup.Group
	network  *fakeNetwork
	rootfs   *fakeRootFS
	logs     string
	end      chan struct{} // closed at the end: what a dead Manager waits for
	callers  sync.WaitGroup

	mu       sync.Mutex
	running  map[string]*fakeMonitor // by socket
	spawnErr error
	helloErr error
	managers []*Manager
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root for namespaces, mounts and cgroups")
	}
	dir := t.TempDir()
	instance := fmt.Sprintf("t%d-%d", os.Getpid(), time.Now().UnixNano())
	driver, err := cgroup.Open(instance)
	if err != nil {
		t.Fatal(err)
	}
	group, err := driver.Monitors()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, cgroups: driver, monitors: group, network: &fakeNetwork{attached: map[string]string{}, fail: map[string]error{}},
		rootfs: &fakeRootFS{keys: map[string]bool{}}, running: map[string]*fakeMonitor{}, end: make(chan struct{}), logs: filepath.Join(dir, "logs")}
	w.cfg = Config{Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Instance: instance, Network: w.network, RootFS: w.rootfs,
		Spawner: w, Dial: w.dial, Cgroups: driver, NetNSFolder: filepath.Join(dir, "netns"), Host: spec.Host{Hostname: "host"}}
	if err := os.MkdirAll(w.logs, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.close)
	return w
}

// fakeRuntime has runc's command line, and makes nothing but its own state: a fakeMonitor makes the processes.
const fakeRuntime = `#!/bin/sh
for last; do :; done
while [ $# -gt 0 ]; do
	case $1 in
	--root) root=$2; shift 2 ;;
	--log | --log-format) shift 2 ;;
	*) break ;;
	esac
done
case $1 in
create) mkdir "$root/$last" ;;
start) test -d "$root/$last" ;;
delete) rm -r "$root/$last" ;;
esac
`

// external gives all sandboxes another runtime by default.
func (w *world) external() *world {
	w.t.Helper()
	program := &external.Program{Path: filepath.Join(w.logs, "runtime"), Root: filepath.Join(w.cfg.State, "runtimes", "fake")}
	if err := os.WriteFile(program.Path, []byte(fakeRuntime), 0o755); err != nil {
		w.t.Fatal(err)
	}
	w.cfg.Handlers = map[string]*external.Program{"": program}
	return w
}

// execute does what a monitor does with a command: its program runs, in its cgroup, and then the process is there.
func execute(command monitor.Command, group *os.File) error {
	for _, args := range [][]string{command.Args, command.Then} {
		if len(args) == 0 {
			continue
		}
		var out []byte
		err := error(unix.ETXTBSY)
		for errors.Is(err, unix.ETXTBSY) { // a process that another test is starting still has what was written open
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = command.Folder
			if group != nil {
				cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
			}
			out, err = cmd.CombinedOutput()
		}
		if err != nil {
			return fmt.Errorf("%q: %w: %s", args, err, out)
		}
	}
	return nil
}

// argumentsOf are those of a container or an exec, from the files that another runtime reads them from.
func argumentsOf(command monitor.Command) ([]string, error) {
	if text, err := os.ReadFile(filepath.Join(command.Folder, "process.json")); err == nil {
		var p specs.Process
		err := json.Unmarshal(text, &p)
		return p.Args, err
	}
	text, err := os.ReadFile(filepath.Join(command.Folder, "config.json"))
	if err != nil {
		return nil, err
	}
	var s specs.Spec
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, err
	}
	return s.Process.Args, nil
}

func (w *world) close() {
	close(w.end)
	for _, m := range w.managers {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		if err := m.Close(ctx); err != nil {
			w.t.Error(err)
		}
		cancel()
	}
	w.callers.Wait()
	w.mu.Lock()
	left := slices.Collect(maps.Values(w.running))
	w.mu.Unlock()
	for _, f := range left {
		f.kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	w.monitors.Close()
	names, _ := w.cgroups.List(w.cgroups.Tree())
	for _, name := range names {
		p := w.cgroups.Tree() + "/" + name
		if err := errors.Join(w.cgroups.Kill(p), w.cgroups.Remove(ctx, p)); err != nil {
			w.t.Error(err)
		}
	}
	for _, mount := range w.mounts() {
		unix.Unmount(mount, unix.MNT_DETACH)
	}
	if err := w.cgroups.Close(); err != nil {
		w.t.Error(err)
	}
}

// mounts lists the mounts below the world's folders.
func (w *world) mounts() []string {
	text, _ := os.ReadFile("/proc/self/mounts")
	var all []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); strings.HasPrefix(f[1], filepath.Dir(w.cfg.Root)+"/") {
			all = append(all, f[1])
		}
	}
	return all
}

// open starts a Manager, as a daemon that starts. fault may be nil.
func (w *world) open(fault func(string) error) *Manager {
	w.t.Helper()
	m, err := open(context.Background(), w.cfg, hooks{fault: fault, readExit: readFakeExit})
	if err != nil {
		w.t.Fatal(err)
	}
	w.managers = append(w.managers, m)
	return m
}

// recovered waits until a Manager has dealt with all that was loaded.
func (w *world) recovered(m *Manager) {
	w.t.Helper()
	for _, p := range m.loaded() {
		select {
		case <-p.recovered:
		case <-time.After(time.Minute):
			w.t.Fatalf("sandbox %s was not recovered", p.id)
		}
	}
}

// empty waits until nothing of the world's is on the host but the monitors' cgroup, and reports what is.
func (w *world) empty() {
	w.t.Helper()
	var left []string
	wait.Until(20*time.Second, 5*time.Millisecond, func() bool {
		left = w.left()
		return len(left) == 0
	})
	for _, item := range left {
		w.t.Errorf("left: %s", item)
	}
}

// sign is what a container's script does once it has come so far; awaitSign waits for it.
func (w *world) sign(name string) string { return ": >" + filepath.Join(w.logs, name) }

func (w *world) awaitSign(t *testing.T, name string) {
	t.Helper()
	waitFor(t, func() bool { _, err := os.Stat(filepath.Join(w.logs, name)); return err == nil })
}

func (w *world) left() []string {
	var left []string
	add := func(kind string, names ...string) {
		for _, name := range names {
			left = append(left, kind+" "+name)
		}
	}
	for kind, folder := range map[string]string{"record": w.cfg.Root + "/pods", "state": w.cfg.State + "/pods", "pin": w.cfg.NetNSFolder,
		"runtime state": w.cfg.State + "/runtimes/fake"} {
		entries, _ := os.ReadDir(folder)
		for _, e := range entries {
			add(kind, e.Name())
		}
	}
	add("mount", w.mounts()...)
	names, _ := w.cgroups.List(w.cgroups.Tree())
	add("cgroup", slices.DeleteFunc(names, func(n string) bool { return n == "monitors" })...)
	pids, _ := w.cgroups.PIDs(w.cgroups.MonitorPath())
	for _, pid := range pids {
		add("monitor", fmt.Sprint(pid))
	}
	add("attachment", w.network.all()...)
	keys, _ := w.rootfs.Keys(context.Background())
	add("layer", keys...)
	return left
}

// fakeNetwork remembers what is attached.
type fakeNetwork struct {
	mu       sync.Mutex
	attached map[string]string // by sandbox: its network namespace
	fail     map[string]error  // by method
	block    chan struct{}     // Add waits for it, when set
	adds     int
	plans    int
	notReady int // as many Plans fail
}

func (n *fakeNetwork) Plan(_ context.Context, r cni.Request) (cni.Attachment, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plans++
	if n.notReady > 0 {
		n.notReady--
		return cni.Attachment{}, fmt.Errorf("the plugin is being installed: %w", cni.ErrNotReady)
	}
	return cni.Attachment{Engine: "bridge", SandboxID: r.SandboxID, NetNS: r.NetNS, IfName: "eth0"}, n.fail["Plan"]
}

func (n *fakeNetwork) Add(ctx context.Context, r cni.Request, a *cni.Attachment) error {
	n.mu.Lock()
	block := n.block
	n.adds++
	n.attached[r.SandboxID] = r.NetNS
	err := n.fail["Add"]
	n.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return ctx.Err() // half-way: Del is needed
		}
	}
	if err != nil {
		return err
	}
	if _, err := os.Stat(r.NetNS); err != nil {
		return fmt.Errorf("the network namespace was not pinned first: %w", err)
	}
	a.IPs = []netip.Prefix{netip.MustParsePrefix("10.1.2.3/16"), netip.MustParsePrefix("fd00::3/64")}
	return nil
}

func (n *fakeNetwork) Del(_ context.Context, a cni.Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.fail["Del"]; err != nil {
		return err
	}
	delete(n.attached, a.SandboxID)
	return nil
}

func (n *fakeNetwork) Status(context.Context) error { return nil }

func (n *fakeNetwork) Check(_ context.Context, a cni.Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attached[a.SandboxID] == "" {
		return cni.ErrNotAttached
	}
	return n.fail["Check"]
}

func (n *fakeNetwork) GC(_ context.Context, valid []cni.Attachment) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.fail["GC"]; err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, a := range valid {
		keep[a.SandboxID] = true
	}
	maps.DeleteFunc(n.attached, func(id, _ string) bool { return !keep[id] })
	return nil
}

func (n *fakeNetwork) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.attached))
}

func (n *fakeNetwork) set(method string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fail[method] = err
}

// fakeRootFS remembers keys.
type fakeRootFS struct {
	mu   sync.Mutex
	keys map[string]bool
	err  error

	unlisted error // Keys fails
	lists    int   // calls of Keys
}

func (r *fakeRootFS) Prepare(_ context.Context, key, _ string, volumes []string) (runtime.Trees, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keys[key] = true
	return runtime.Trees{Root: []runtime.Mount{{Type: "bind", Source: "/", Options: []string{"ro"}}}}, r.err
}

func (r *fakeRootFS) Release(_ context.Context, key string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.keys, key)
	return nil
}

func (r *fakeRootFS) Keys(context.Context) ([]string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lists++
	return slices.Collect(maps.Keys(r.keys)), r.unlisted
}

// fakeMonitor is a sleeping process in namespaces of its own, and the containers that it was told to start: shells in their cgroups.
type fakeMonitor struct {
	w    *world
	pod  monitor.Pod
	pid  int
	dead chan struct{}

	mu         sync.Mutex
	hung       bool
	release    chan struct{} // when set, one that hangs holds its caller up until then, whatever the caller's context
	containers map[string]*fakeContainer
	watchers   map[chan monitor.Exit]bool
	helloErr   error
	hellos     int
	startErr   error
	reopened   int
}

type fakeContainer struct {
	cmd  *exec.Cmd
	pid  int
	done chan struct{}
	exit monitor.Exit
}

// shell waits until it is in all of its cgroups, and then does what the container's arguments say.
func joinScript(dirs []*os.File, script string) string {
	var join strings.Builder
	for _, f := range dirs {
		fmt.Fprintf(&join, "if [ -e %[1]s/tasks ]; then echo 0 >%[1]s/tasks; else echo 0 >%[1]s/cgroup.procs; fi || exit 125\n", f.Name())
	}
	return join.String() + script
}

func (w *world) Spawn(_ context.Context, p monitor.Pod) (*monitor.Process, error) {
	w.mu.Lock()
	err := w.spawnErr
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	pidfd := -1
	attr := &os.ProcAttr{Files: []*os.File{nil, nil, os.Stderr}, Sys: &syscall.SysProcAttr{PidFD: &pidfd}}
	if p.NewNet {
		attr.Sys.Cloneflags |= unix.CLONE_NEWNET
	}
	if !w.cgroups.V2() {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(w.monitors.Dirs[0].Fd())
	}
	process, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, attr)
	if err != nil {
		return nil, err
	}
	pid := process.Pid
	started, _, err := processStat(pid)
	if err != nil {
		return nil, err
	}
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	process.Release()
	f := &fakeMonitor{w: w, pod: p, pid: pid, dead: make(chan struct{}), containers: map[string]*fakeContainer{}, watchers: map[chan monitor.Exit]bool{}}
	w.mu.Lock()
	f.helloErr = w.helloErr
	w.running[p.Socket] = f
	w.mu.Unlock()
	if err := os.WriteFile(p.Socket, nil, 0o600); err != nil {
		return nil, err
	}
	go func() {
		for {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(own), Events: unix.POLLIN}}, -1)
			if n == 1 {
				break
			}
		}
		unix.Waitid(unix.P_PIDFD, own, nil, unix.WEXITED|unix.WNOHANG, nil)
		unix.Close(own)
		close(f.dead)
	}()
	return &monitor.Process{PID: pid, PIDFD: os.NewFile(uintptr(pidfd), "pidfd"), StartTime: started}, nil
}

func (w *world) dial(socket string) Monitor { return &fakeClient{w: w, socket: socket} }

// monitorOf is the monitor of a sandbox.
func (w *world) monitorOf(sandboxID string) *fakeMonitor {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[filepath.Join(w.cfg.State, "pods", sandboxID, "monitor.sock")]
}

// kill ends the monitor by force; its containers live on.
func (f *fakeMonitor) kill() {
	unix.Kill(f.pid, unix.SIGKILL)
	<-f.dead
}

// fakeClient is a connection to a fakeMonitor.
type fakeClient struct {
	w      *world
	socket string
}

// reach finds the monitor, and answers never when it hangs.
func (c *fakeClient) reach(ctx context.Context) (*fakeMonitor, error) {
	c.w.mu.Lock()
	f := c.w.running[c.socket]
	c.w.mu.Unlock()
	if f == nil {
		return nil, unix.ENOENT
	}
	select {
	case <-f.dead:
		return nil, unix.ECONNREFUSED
	default:
	}
	f.mu.Lock()
	hung, release := f.hung, f.release
	f.mu.Unlock()
	if hung {
		select {
		case <-ctx.Done():
			if release != nil {
				<-release
			}
			return nil, ctx.Err()
		case <-f.dead:
			return nil, unix.ECONNRESET
		}
	}
	return f, nil
}

func (c *fakeClient) Hello(ctx context.Context) (monitor.Hello, error) {
	f, err := c.reach(ctx)
	if err != nil {
		return monitor.Hello{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hellos++
	h := monitor.Hello{PID: f.pid}
	for id, k := range f.containers {
		state := monitor.ContainerState{ID: id, PID: k.pid, Running: true}
		select {
		case <-k.done:
			state.Running, state.ExitCode, state.FinishedAt = false, k.exit.ExitCode, k.exit.FinishedAt
		default:
		}
		h.Containers = append(h.Containers, state)
	}
	return h, f.helloErr
}

func (c *fakeClient) Start(ctx context.Context, r monitor.StartRequest) (int, error) {
	f, err := c.reach(ctx)
	if err != nil {
		return 0, err
	}
	args := r.Plan.Process.Args
	if len(r.Command.Args) > 0 {
		if args, err = argumentsOf(r.Command); err == nil {
			err = execute(r.Command, r.RuntimeGroup)
		}
		if err != nil {
			return 0, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.startErr != nil {
		return 0, f.startErr
	}
	cmd := exec.Command("sh", "-c", joinScript(r.Cgroups, "echo; exec 1>&-; "+strings.Join(args, " ")))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	if n, _ := out.Read(make([]byte, 1)); n != 1 {
		return 0, fmt.Errorf("could not join the cgroups: %w", cmd.Wait())
	}
	k := &fakeContainer{cmd: cmd, pid: cmd.Process.Pid, done: make(chan struct{})}
	f.containers[r.ContainerID] = k
	go func() {
		cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		code := status.ExitStatus()
		if status.Signaled() {
			code = 128 + int(status.Signal())
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		k.exit = monitor.Exit{ContainerID: r.ContainerID, PID: k.pid, ExitCode: int32(code), FinishedAt: now()}
		close(k.done)
		select {
		case <-f.dead:
			return // a dead monitor tells nothing
		default:
		}
		text, _ := json.Marshal(k.exit)
		os.WriteFile(filepath.Join(f.pod.RecordDir, r.ContainerID, "exit"), text, 0o600)
		for watcher := range f.watchers {
			watcher <- k.exit
		}
	}()
	return k.pid, nil
}

func readFakeExit(path string) (monitor.Exit, error) {
	var e monitor.Exit
	text, err := os.ReadFile(path)
	if err != nil {
		return e, err
	}
	return e, json.Unmarshal(text, &e)
}

func (c *fakeClient) Signal(ctx context.Context, id string, sig unix.Signal) error {
	f, err := c.reach(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if k := f.containers[id]; k != nil {
		return unix.Kill(k.pid, sig)
	}
	return unix.ESRCH
}

func (c *fakeClient) ReopenLog(ctx context.Context, id string) error {
	f, err := c.reach(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reopened++
	return nil
}

func (c *fakeClient) Exec(ctx context.Context, r monitor.ExecRequest) (monitor.ExitStatus, error) {
	if _, err := c.reach(ctx); err != nil {
		return monitor.ExitStatus{}, err
	}
	args := r.Process.Args
	if len(r.Command.Args) > 0 {
		var err error
		if args, err = argumentsOf(r.Command); err == nil {
			err = execute(r.Command, r.RuntimeGroup)
		}
		if err != nil {
			return monitor.ExitStatus{}, err
		}
	}
	if args[0] == "missing" {
		return monitor.ExitStatus{}, &engine.Error{Step: engine.StepExec, Path: "missing", Errno: unix.ENOENT}
	}
	cmd := exec.Command("sh", "-c", joinScript(r.Cgroups, strings.Join(args, " ")))
	if r.Stdin != nil {
		cmd.Stdin = r.Stdin
	}
	if r.Stdout != nil {
		cmd.Stdout = r.Stdout
	}
	if r.Stderr != nil {
		cmd.Stderr = r.Stderr
	}
	if err := cmd.Start(); err != nil {
		return monitor.ExitStatus{}, err
	}
	r.Started(nil)
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
		return monitor.ExitStatus{ExitCode: int32(cmd.ProcessState.ExitCode())}, nil
	case <-ctx.Done():
		return monitor.ExitStatus{}, ctx.Err()
	}
}

// Attach gives no output: the fake's containers have none.
func (c *fakeClient) Attach(ctx context.Context, r monitor.AttachRequest) error {
	f, err := c.reach(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	k := f.containers[r.ContainerID]
	f.mu.Unlock()
	if k == nil {
		return monitor.ErrNotFound
	}
	r.Started(nil)
	select {
	case <-k.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *fakeClient) CloseStdin(context.Context, string) error { return nil }

func (c *fakeClient) Dial(context.Context, uint16) (*os.File, error) { return nil, unix.ECONNREFUSED }

func (c *fakeClient) Watch(ctx context.Context, exited func(monitor.Exit)) error {
	f, err := c.reach(ctx)
	if err != nil {
		return err
	}
	watcher := make(chan monitor.Exit, 1000)
	f.mu.Lock()
	for _, k := range f.containers {
		select {
		case <-k.done:
			watcher <- k.exit
		default:
		}
	}
	f.watchers[watcher] = true
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, watcher)
	}()
	for {
		select {
		case e := <-watcher:
			exited(e)
		case <-f.dead:
			return unix.ECONNRESET
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *fakeClient) Forget(ctx context.Context, id string) error {
	f, err := c.reach(ctx)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.containers, id)
	return nil
}

func (c *fakeClient) Shutdown(ctx context.Context) error {
	f, err := c.reach(ctx)
	if err != nil {
		return err
	}
	f.kill()
	return nil
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "ns", Uid: "uid-" + name}, Hostname: name}
}

func containerConfig(name string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "image"}, Command: command}
}

func createRequest(sandboxID, name string, command ...string) CreateRequest {
	return CreateRequest{SandboxID: sandboxID, Config: containerConfig(name, command...), ImageID: "sha256:1", ImageRef: "sha256:1"}
}
