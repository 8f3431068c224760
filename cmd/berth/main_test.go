package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// daemon is a CRI that says what a test wants.
type daemon struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	mu         sync.Mutex
	ready      bool
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.ContainerStatus
	podOf      map[string]string
	images     []*runtimeapi.Image
	progress   []string
	lastPull   string
	pullErr    error
	pullWait   chan struct{}
	auth       *runtimeapi.AuthConfig
}

func (d *daemon) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "berth", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}, nil
}

func (d *daemon) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: d.ready, Reason: "NetworkPluginNotReady", Message: "no bridge"},
		}},
		RuntimeHandlers: []*runtimeapi.RuntimeHandler{{Name: ""}, {Name: "berth"}},
		Info:            map[string]string{"config": `{"root":"/r","state":"/s"}`, "pulls": `[{"ref":"r/x:1","state":"downloading","layers":[{"bytes":5,"size":20},{"state":"exists","size":10}]}]`},
	}, nil
}

func (d *daemon) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: runtimeapi.CgroupDriver_CGROUPFS}}, nil
}

func (d *daemon) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: d.pods}, nil
}

func (d *daemon) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	if strings.HasPrefix(r.GetPodSandboxId(), "gone") {
		return nil, status.Error(codes.NotFound, "gone")
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.1", AdditionalIps: []*runtimeapi.PodIP{{Ip: "fd00::1"}}},
	}}, nil
}

func (d *daemon) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	answer := &runtimeapi.ListContainersResponse{}
	for _, c := range d.containers {
		if r.GetFilter().GetState() == nil || r.GetFilter().GetState().GetState() == c.GetState() {
			answer.Containers = append(answer.Containers, &runtimeapi.Container{
				Id: c.GetId(), PodSandboxId: d.podOf[c.GetId()], Metadata: c.GetMetadata(), State: c.GetState(),
			})
		}
	}
	return answer, nil
}

func (d *daemon) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	for _, c := range d.containers {
		if c.GetId() == r.GetContainerId() {
			return &runtimeapi.ContainerStatusResponse{Status: c}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "gone")
}

func (d *daemon) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: d.images}, nil
}

func (d *daemon) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	d.mu.Lock()
	d.auth = r.GetAuth()
	d.mu.Unlock()
	if d.pullWait != nil {
		select {
		case <-d.pullWait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &runtimeapi.PullImageResponse{ImageRef: "sha256:" + strings.Repeat("1", 64)}, d.pullErr
}

func (d *daemon) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	answer := &runtimeapi.ImageStatusResponse{}
	for _, i := range d.images {
		if i.GetId() == r.GetImage().GetImage() {
			answer.Image = i
		}
	}
	if r.GetVerbose() && d.lastPull != "" {
		answer.Info = map[string]string{"lastPull": d.lastPull}
	}
	if r.GetVerbose() && len(d.progress) > 0 {
		answer.Info = map[string]string{"pull": d.progress[0]}
		if d.progress = d.progress[1:]; len(d.progress) == 0 && d.pullWait != nil {
			close(d.pullWait)
		}
	}
	return answer, nil
}

// start serves a daemon and answers with its socket.
func start(t *testing.T, d *daemon) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(g, d)
	runtimeapi.RegisterImageServiceServer(g, d)
	go g.Serve(l) //nolint:errcheck // ends with Stop
	t.Cleanup(g.Stop)
	return socket
}

// berth runs the program.
func berth(t *testing.T, socket string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), append([]string{"--socket", socket}, args...), &out, &err)
	return code, out.String(), err.String()
}

func pod(id, name, namespace string) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: namespace, Uid: "u", Attempt: 1},
		CreatedAt: time.Now().Add(-3 * time.Minute).UnixNano(),
	}
}

func container(id, name string, state runtimeapi.ContainerState) *runtimeapi.ContainerStatus {
	return &runtimeapi.ContainerStatus{
		Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: name}, State: state, Image: &runtimeapi.ImageSpec{Image: "r/x:1"},
		CreatedAt: time.Now().Add(-time.Minute).UnixNano(),
	}
}

