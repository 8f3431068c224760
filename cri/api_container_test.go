package cri

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/sandbox"
)

const imageID = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func TestCreateContainerComposesImageAndSandbox(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "aa1", Config: podConfig()}}
	w.images.images = []imageservice.Image{{ID: imageID, RepoTags: []string{"r/x:1"}, Config: imageservice.ImageConfig{
		User: "app", WorkingDir: "/w", Env: []string{"A=1"}, Entrypoint: []string{"/e"}, Cmd: []string{"c"}, StopSignal: "SIGINT", Volumes: []string{"/v"},
	}}}
	w.images.files["etc/passwd"] = "app:x:1:1::/:\n"
	answer, err := w.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: "aa", Config: containerConfig("r/x:1"), SandboxConfig: podConfig(),
	})
	if err != nil || len(answer.GetContainerId()) != 64 {
		t.Fatalf("CreateContainer = %v, %v", answer, err)
	}
	r := w.sandboxes.creates[0]
	if r.SandboxID != "aa1" || r.ImageID != imageID || r.ImageRef != imageID {
		t.Errorf("request = %+v", r)
	}
	i := r.Image
	if i.User != "app" || i.WorkingDir != "/w" || i.StopSignal != "SIGINT" || i.Env[0] != "A=1" || i.Entrypoint[0] != "/e" ||
		i.Cmd[0] != "c" || i.Volumes[0] != "/v" || string(i.Passwd) != "app:x:1:1::/:\n" || i.Group != nil {
		t.Errorf("image = %+v", i)
	}
	i.Env[0] = "changed"
	if w.images.images[0].Config.Env[0] != "A=1" {
		t.Error("a container shares its image's environment (threat B13)")
	}
}

// TestBigUserFilesWaitForEachOther: many containers of an image with a huge passwd do not take much memory at once, and hold up no others (threat B11).
func TestBigUserFilesWaitForEachOther(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "aa1", Config: podConfig()}}
	for name, size := range map[string]int{"big": maxUserFileBytes, "small": bigUserFileBytes, "huge": maxUserFileBytes + 1} {
		w.images.images = append(w.images.images, imageservice.Image{ID: "sha256:" + name, RepoTags: []string{"r/" + name}})
		w.images.files["sha256:"+name+"/etc/group"] = strings.Repeat("g", size)
	}
	create := func(ctx context.Context, name string) error {
		_, err := w.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: "aa", Config: containerConfig("r/" + name), SandboxConfig: podConfig()})
		return err
	}
	var atOnce atomic.Int32
	begun, end := make(chan struct{}, 10), make(chan struct{})
	w.sandboxes.creating = func(r sandbox.CreateRequest) {
		if len(r.Image.Group) < maxUserFileBytes {
			return
		}
		if n := atOnce.Add(1); n > 1 {
			t.Errorf("%d at once", n)
		}
		begun <- struct{}{}
		<-end
		atOnce.Add(-1)
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() {
			if err := create(t.Context(), "big"); err != nil {
				t.Errorf("CreateContainer = %v", err)
			}
		})
	}
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := create(ctx, "big"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("who gives up: %v", err)
	}
	if err := create(t.Context(), "small"); err != nil {
		t.Errorf("of a small file: %v", err)
	}
	close(end)
	all.Wait()
	if err := create(t.Context(), "huge"); err == nil {
		t.Error("a file of more than 10 MiB is taken")
	}
	if err := create(t.Context(), "big"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCreateContainerFindsImageVolumes(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "aa1", Config: podConfig()}}
	w.images.images = []imageservice.Image{{ID: imageID, RepoTags: []string{"r/x:1"}}}
	w.images.files["etc/conf"] = "x"
	config := containerConfig(imageID)
	config.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/host", HostPath: "/h", Image: &runtimeapi.ImageSpec{}},
		{ContainerPath: "/all", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "r/x:1", ImageRef: "sha256:another"}},
		{ContainerPath: "/part", Readonly: true, Image: &runtimeapi.ImageSpec{Image: imageID}, ImageSubPath: "etc/conf"},
	}
	if _, err := w.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: "aa1", Config: config}); err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, m := range w.sandboxes.creates[0].Config.Mounts {
		refs = append(refs, m.GetImage().GetImageRef())
	}
	if !slices.Equal(refs, []string{"", imageID, imageID}) {
		t.Errorf("image references = %q", refs)
	}
}

// What the kubelet looks for at the start of a message (k8s.io/cri-api/pkg/errors).
func TestCreateContainerErrorsOfTheKubelet(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "aa1", Config: podConfig()}}
	w.images.images = []imageservice.Image{{ID: imageID}}
	for _, tc := range []struct {
		mount  *runtimeapi.Mount
		code   codes.Code
		prefix string
	}{
		{&runtimeapi.Mount{ContainerPath: "/x", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "none"}}, codes.NotFound, "ImageVolumeMountFailed: "},
		{&runtimeapi.Mount{ContainerPath: "/x", Readonly: true, Image: &runtimeapi.ImageSpec{Image: imageID}, ImageSubPath: "no"}, codes.InvalidArgument, "ImageVolumeMountFailed: "},
	} {
		config := containerConfig(imageID)
		config.Mounts = []*runtimeapi.Mount{tc.mount}
		_, err := w.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: "aa1", Config: config})
		if status.Code(err) != tc.code || err != nil && !strings.HasPrefix(status.Convert(err).Message(), tc.prefix) {
			t.Errorf("%v: %v, want %s", tc.mount, err, tc.prefix)
		}
	}
}

