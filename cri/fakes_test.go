package cri

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/netns"
)

// fakeSandboxes is Pods and Containers in memory. A test may make any method fail, or panic, by its name.
type fakeSandboxes struct {
	mu         sync.Mutex
	pods       []sandbox.Pod
	containers []sandbox.Container
	creates    []sandbox.CreateRequest
	creating   func(sandbox.CreateRequest) // may be nil
	fail       map[string]error
	panics     map[string]bool
	calls      []string
	timeout    time.Duration
	exec       sandbox.ExecResult
	interfaces []netns.Interface
	resources  *runtimeapi.LinuxContainerResources
	updates    []*runtimeapi.LinuxContainerResources
	events     chan sandbox.Event
	looked     time.Time // when a sandbox was last looked up
}

func (f *fakeSandboxes) call(method, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, method+" "+id)
	if f.panics[method] {
		panic("the fake panics in " + method)
	}
	return f.fail[method]
}

func (f *fakeSandboxes) RunPod(_ context.Context, c *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if err := f.call("RunPod", handler); err != nil {
		return "", err
	}
	id := strings.Repeat("a", 64)
	f.pods = append(f.pods, sandbox.Pod{ID: id, Config: c, Handler: handler, State: sandbox.PodReady, CreatedAt: time.Now()})
	return id, nil
}

func (f *fakeSandboxes) StopPod(_ context.Context, id string) error   { return f.call("StopPod", id) }
func (f *fakeSandboxes) RemovePod(_ context.Context, id string) error { return f.call("RemovePod", id) }

func (f *fakeSandboxes) Pod(id string) (sandbox.Pod, error) {
	f.mu.Lock()
	f.looked = time.Now()
	f.mu.Unlock()
	for _, p := range f.pods {
		if strings.HasPrefix(p.ID, id) {
			return p, nil
		}
	}
	return sandbox.Pod{}, fmt.Errorf("sandbox %s: %w", id, sandbox.ErrNotFound)
}

func (f *fakeSandboxes) CheckNetwork(context.Context, string) error { return f.fail["CheckNetwork"] }

func (f *fakeSandboxes) Pods() []sandbox.Pod { return append([]sandbox.Pod(nil), f.pods...) }

