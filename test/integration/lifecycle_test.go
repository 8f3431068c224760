package integration_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

const (
	created = runtimeapi.ContainerState_CONTAINER_CREATED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED

	podReady    = runtimeapi.PodSandboxState_SANDBOX_READY
	podNotReady = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
)

func wantCode(t testing.TB, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want code %s", what, err, want)
	}
}

func TestLifeOfAPodAndItsContainer(t *testing.T) {
	d := harness.Start(t)
	before := time.Now()
	config := d.Pod("life")
	pod := d.RunPod(config)

	s := pod.Status()
	if s.Id != pod.ID || s.State != podReady {
		t.Errorf("status = %s %s, want %s ready", s.Id, s.State, pod.ID)
	}
	if at := time.Unix(0, s.CreatedAt); at.Before(before) || at.After(time.Now()) {
		t.Errorf("created at %s, called at %s", at, before)
	}
	same(t, "metadata", s.Metadata, config.Metadata)
	same(t, "labels", s.Labels, config.Labels)
	same(t, "annotations", s.Annotations, config.Annotations)

	cc := d.Sleeper("main")
	c := pod.Create(cc)
	cs := c.Status()
	if cs.State != created || cs.StartedAt != 0 || cs.FinishedAt != 0 || cs.Id != c.ID {
		t.Errorf("status of a created container = %v", cs)
	}
	same(t, "metadata", cs.Metadata, cc.Metadata)
	same(t, "labels", cs.Labels, cc.Labels)
	same(t, "annotations", cs.Annotations, cc.Annotations)
	base := harness.Base(t)
	if cs.ImageRef != base.ImageID || cs.ImageId != base.ImageID || cs.Image.GetImage() != base.Ref {
		t.Errorf("image = %v, image_ref = %s, image_id = %s, want %s %s", cs.Image, cs.ImageRef, cs.ImageId, base.Ref, base.ImageID)
	}
	if cs.LogPath != c.LogFile() {
		t.Errorf("log_path = %s, want %s", cs.LogPath, c.LogFile())
	}
	d.Check()

	c.Start()
	cs = c.Status()
	if cs.State != running || cs.StartedAt < cs.CreatedAt || cs.FinishedAt != 0 {
		t.Errorf("status of a running container = %v", cs)
	}
	wantCode(t, "start a running container", c.TryStart(), codes.FailedPrecondition)
	d.Check()

	c.WaitOutput("up") // before that the shell, as PID 1, ignores the signal
	c.Stop(10 * time.Second)
	cs = c.Status()
	if cs.State != exited || cs.ExitCode != 0 || cs.Reason != "Completed" || cs.FinishedAt < cs.StartedAt {
		t.Errorf("status of a stopped container = %v", cs)
	}
	c.Stop(0) // stopped already
	wantCode(t, "start an exited container", c.TryStart(), codes.FailedPrecondition)
	d.Check()

	c.Remove()
	c.Remove()
	_, err := d.Runtime.ContainerStatus(d.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	wantCode(t, "status of a removed container", err, codes.NotFound)
	d.Check()

	pod.Stop()
	pod.Stop()
	if s := pod.Status(); s.State != podNotReady {
		t.Errorf("state of a stopped pod = %s", s.State)
	}
	_, err = pod.TryCreate(d.Sleeper("late"))
	wantCode(t, "create in a stopped pod", err, codes.FailedPrecondition)
	d.Check()
	pod.Remove()
	pod.Remove()
	_, err = d.Runtime.PodSandboxStatus(d.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID})
	wantCode(t, "status of a removed pod", err, codes.NotFound)
	if _, err := os.Stat(c.LogFile()); err != nil {
		t.Errorf("the log is the kubelet's: %v", err)
	}
	d.AsBefore()
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Errorf("%s differs (-want +got):\n%s", what, diff)
	}
}

func TestRemovingWhatRuns(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("busy"))
	c := pod.Run(d.Shell("stubborn", "trap '' TERM; while :; do sleep 1; done"))
	start := time.Now()
	c.Remove()
	if took := time.Since(start); took > harness.Patience {
		t.Errorf("removing a running container took %s", took)
	}
	d.Check()
	pod.Run(d.Shell("stubborn", "trap '' TERM; while :; do sleep 1; done"))
	pod.Create(d.Sleeper("created"))
	pod.Remove()
	d.AsBefore()
}

func TestUnknownIDs(t *testing.T) {
	d := harness.Start(t)
	ctx, rt := d.Context(), d.Runtime
	const id = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, call := range map[string]func() error{
		"StopPodSandbox": func() error {
			_, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
			return err
		},
		"RemovePodSandbox": func() error {
			_, err := rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		},
		"StopContainer": func() error {
			_, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
			return err
		},
		"RemoveContainer": func() error {
			_, err := rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		"RemoveImage": func() error {
			_, err := d.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/none:1"}})
			return err
		},
	} {
		wantCode(t, name+" of an unknown ID", call(), codes.OK)
	}
	for name, call := range map[string]func() error{
		"StartContainer": func() error {
			_, err := rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		},
		"ExecSync": func() error {
			_, err := rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
			return err
		},
		"ReopenContainerLog": func() error {
			_, err := rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
			return err
		},
		"CreateContainer": func() error {
			_, err := rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: d.Sleeper("x"), SandboxConfig: d.Pod("x")})
			return err
		},
	} {
		wantCode(t, name+" of an unknown ID", call(), codes.NotFound)
	}
}