func TestCreateContainerRefusals(t *testing.T) {
	w := newWorld(t)
	w.sandboxes.pods = []sandbox.Pod{{ID: "aa1", Config: podConfig()}}
	w.images.images = []imageservice.Image{{ID: imageID}}
	for _, tc := range []struct {
		name   string
		change func(*runtimeapi.CreateContainerRequest)
		want   codes.Code
	}{
		{"no sandbox ID", func(r *runtimeapi.CreateContainerRequest) { r.PodSandboxId = "" }, codes.InvalidArgument},
		{"unknown sandbox", func(r *runtimeapi.CreateContainerRequest) { r.PodSandboxId = "zz" }, codes.NotFound},
		{"no configuration", func(r *runtimeapi.CreateContainerRequest) { r.Config = nil }, codes.InvalidArgument},
		{"no name", func(r *runtimeapi.CreateContainerRequest) { r.Config.Metadata = nil }, codes.InvalidArgument},
		{"no image", func(r *runtimeapi.CreateContainerRequest) { r.Config.Image = nil }, codes.InvalidArgument},
		{"unknown image", func(r *runtimeapi.CreateContainerRequest) { r.Config.Image.Image = "none" }, codes.NotFound},
		{"volume of an unknown image", func(r *runtimeapi.CreateContainerRequest) {
			r.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "x"}, Readonly: true}}
		}, codes.NotFound},
		{"volume of an image, to write", func(r *runtimeapi.CreateContainerRequest) {
			r.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: imageID}}}
		}, codes.InvalidArgument},
		{"volume of what an image does not have", func(r *runtimeapi.CreateContainerRequest) {
			r.Config.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: imageID}, Readonly: true, ImageSubPath: "no"}}
		}, codes.InvalidArgument},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &runtimeapi.CreateContainerRequest{PodSandboxId: "aa1", Config: containerConfig(imageID)}
			tc.change(r)
			if _, err := w.runtime.CreateContainer(t.Context(), r); status.Code(err) != tc.want {
				t.Errorf("CreateContainer = %v, want %v", err, tc.want)
			}
		})
	}
	w.images.fail["ReadFile"] = errors.New("is a FIFO")
	if _, err := w.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: "aa1", Config: containerConfig(imageID)}); err == nil {
		t.Error("an unreadable passwd was taken for an absent one")
	}
	if len(w.sandboxes.creates) != 0 {
		t.Errorf("creates went through: %+v", w.sandboxes.creates)
	}
}

func TestListContainersFilters(t *testing.T) {
	w := newWorld(t)
	labelled := func(labels map[string]string) *runtimeapi.ContainerConfig {
		c := containerConfig("i")
		c.Labels = labels
		return c
	}
	now := time.Now()
	w.sandboxes.containers = []sandbox.Container{
		{ID: "c1", SandboxID: "s1", Config: labelled(map[string]string{"k": "v"}), State: sandbox.ContainerCreated, CreatedAt: now, ImageID: imageID, ImageRef: imageID},
		{ID: "c2", SandboxID: "s1", Config: labelled(nil), State: sandbox.ContainerRunning, CreatedAt: now.Add(1), ImageID: imageID, ImageRef: imageID},
		{ID: "d3", SandboxID: "t2", Config: labelled(nil), State: sandbox.ContainerExited, CreatedAt: now.Add(2), ImageID: imageID, ImageRef: imageID},
	}
	state := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   string
	}{
		{"none", nil, "d3 c2 c1"},
		{"ID", &runtimeapi.ContainerFilter{Id: "c1"}, "c1"},
		{"start of an ID", &runtimeapi.ContainerFilter{Id: "c"}, "c2 c1"},
		{"sandbox", &runtimeapi.ContainerFilter{PodSandboxId: "s1"}, "c2 c1"},
		{"start of a sandbox", &runtimeapi.ContainerFilter{PodSandboxId: "t"}, "d3"},
		{"created", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_CREATED)}, "c1"},
		{"running", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_RUNNING)}, "c2"},
		{"exited", &runtimeapi.ContainerFilter{State: state(runtimeapi.ContainerState_CONTAINER_EXITED)}, "d3"},
		{"labels", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"k": "v"}}, "c1"},
		{"and", &runtimeapi.ContainerFilter{PodSandboxId: "s1", LabelSelector: map[string]string{"k": "w"}}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := w.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: tc.filter})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, c := range l.GetContainers() {
				got = append(got, c.GetId())
				if c.GetImageId() != imageID || c.GetImageRef() != imageID {
					t.Errorf("image = %q, %q", c.GetImageId(), c.GetImageRef())
				}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("got %v, want %s", got, tc.want)
			}
		})
	}
}