func (f *fakeSandboxes) CreateContainer(_ context.Context, r sandbox.CreateRequest) (string, error) {
	if err := f.call("CreateContainer", r.SandboxID); err != nil {
		return "", err
	}
	if f.creating != nil {
		f.creating(r)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.creates = append(f.creates, r)
	return strings.Repeat("c", 64), nil
}

func (f *fakeSandboxes) StartContainer(_ context.Context, id string) error {
	return f.call("StartContainer", id)
}

func (f *fakeSandboxes) StopContainer(_ context.Context, id string, timeout time.Duration) error {
	f.timeout = timeout
	return f.call("StopContainer", id)
}

func (f *fakeSandboxes) RemoveContainer(_ context.Context, id string) error {
	return f.call("RemoveContainer", id)
}

func (f *fakeSandboxes) ReopenLog(_ context.Context, id string) error { return f.call("ReopenLog", id) }

func (f *fakeSandboxes) ExecSync(ctx context.Context, id string, _ []string, timeout time.Duration) (sandbox.ExecResult, error) {
	f.timeout = timeout
	if err := f.call("ExecSync", id); err != nil {
		return sandbox.ExecResult{}, err
	}
	return f.exec, nil
}

func (f *fakeSandboxes) Container(id string) (sandbox.Container, error) {
	for _, c := range f.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return sandbox.Container{}, fmt.Errorf("container %s: %w", id, sandbox.ErrNotFound)
}

func (f *fakeSandboxes) Containers() []sandbox.Container {
	return append([]sandbox.Container(nil), f.containers...)
}

// fakeImages is Images in memory.
type fakeImages struct {
	images []imageservice.Image
	files  map[string]string // by path, for all images, or by reference and path
	pulls  []imageservice.Progress
	fail   map[string]error
	auth   imageservice.Auth
	// Pull closes entered, if there is one, and waits for block, if there is one.
	entered, block chan struct{}
}

func (f *fakeImages) Pull(ctx context.Context, reference string, auth imageservice.Auth, _ func(imageservice.Progress)) (string, error) {
	f.auth = auth
	if f.entered != nil {
		close(f.entered)
	}
	if f.block != nil {
		select {
		case <-f.block:
		case <-ctx.Done():
			return "", fmt.Errorf("pull %s: %w: %w", reference, imageservice.ErrRegistryUnavailable, ctx.Err())
		}
	}
	if err := f.fail["Pull"]; err != nil {
		return "", err
	}
	return "sha256:" + strings.Repeat("1", 64), nil
}

func (f *fakeImages) Image(reference string) (imageservice.Image, error) {
	if err := f.fail["Image"]; err != nil {
		return imageservice.Image{}, err
	}
	for _, i := range f.images {
		for _, name := range append(append([]string{i.ID}, i.RepoTags...), i.RepoDigests...) {
			if name == reference {
				return i, nil
			}
		}
	}
	return imageservice.Image{}, fmt.Errorf("image %s: %w", reference, imageservice.ErrNotFound)
}

func (f *fakeImages) Images() []imageservice.Image               { return f.images }
func (f *fakeImages) Remove(_ context.Context, ref string) error { return f.fail["Remove"] }
func (f *fakeImages) Pulls(reference string) []imageservice.Progress {
	return slices.DeleteFunc(slices.Clone(f.pulls), func(p imageservice.Progress) bool { return reference != "" && p.Ref != reference })
}

func (f *fakeImages) ReadFile(_ context.Context, imageID, path string, max int64) ([]byte, error) {
	if err := f.fail["ReadFile"]; err != nil {
		return nil, err
	}
	s, ok := f.files[imageID+"/"+path]
	if !ok {
		s, ok = f.files[path]
	}
	if ok {
		if int64(len(s)) > max {
			return nil, fmt.Errorf("read %s: more than %d bytes", path, max)
		}
		return []byte(s), nil
	}
	return nil, fmt.Errorf("read %s: %w", path, fs.ErrNotExist)
}

func (f *fakeImages) CheckVolume(_ context.Context, _, path string) error {
	if err := f.fail["CheckVolume"]; err != nil {
		return err
	}
	if _, ok := f.files[path]; !ok {
		return fs.ErrNotExist
	}
	return nil
}

func (f *fakeImages) FsUsage(context.Context) (images, containers imageservice.FsUsage, err error) {
	return imageservice.FsUsage{Bytes: 10, Inodes: 2, Mountpoint: "/i"}, imageservice.FsUsage{Bytes: 3, Inodes: 1, Mountpoint: "/c"}, f.fail["FsUsage"]
}

// fakeNetwork is ready when err is nil.
type fakeNetwork struct {
	err      error
	warnings []Warning
	ranges   []netip.Prefix
}

func (f *fakeNetwork) Warnings(context.Context) []Warning { return f.warnings }

func (f *fakeNetwork) SetPodRanges(_ context.Context, ranges []netip.Prefix) (string, error) {
	f.ranges = ranges
	return "none", f.err
}

func (f *fakeNetwork) Status(context.Context) error { return f.err }

// world is a server over a real socket, and what is behind it.
type world struct {
	sandboxes *fakeSandboxes
	images    *fakeImages
	network   *fakeNetwork
	streaming *fakeStreaming
	server    *Server
	socket    string
	conn      *grpc.ClientConn
	runtime   runtimeapi.RuntimeServiceClient
	image     runtimeapi.ImageServiceClient
}

func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{
		sandboxes: &fakeSandboxes{fail: map[string]error{}, panics: map[string]bool{}},
		images:    &fakeImages{fail: map[string]error{}, files: map[string]string{}},
		network:   &fakeNetwork{}, streaming: &fakeStreaming{}, socket: filepath.Join(t.TempDir(), "s"),
	}
	l, err := Listen(t.Context(), w.socket)
	if err != nil {
		t.Fatal(err)
	}
	config := Config{
		Pods: w.sandboxes, Containers: w.sandboxes, Images: w.images, Network: w.network, Stats: w.sandboxes, Limits: w.sandboxes, Layers: w.sandboxes, Events: w.sandboxes,
		Streaming: w.streaming,
		Handlers:  []Handler{{Name: ""}, {Name: "berth"}},
		Version:   "0.0.1-test", CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS, Facts: func() map[string]string { return map[string]string{"root": "/r"} }, Logger: klog.Background(),
	}
	for _, c := range change {
		c(&config)
	}
	w.server = NewServer(config)
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.conn.Close()
		w.server.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	w.conn, err = grpc.NewClient("unix:"+w.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.MaxCallSendMsgSize(200<<20)))
	if err != nil {
		t.Fatal(err)
	}
	w.runtime, w.image = runtimeapi.NewRuntimeServiceClient(w.conn), runtimeapi.NewImageServiceClient(w.conn)
	return w
}

// dial opens a bare connection.
func (w *world) dial(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", w.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func podConfig() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u"}}
}

func containerConfig(image string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: image},
	}
}