func TestListFilters(t *testing.T) {
	d := harness.Start(t)
	a, b := d.RunPod(d.Pod("alpha")), d.RunPod(d.Pod("beta"))
	a1, a2, b1 := a.Run(d.Sleeper("one")), a.Create(d.Sleeper("two")), b.Run(d.Shell("one", "exit 3"))
	b1.Wait(5 * time.Second)
	b2 := b.Run(d.Sleeper("three"))
	stopped := d.RunPod(d.Pod("gamma"))
	stopped.Stop()

	pods := func(f *runtimeapi.PodSandboxFilter) (ids []string) {
		t.Helper()
		r, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.Items {
			ids = append(ids, p.Id)
		}
		slices.Sort(ids)
		return ids
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{"all", nil, []string{a.ID, b.ID, stopped.ID}},
		{"ID", &runtimeapi.PodSandboxFilter{Id: a.ID}, []string{a.ID}},
		{"prefix of an ID", &runtimeapi.PodSandboxFilter{Id: a.ID[:12]}, []string{a.ID}},
		{"unknown ID", &runtimeapi.PodSandboxFilter{Id: "0123456789abcdef"}, nil},
		{"ready", &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: podReady}}, []string{a.ID, b.ID}},
		{"not ready", &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: podNotReady}}, []string{stopped.ID}},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "beta"}}, []string{b.ID}},
		{"label and state", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "beta"},
			State: &runtimeapi.PodSandboxStateValue{State: podNotReady}}, nil},
	} {
		slices.Sort(tc.want)
		if got := pods(tc.filter); !slices.Equal(got, tc.want) {
			t.Errorf("pods by %s = %q, want %q", tc.name, got, tc.want)
		}
	}
	containers := func(f *runtimeapi.ContainerFilter) (ids []string) {
		t.Helper()
		r, err := d.Runtime.ListContainers(d.Context(), &runtimeapi.ListContainersRequest{Filter: f})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Containers {
			ids = append(ids, c.Id)
		}
		slices.Sort(ids)
		return ids
	}
	in := func(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
		return &runtimeapi.ContainerStateValue{State: s}
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   []string
	}{
		{"all", nil, []string{a1.ID, a2.ID, b1.ID, b2.ID}},
		{"pod", &runtimeapi.ContainerFilter{PodSandboxId: a.ID}, []string{a1.ID, a2.ID}},
		{"ID", &runtimeapi.ContainerFilter{Id: b1.ID}, []string{b1.ID}},
		{"prefix of an ID", &runtimeapi.ContainerFilter{Id: b1.ID[:13]}, []string{b1.ID}},
		{"running", &runtimeapi.ContainerFilter{State: in(running)}, []string{a1.ID, b2.ID}},
		{"created", &runtimeapi.ContainerFilter{State: in(created)}, []string{a2.ID}},
		{"exited", &runtimeapi.ContainerFilter{State: in(exited)}, []string{b1.ID}},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"container": "one"}}, []string{a1.ID, b1.ID}},
		{"label and pod", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"container": "one"}, PodSandboxId: b.ID}, []string{b1.ID}},
		{"ID of another pod", &runtimeapi.ContainerFilter{Id: b1.ID, PodSandboxId: a.ID}, nil},
	} {
		slices.Sort(tc.want)
		if got := containers(tc.filter); !slices.Equal(got, tc.want) {
			t.Errorf("containers by %s = %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestEnvironmentArgumentsAndWorkingFolder(t *testing.T) {
	d := harness.Start(t)
	image := harness.PushImage(t, "test/process", imageConfig(func(c *ocispecConfig) {
		c.Env = []string{"PATH=/bin", "FROM_IMAGE=image", "BOTH=image"}
		c.Entrypoint, c.Cmd = []string{"sh", "-c"}, []string{"echo default $0; sleep 100"}
		c.WorkingDir = "/usr/bin"
	}))
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("process"))
	for _, tc := range []struct {
		name   string
		change harness.ContainerOption
		want   string
	}{
		{"all from the image", func(*runtimeapi.ContainerConfig) {}, "default sh"},
		{"command", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"echo", "one word", "$HOME"} }, "one word $HOME"},
		{"arguments", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"echo $0 $1", "a", "b c"} }, "a b c"},
		{"command and arguments", func(c *runtimeapi.ContainerConfig) {
			c.Command, c.Args = []string{"sh", "-c", "pwd; echo $0"}, []string{"zero"}
		}, "/usr/bin\nzero"},
		{"working folder", func(c *runtimeapi.ContainerConfig) { c.Command, c.WorkingDir = []string{"pwd"}, "/tmp" }, "/tmp"},
		{"new working folder", func(c *runtimeapi.ContainerConfig) { c.Command, c.WorkingDir = []string{"pwd"}, "/made/for/it" }, "/made/for/it"},
		{"environment", func(c *runtimeapi.ContainerConfig) {
			c.Args = []string{"echo $FROM_IMAGE $BOTH $MINE $HOSTNAME"}
			c.Envs = []*runtimeapi.KeyValue{{Key: "BOTH", Value: []byte("request")}, {Key: "MINE", Value: []byte("a=b c")}}
		}, "image request a=b c process"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := pod.Run(d.Container("c", nil, harness.Image(image.Ref), tc.change))
			d.Eventually(10*time.Second, fmt.Sprintf("the output is %q", tc.want), func() bool { return c.Output() == tc.want+"\n" })
			c.Remove()
			os.Remove(c.LogFile())
		})
	}
}