func TestContainerStatus(t *testing.T) {
	w := newWorld(t)
	w.images.images = []imageservice.Image{{ID: imageID, RepoTags: []string{"docker.io/library/a:latest", "r.example/team/b:1"}}}
	config := containerConfig(imageID)
	config.Image.UserSpecifiedImage = "team/b:1"
	config.Envs = []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte("SECRET")}}
	w.sandboxes.containers = []sandbox.Container{{
		ID: "c1", SandboxID: "s1", Config: config, State: sandbox.ContainerExited, CreatedAt: time.Unix(1, 0), StartedAt: time.Unix(2, 0),
		FinishedAt: time.Unix(3, 0), ExitCode: 7, ImageID: imageID, ImageRef: imageID, LogPath: "/l/c.log", PID: 9, Message: "\xff",
	}}
	s, err := w.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "c1", Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	st := s.GetStatus()
	if st.GetReason() != "Error" || st.GetExitCode() != 7 || st.GetFinishedAt() != 3e9 || st.GetStartedAt() != 2e9 || st.GetLogPath() != "/l/c.log" {
		t.Errorf("status = %v", st)
	}
	if st.GetImage().GetImage() != "r.example/team/b:1" || st.GetImage().GetUserSpecifiedImage() != "team/b:1" || st.GetImageId() != imageID {
		t.Errorf("image = %v, %q", st.GetImage(), st.GetImageId())
	}
	var facts struct {
		PID       int    `json:"pid"`
		SandboxID string `json:"sandboxID"`
	}
	info := s.GetInfo()["info"]
	if err := json.Unmarshal([]byte(info), &facts); err != nil || facts.PID != 9 || facts.SandboxID != "s1" {
		t.Errorf("info = %q, %v", info, err)
	}
	if strings.Contains(info, "SECRET") || !strings.Contains(info, "TOKEN") {
		t.Errorf("info = %q: want names of the environment, not values", info)
	}
	if string(config.GetEnvs()[0].GetValue()) != "SECRET" {
		t.Error("the record's environment was changed")
	}
}

func TestStopAndExecTimeouts(t *testing.T) {
	w := newWorld(t)
	for _, tc := range []struct {
		seconds int64
		want    time.Duration
		code    codes.Code
	}{
		{0, 0, codes.OK}, {30, 30 * time.Second, codes.OK}, {-1, 0, codes.InvalidArgument},
		{math.MaxInt64, time.Duration(maxTimeout) * time.Second, codes.OK},
	} {
		w.sandboxes.timeout = 0
		_, err := w.runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: "x", Timeout: tc.seconds})
		if status.Code(err) != tc.code || w.sandboxes.timeout != tc.want {
			t.Errorf("StopContainer(%d) = %v with %v, want %v with %v", tc.seconds, err, w.sandboxes.timeout, tc.code, tc.want)
		}
		w.sandboxes.timeout = 0
		_, err = w.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"x"}, Timeout: tc.seconds})
		if status.Code(err) != tc.code || w.sandboxes.timeout != tc.want {
			t.Errorf("ExecSync(%d) = %v with %v, want %v with %v", tc.seconds, err, w.sandboxes.timeout, tc.code, tc.want)
		}
	}
	if _, err := w.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ExecSync without a command = %v", err)
	}
	if _, err := w.runtime.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: "x"}); err != nil {
		t.Errorf("ReopenContainerLog = %v", err)
	}
}

// Threat B5: both streams full must still fit into the client's 16 MiB.
func TestExecSyncFitsIntoAMessage(t *testing.T) {
	w := newWorld(t)
	full := bytes.Repeat([]byte{'x'}, 16<<20)
	w.sandboxes.exec = sandbox.ExecResult{Stdout: sandbox.Output{Head: full}, Stderr: sandbox.Output{Head: full}, ExitCode: 3}
	r, err := w.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"x"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.GetStdout())+len(r.GetStderr()) != maxExecBytes || r.GetExitCode() != 3 {
		t.Errorf("%d + %d bytes, code %d", len(r.GetStdout()), len(r.GetStderr()), r.GetExitCode())
	}
	w.sandboxes.exec = sandbox.ExecResult{Stdout: sandbox.Output{Head: full}, Stderr: sandbox.Output{Head: []byte("short")}}
	r, err = w.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"x"}})
	if err != nil || string(r.GetStderr()) != "short" || len(r.GetStdout()) != maxExecBytes-5 {
		t.Errorf("stderr %q, %d bytes of stdout, %v", r.GetStderr(), len(r.GetStdout()), err)
	}
}

func TestShare(t *testing.T) {
	for _, tc := range []struct{ a, b, most, wantA, wantB int }{
		{3, 3, 10, 3, 3}, {20, 3, 10, 7, 3}, {3, 20, 10, 3, 7}, {20, 20, 10, 5, 5}, {0, 20, 10, 0, 10}, {20, 0, 10, 10, 0},
	} {
		a, b := share(tc.a, tc.b, tc.most)
		if a != tc.wantA || b != tc.wantB {
			t.Errorf("share(%d, %d, %d) = %d, %d, want %d, %d", tc.a, tc.b, tc.most, a, b, tc.wantA, tc.wantB)
		}
	}
}