func TestStatusOfAReadyDaemon(t *testing.T) {
	socket := start(t, &daemon{ready: true, pods: []*runtimeapi.PodSandbox{pod("p", "n", "ns")}})
	code, out, _ := berth(t, socket, "status")
	for _, want := range []string{"Runtime         berth", "Version         1.2.3", "NetworkReady    yes", "Root            /r", "Pods            1", "Cgroup driver   CGROUPFS",
		"Pull            r/x:1, downloading, 15 B of 30 B"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code != 0 {
		t.Errorf("exit status %d", code)
	}
	_, out, _ = berth(t, socket, "status", "-o", "json")
	var s daemonStatus
	if err := json.Unmarshal([]byte(out), &s); err != nil || !s.Ready || s.Pods != 1 || len(s.Pulls) != 1 {
		t.Errorf("status = %+v, %v", s, err)
	}
}

func TestStatusOfADaemonThatIsNotReady(t *testing.T) {
	code, out, stderr := berth(t, start(t, &daemon{}), "status")
	if code != 1 || !strings.Contains(out, "no: NetworkPluginNotReady: no bridge") || !strings.Contains(stderr, "not ready") {
		t.Errorf("exit status %d, %q, %q", code, out, stderr)
	}
}

func TestPods(t *testing.T) {
	d := &daemon{pods: []*runtimeapi.PodSandbox{pod(strings.Repeat("a", 64), "web", "shop"), pod("gone", "x", "y")}}
	socket := start(t, d)
	_, out, _ := berth(t, socket, "pods")
	want := "POD ID         NAME   NAMESPACE   STATE   IP                 ATTEMPT   AGE\naaaaaaaaaaaa   web    shop        Ready   10.0.0.1,fd00::1   1         3m\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	_, out, _ = berth(t, socket, "pods", "-o", "json")
	var rows []podRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 1 || len(rows[0].IPs) != 2 {
		t.Errorf("rows = %+v, %v", rows, err)
	}
	_, out, _ = berth(t, start(t, &daemon{}), "pods", "-o", "json")
	if out != "[]\n" {
		t.Errorf("no pods as JSON = %q", out)
	}
}

func TestPs(t *testing.T) {
	exited := container("c2", "job", runtimeapi.ContainerState_CONTAINER_EXITED)
	exited.ExitCode, exited.Reason = 137, "OOMKilled"
	d := &daemon{
		pods: []*runtimeapi.PodSandbox{pod("p1", "web", "shop")}, podOf: map[string]string{"c1": "p1", "c2": "p1"},
		containers: []*runtimeapi.ContainerStatus{container("c1", "nginx", runtimeapi.ContainerState_CONTAINER_RUNNING), exited},
	}
	socket := start(t, d)
	_, out, _ := berth(t, socket, "ps")
	if !strings.Contains(out, "nginx") || strings.Contains(out, "job") {
		t.Errorf("ps shows\n%s", out)
	}
	_, out, _ = berth(t, socket, "ps", "-a")
	if !strings.Contains(out, "Exited (137, OOMKilled)") || !strings.Contains(out, "c1             nginx   web   shop        r/x:1   Running") {
		t.Errorf("ps -a shows\n%s", out)
	}
	_, out, _ = berth(t, socket, "ps", "-a", "-o", "json")
	var rows []containerRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 2 || rows[0].ExitCode != nil || *rows[1].ExitCode != 137 {
		t.Errorf("rows = %+v, %v", rows, err)
	}
}

func TestImages(t *testing.T) {
	id := "sha256:" + strings.Repeat("b", 64)
	d := &daemon{images: []*runtimeapi.Image{
		{Id: id, RepoTags: []string{"r.io:5000/z:1", "r.io/a:2"}, Size: 4_200_000},
		{Id: "sha256:c", RepoDigests: []string{"r.io/m@sha256:d"}, Size: 10},
	}}
	socket := start(t, d)
	_, out, _ := berth(t, socket, "images")
	want := "IMAGE         TAG      IMAGE ID       SIZE\nr.io/a        2        bbbbbbbbbbbb   4.2 MB\n" +
		"r.io/m        <none>   c              10 B\nr.io:5000/z   1        bbbbbbbbbbbb   4.2 MB\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	_, out, _ = berth(t, socket, "images", "--output=json")
	var rows []imageRow
	if err := json.Unmarshal([]byte(out), &rows); err != nil || len(rows) != 2 || rows[1].Tags == nil {
		t.Errorf("rows = %+v, %v", rows, err)
	}
}

func TestPinnedImages(t *testing.T) {
	d := &daemon{images: []*runtimeapi.Image{{Id: "a", RepoTags: []string{"r/a:1"}, Pinned: true}, {Id: "b", RepoDigests: []string{"r/b@sha256:d"}}}}
	_, out, _ := berth(t, start(t, d), "images")
	want := "IMAGE   TAG      IMAGE ID   SIZE   PINNED\nr/a     1        a          0 B    yes\nr/b     <none>   b          0 B    no\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

func TestLogsFindsTheContainerThatIsMeant(t *testing.T) {
	dir := t.TempDir()
	logOf := func(c *runtimeapi.ContainerStatus, text string) *runtimeapi.ContainerStatus {
		c.LogPath = filepath.Join(dir, c.GetId())
		if err := os.WriteFile(c.LogPath, []byte("t stdout F "+text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return c
	}
	running, ended := runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_EXITED
	d := &daemon{
		pods:  []*runtimeapi.PodSandbox{pod("p1", "web", "shop"), pod("p2", "api", "shop")},
		podOf: map[string]string{"aa1": "p1", "aa0": "p1", "bb1": "p2", "cc1": "p2"},
		containers: []*runtimeapi.ContainerStatus{
			logOf(container("aa1", "nginx", running), "second attempt"), logOf(container("aa0", "nginx", ended), "first attempt"),
			logOf(container("bb1", "side", ended), "side of api"), logOf(container("cc1", "nginx", ended), "nginx of api"),
		},
	}
	socket := start(t, d)
	for _, tc := range []struct{ name, want, wantErr string }{
		{"side", "side of api\n", ""},
		{"bb", "side of api\n", ""},
		{"aa0", "first attempt\n", ""},
		{"web/nginx", "second attempt\n", ""},
		{"shop/api/nginx", "nginx of api\n", ""},
		{"nginx", "", "could be any of shop/web/nginx (aa1)"},
		{"aa", "", "could be any of"},
		{"nothing", "", `no container "nothing"`},
	} {
		_, out, stderr := berth(t, socket, "logs", tc.name)
		if out != tc.want || !strings.Contains(stderr, tc.wantErr) {
			t.Errorf("logs %s = %q, %q, want %q, %q", tc.name, out, stderr, tc.want, tc.wantErr)
		}
	}
	if code, out, _ := berth(t, socket, "logs", "-f", "side"); code != 0 || out != "side of api\n" {
		t.Errorf("logs -f of an ended container = %d, %q", code, out)
	}
}

func TestNoDaemon(t *testing.T) {
	code, _, stderr := berth(t, filepath.Join(t.TempDir(), "none"), "ps")
	if code != 1 || !strings.Contains(stderr, "no such file or directory") || !strings.Contains(stderr, "hint: is berthd running?") {
		t.Errorf("exit status %d, %q", code, stderr)
	}
	// What keeps from reaching a daemon says nothing about whether there is one.
	if _, _, stderr = berth(t, "/"+strings.Repeat("s", 200), "ps"); !strings.Contains(stderr, "berthd cannot be reached: invalid argument") {
		t.Errorf("a socket with a long name: %q", stderr)
	}
}

func TestWrongCommandLines(t *testing.T) {
	for _, args := range [][]string{
		{"nothing"}, {"ps", "x"}, {"ps", "--nothing"}, {"logs"}, {"pull"}, {"images", "-o", "yaml"}, {"logs", "a", "b"}, {"completion", "bsh"},
		{"completion", "bash", "x"},
	} {
		code, _, stderr := berth(t, "/nowhere", args...)
		if code != 2 || !strings.Contains(stderr, "hint: berth") {
			t.Errorf("%q: exit status %d, %q", args, code, stderr)
		}
	}
}

func TestEveryCommandHasHelpAndCompletes(t *testing.T) {
	for _, name := range []string{"status", "pull", "images", "pods", "ps", "logs"} {
		code, out, _ := berth(t, "/nowhere", name, "--help")
		if code != 0 || !strings.Contains(out, "Usage:") || !strings.Contains(out, "--socket") || !strings.Contains(out, "Examples:") {
			t.Errorf("%s --help = %d\n%s", name, code, out)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if code, out, _ := berth(t, "/nowhere", "completion", shell); code != 0 || len(out) < 1000 {
			t.Errorf("completion %s = %d, %d bytes", shell, code, len(out))
		}
	}
}