func TestStatusAnswers(t *testing.T) {
	d := harness.Start(t)
	v, err := d.Runtime.Version(d.Context(), &runtimeapi.VersionRequest{Version: "v1"})
	if err != nil || v.RuntimeName != "berth" || v.RuntimeApiVersion != "v1" || v.RuntimeVersion == "" || v.Version == "" {
		t.Errorf("Version = %v, %v", v, err)
	}
	for _, name := range []string{"RuntimeReady", "NetworkReady"} {
		if c := d.Status()[name]; !c.GetStatus() {
			t.Errorf("condition %s = %v", name, c)
		}
	}
	r, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil || len(r.Info) == 0 {
		t.Errorf("verbose status = %v, %v", r, err)
	}
	if len(r.GetRuntimeHandlers()) == 0 || r.RuntimeHandlers[0].Name != "" {
		t.Errorf("handlers = %v, want the default one first", r.GetRuntimeHandlers())
	}
	config, err := d.Runtime.RuntimeConfig(d.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || config.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("RuntimeConfig = %v, %v", config, err)
	}
	_, err = d.Runtime.UpdateRuntimeConfig(d.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.1.0.0/24"}}})
	wantCode(t, "UpdateRuntimeConfig", err, codes.OK)
}

func TestNotBuiltIsUnimplementedWithASentence(t *testing.T) {
	d := harness.Start(t)
	location := filepath.Join(d.Dir, "checkpoint")
	for call, f := range map[string]func() error{
		"CheckpointContainer": func() error {
			_, err := d.Runtime.CheckpointContainer(d.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: "x", Location: location})
			return err
		},
		"CheckpointPod": func() error {
			_, err := d.Runtime.CheckpointPod(d.Context(), &runtimeapi.CheckpointPodRequest{})
			return err
		},
		"RestorePod": func() error {
			_, err := d.Runtime.RestorePod(d.Context(), &runtimeapi.RestorePodRequest{})
			return err
		},
	} {
		err := f()
		wantCode(t, call, err, codes.Unimplemented)
		if len(status.Convert(err).Message()) < 20 {
			t.Errorf("%s: message = %q, want a sentence", call, status.Convert(err).Message())
		}
	}
	if _, err := os.Lstat(location); !os.IsNotExist(err) {
		t.Errorf("something is at %s: %v", location, err)
	}
}

func TestFilesOfThePodAreClosedToOthers(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("modes"))
	pod.Run(d.Sleeper("main"))
	opts := d.Options()
	for _, dir := range []string{opts.Root, opts.State} {
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v, want 0700", dir, st.Mode(), err)
		}
	}
	err := filepath.Walk(opts.State, func(path string, info os.FileInfo, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // it went while we looked
			return nil
		}
		if err != nil {
			return err
		}
		if info.IsDir() && info.Name() == "rootfs" { // what is in there is the image's
			return filepath.SkipDir
		}
		if info.Mode()&os.ModeSocket != 0 && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("socket %s has mode %v", path, info.Mode())
		}
		if info.Mode()&os.ModeSymlink == 0 && info.Mode().Perm()&0o002 != 0 && info.Name() != "shm" {
			t.Errorf("%s can be written by everybody: %v", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestManyContainersInOnePod(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("many"))
	var all []*harness.Container
	for i := range 12 {
		all = append(all, pod.Run(d.Sleeper(fmt.Sprintf("c%d", i))))
	}
	for i, c := range all {
		if got := c.Sh("hostname"); got != "many" {
			t.Errorf("hostname in container %d = %q", i, got)
		}
	}
	d.Check()
	for _, c := range all[:6] {
		c.Remove()
	}
	d.Check()
	pod.Stop()
	for _, c := range all[6:] {
		if s := c.Status(); s.State != exited {
			t.Errorf("container of a stopped pod is %s", s.State)
		}
	}
}