func (f *fakeSandboxes) ContainerStats(id string) (sandbox.Stats, error) {
	if err := f.call("ContainerStats", id); err != nil {
		return sandbox.Stats{}, err
	}
	c, err := f.Container(id)
	if err != nil {
		return sandbox.Stats{}, err
	}
	s := sandbox.Stats{Stats: cgroup.Stats{At: time.Unix(9, 0), Memory: cgroup.Memory{Limit: sandbox.Unlimited}}}
	if c.State != sandbox.ContainerRunning {
		return s, nil
	}
	s.CPU, s.NanoCores, s.Sampled = 5, 7, true
	s.Memory = cgroup.Memory{Usage: 100, WorkingSet: 60, RSS: 40, Limit: 1000, Faults: 3, MajorFaults: 1}
	s.Swap = cgroup.Swap{Counted: true, Usage: 10, Limit: 30}
	s.Pressure.CPU = &cgroup.PSI{Some: cgroup.Stall{Total: time.Microsecond, Avg10: 1.5}, Full: cgroup.Stall{Total: 2}}
	return s, nil
}

func (f *fakeSandboxes) PodStats(id string) (sandbox.PodStats, error) {
	if err := f.call("PodStats", id); err != nil {
		return sandbox.PodStats{}, err
	}
	p, err := f.Pod(id)
	if err != nil || p.State != sandbox.PodReady {
		return sandbox.PodStats{}, err
	}
	s := sandbox.Stats{Stats: cgroup.Stats{At: time.Unix(9, 0), CPU: 50, Memory: cgroup.Memory{Usage: 200, Limit: sandbox.Unlimited}}}
	s.Pressure.IO = &cgroup.PSI{}
	return sandbox.PodStats{Stats: s, Measured: true, Cgroup: "/pod", Processes: 4, Interfaces: f.interfaces}, nil
}

func (f *fakeSandboxes) ContainerDetails(id string) (sandbox.Details, error) {
	if err := f.call("ContainerDetails", id); err != nil {
		return sandbox.Details{}, err
	}
	d := sandbox.Details{Cgroup: "/kubepods/" + id, Descriptors: 12, Sockets: 3, OpenFiles: 1024}
	d.User, d.System, d.MaxThreads, d.Processes = 2*time.Second, time.Second, sandbox.Unlimited, 2
	d.Devices = []sandbox.DeviceIO{{DeviceIO: cgroup.DeviceIO{Major: 254, ReadBytes: 100, Writes: 7}, Name: "/dev/vda"}}
	d.Hugepages = []sandbox.HugepageUsage{{Size: "2MB", Usage: 4}}
	return d, nil
}

func (f *fakeSandboxes) UpdateContainer(_ context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	f.updates = append(f.updates, r)
	return f.call("UpdateContainer", id)
}

func (f *fakeSandboxes) UpdatePod(_ context.Context, id string, overhead, r *runtimeapi.LinuxContainerResources) error {
	f.updates = append(f.updates, overhead, r)
	return f.call("UpdatePod", id)
}

// Events sends what is in the channel; when it is closed, the method's error.
func (f *fakeSandboxes) Events(ctx context.Context, ready func() error, each func(sandbox.Event) error) error {
	if err := ready(); err != nil {
		return err
	}
	for {
		select {
		case e, ok := <-f.events:
			if !ok {
				return f.fail["Events"]
			}
			if err := each(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *fakeSandboxes) Resources(id string) (*runtimeapi.LinuxContainerResources, error) {
	if err := f.call("Resources", id); err != nil {
		return nil, err
	}
	return f.resources, nil
}

func (f *fakeSandboxes) Filesystem() (imageservice.Filesystem, error) {
	return imageservice.Filesystem{Device: "/dev/vda", Bytes: 1 << 40, Inodes: 100, InodesFree: 50}, f.call("Filesystem", "")
}

func (f *fakeSandboxes) LayerUsage(_ context.Context, id string) (imageservice.LayerUsage, bool) {
	return imageservice.LayerUsage{FsUsage: imageservice.FsUsage{Bytes: 4096, Inodes: 1, Mountpoint: "/images"}, At: time.Unix(8, 0)}, id != "c3"
}

// fakeStreaming hands out URLs that say what they are for.
type fakeStreaming struct {
	err     error
	process streaming.Process
	ports   []uint16
}

func (f *fakeStreaming) Exec(p streaming.Process) (string, error) {
	f.process = p
	return "http://exec/" + p.ContainerID, f.err
}

func (f *fakeStreaming) Attach(p streaming.Process) (string, error) {
	f.process = p
	return "http://attach/" + p.ContainerID, f.err
}

func (f *fakeStreaming) PortForward(sandboxID string, ports []uint16) (string, error) {
	f.ports = ports
	return "http://forward/" + sandboxID, f.err
}
