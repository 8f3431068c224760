package integration_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/sandbox"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/images"
	"github.com/berthd/berth/test/streamclient"
	"github.com/berthd/berth/test/wait"
)

func methodsOf(d *grpc.ServiceDesc) (names []string) {
	for _, m := range d.Methods {
		names = append(names, m.MethodName)
	}
	for _, s := range d.Streams {
		names = append(names, s.StreamName)
	}
	return names
}

// changingCalls are the sweeps of what changes something.
func changingCalls(d *harness.Daemon) []sweep {
	return []sweep{
		{methods: "RunPodSandbox", open: runs(d)},
		{methods: "StopPodSandbox", open: stopsPod(d)},
		{methods: "RemovePodSandbox", open: removesPod(d)},
		{methods: "CreateContainer", open: inPod(d, creates)},
		{methods: "StartContainer", open: inPod(d, starts)},
		{methods: "StopContainer", open: inPod(d, stops)},
		{methods: "RemoveContainer", open: inPod(d, removes)},
		{methods: "UpdateContainerResources", open: inContainer(d, d.Sleeper, updates)},
		{methods: "UpdatePodSandboxResources", open: inPod(d, updatesPod)},
		{methods: "ReopenContainerLog", open: inContainer(d, writer(d), reopens)},
		{methods: "ExecSync", open: inContainer(d, d.Sleeper, execSyncs)},
		{methods: "Exec", open: inContainer(d, d.Sleeper, execs)},
		{methods: "Attach", open: inContainer(d, answerer(d), attaches)},
		{methods: "PortForward", open: inContainer(d, echoServer(d), forwards)},
		{methods: "PullImage", open: ofImage(d, pulls)},
		{methods: "RemoveImage", open: ofImage(d, removesImage)},
		{methods: "GetContainerEvents", open: inPod(d, events)},
		{methods: "UpdateRuntimeConfig", open: plain(func(ctx context.Context, via *berthd.Client) error {
			_, err := via.Runtime.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
				NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: d.Subnet + ".0/24"}}})
			return err
		})},
		{methods: "CheckpointContainer CheckpointPod RestorePod", rounds: 8, open: plain(notBuilt)},
	}
}

// notBuilt makes the calls that are not built.
func notBuilt(ctx context.Context, via *berthd.Client) error {
	_, first := via.Runtime.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{})
	_, second := via.Runtime.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{})
	_, third := via.Runtime.RestorePod(ctx, &runtimeapi.RestorePodRequest{})
	for _, err := range []error{first, second, third} {
		if status.Code(err) != codes.Unimplemented {
			return err
		}
	}
	return nil
}

// plain is a sweep of a call that needs nothing and tells nothing.
func plain(call func(ctx context.Context, via *berthd.Client) error) func(string) (subject, error) {
	return func(string) (subject, error) {
		return subject{next: func(int) (request, error) {
			return request{call: func(ctx context.Context, via *berthd.Client) (string, error) { return "", call(ctx, via) }}, nil
		}}, nil
	}
}

// removed stops and removes a pod.
func removed(p *harness.Pod) error {
	_, err := p.Runtime.RemovePodSandbox(p.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
	return err
}

// inPod gives each worker a pod.
func inPod(d *harness.Daemon, next func(p *harness.Pod, round int) (request, error)) func(string) (subject, error) {
	return func(name string) (subject, error) {
		p, err := d.TryRunPod(d.Pod(name))
		if err != nil {
			return subject{}, err
		}
		return subject{next: func(round int) (request, error) { return next(p, round) }, end: func() error { return removed(p) }}, nil
	}
}

// container is how a container of a name is configured.
type containerConfig func(name string, options ...harness.ContainerOption) *runtimeapi.ContainerConfig

// inContainer gives each worker a running container.
func inContainer(d *harness.Daemon, config containerConfig, next func(c *harness.Container, round int) (request, error)) func(string) (subject, error) {
	return func(name string) (subject, error) {
		p, err := d.TryRunPod(d.Pod(name))
		if err != nil {
			return subject{}, err
		}
		c, err := running1(p, config("c"))
		if err != nil {
			return subject{}, err
		}
		return subject{next: func(round int) (request, error) { return next(c, round) }, end: func() error {
			return errors.Join(alone(c), removed(p))
		}}, nil
	}
}

// running1 creates and starts a container.
func running1(p *harness.Pod, config *runtimeapi.ContainerConfig) (*harness.Container, error) {
	c, err := p.TryCreate(config)
	if err != nil {
		return nil, err
	}
	return c, c.TryStart()
}

// remains is a process that a command starts and ends; of one that is given up it is what must not stay.
const remains = "sleep 1234"

// command starts a process, works for a moment, and ends it.
var command = []string{"sh", "-c", remains + " & sleep 0.01; kill $!; wait; echo done"}

// alone waits until nothing of a command is left in a container.
func alone(c *harness.Container) error {
	var left harness.Result
	var err error
	if wait.Until(harness.Timeout, 10*time.Millisecond, func() bool {
		left, err = c.TryExec(time.Minute, "ps", "-o", "args")
		return err != nil || !strings.Contains(left.Stdout, remains)
	}) {
		return err
	}
	return fmt.Errorf("commands that were given up run on:\n%s", left.Stdout)
}

func runs(d *harness.Daemon) func(string) (subject, error) {
	kinds := []harness.PodOption{func(*runtimeapi.PodSandboxConfig) {}, hostNetwork,
		harness.Namespaces(runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD)}
	return func(name string) (subject, error) {
		return subject{next: func(round int) (request, error) {
			config := d.Pod(fmt.Sprintf("%s-%d", name, round), kinds[round%len(kinds)])
			call := func(ctx context.Context, via *berthd.Client) (string, error) {
				r, err := via.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
				return r.GetPodSandboxId(), err
			}
			check := func(id string) error {
				list, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{
					Filter: &runtimeapi.PodSandboxFilter{LabelSelector: config.Labels}})
				if err != nil || len(list.Items) != 1 || list.Items[0].Id != id || list.Items[0].State != podReady {
					return fmt.Errorf("listed, for pod %s: %v, %w", id, list, err)
				}
				return nil
			}
			return request{call: call, check: check, end: func() error {
				list, err := d.Runtime.ListPodSandbox(d.Context(), &runtimeapi.ListPodSandboxRequest{
					Filter: &runtimeapi.PodSandboxFilter{LabelSelector: config.Labels}})
				for _, p := range list.GetItems() {
					err = errors.Join(err, removed(&harness.Pod{Daemon: d, ID: p.Id}))
				}
				return err
			}}, nil
		}}, nil
	}
}

// runningPod makes a pod with a running container.
func runningPod(d *harness.Daemon, name string) (*harness.Pod, *harness.Container, error) {
	p, err := d.TryRunPod(d.Pod(name))
	if err != nil {
		return nil, nil, err
	}
	c, err := running1(p, d.Sleeper("c"))
	return p, c, err
}

func stopsPod(d *harness.Daemon) func(string) (subject, error) {
	return func(name string) (subject, error) {
		return subject{next: func(round int) (request, error) {
			p, c, err := runningPod(d, fmt.Sprintf("%s-%d", name, round))
			if err != nil {
				return request{}, err
			}
			return request{
				call: func(ctx context.Context, via *berthd.Client) (string, error) {
					_, err := via.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID})
					return "", err
				},
				check: func(string) error {
					if s, state := p.Status(), c.Status().State; s.State == podReady || state != exited {
						return fmt.Errorf("the pod is %s, its container %s", s.State, state)
					}
					return nil
				},
				end: func() error { return removed(p) },
			}, nil
		}}, nil
	}
}

func removesPod(d *harness.Daemon) func(string) (subject, error) {
	return func(name string) (subject, error) {
		return subject{next: func(round int) (request, error) {
			p, c, err := runningPod(d, fmt.Sprintf("%s-%d", name, round))
			if err != nil {
				return request{}, err
			}
			return request{
				call: func(ctx context.Context, via *berthd.Client) (string, error) {
					_, err := via.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID})
					return "", err
				},
				check: func(string) error {
					_, err := d.Runtime.PodSandboxStatus(d.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
					return errors.Join(notFound(err), containerGone(c))
				},
			}, nil
		}}, nil
	}
}

func notFound(err error) error {
	if status.Code(err) != codes.NotFound {
		return fmt.Errorf("the status of what is removed: %v", err)
	}
	return nil
}

func containerGone(c *harness.Container) error {
	_, err := c.Runtime.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	return notFound(err)
}

// removal removes a container.
func removal(c *harness.Container) func(ctx context.Context, via *berthd.Client) (string, error) {
	return func(ctx context.Context, via *berthd.Client) (string, error) {
		_, err := via.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.ID})
		return "", err
	}
}

func removedContainer(c *harness.Container) func() error {
	return func() error {
		_, err := removal(c)(c.Context(), c.Client)
		return err
	}
}

func creates(p *harness.Pod, round int) (request, error) {
	config := p.Sleeper(fmt.Sprint("c", round))
	list := func() ([]*runtimeapi.Container, error) {
		r, err := p.Runtime.ListContainers(p.Context(), &runtimeapi.ListContainersRequest{
			Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.ID, LabelSelector: config.Labels}})
		return r.GetContainers(), err
	}
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			r, err := via.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
			return r.GetContainerId(), err
		},
		check: func(id string) error {
			all, err := list()
			if err != nil || len(all) != 1 || all[0].Id != id || all[0].State != created {
				return fmt.Errorf("listed, for container %s: %v, %w", id, all, err)
			}
			return nil
		},
		end: func() error {
			all, err := list()
			for _, c := range all {
				err = errors.Join(err, removedContainer(&harness.Container{Pod: p, ID: c.Id})())
			}
			return err
		},
	}, nil
}

func starts(p *harness.Pod, round int) (request, error) {
	c, err := p.TryCreate(p.Sleeper(fmt.Sprint("c", round)))
	if err != nil {
		return request{}, err
	}
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			_, err := via.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ID})
			return "", err
		},
		check: func(string) error {
			if s := c.Status(); s.State != running {
				return fmt.Errorf("the container is %v", s)
			}
			return nil
		},
		end:  removedContainer(c),
		done: codes.FailedPrecondition,
	}, nil
}

func stops(p *harness.Pod, round int) (request, error) {
	c, err := running1(p, p.Sleeper(fmt.Sprint("c", round)))
	if err != nil {
		return request{}, err
	}
	var grace int64
	if round%2 == 1 {
		c.WaitOutput("up") // before that the shell, as PID 1, ignores the signal
		grace = 20
	}
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			_, err := via.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: grace})
			return "", err
		},
		check: func(string) error {
			if s := c.Status(); s.State != exited {
				return fmt.Errorf("the container is %v", s)
			}
			return nil
		},
		end: removedContainer(c),
	}, nil
}

func removes(p *harness.Pod, round int) (request, error) {
	c, err := running1(p, p.Sleeper(fmt.Sprint("c", round)))
	if err != nil {
		return request{}, err
	}
	return request{call: removal(c), check: func(string) error { return containerGone(c) }}, nil
}

func updates(c *harness.Container, round int) (request, error) {
	quota := int64(10000 + 1000*round)
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			_, err := via.Runtime.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.ID,
				Linux: &resources{CpuQuota: quota, CpuPeriod: 100000}})
			return "", err
		},
		check: func(string) error {
			if kept, told := quotaOf(c), linuxOf(c).GetCpuQuota(); kept != fmt.Sprint(quota) || told != quota {
				return fmt.Errorf("the quota is %s, told is %d, asked for was %d", kept, told, quota)
			}
			return nil
		},
	}, nil
}

func updatesPod(p *harness.Pod, round int) (request, error) {
	return request{call: func(ctx context.Context, via *berthd.Client) (string, error) {
		_, err := via.Runtime.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: p.ID,
			Resources: &resources{CpuShares: int64(100 + round)}})
		return "", err
	}}, nil
}

// writer writes to its log without end.
func writer(d *harness.Daemon) containerConfig {
	return func(name string, o ...harness.ContainerOption) *runtimeapi.ContainerConfig {
		return d.Shell(name, "while :; do echo line; sleep 0.02; done", o...)
	}
}

func reopens(c *harness.Container, round int) (request, error) {
	c.WaitOutput("line")
	if err := os.Rename(c.LogFile(), fmt.Sprintf("%s.%d", c.LogFile(), round)); err != nil {
		return request{}, err
	}
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			_, err := via.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.ID})
			return "", err
		},
		check: func(string) error {
			_, err := os.Stat(c.LogFile())
			return err
		},
	}, nil
}

func execSyncs(c *harness.Container, _ int) (request, error) {
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			r, err := via.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: 60})
			return string(r.GetStdout()), err
		},
		check: saysDone,
	}, nil
}

func saysDone(answer string) error {
	if answer != "done\n" {
		return fmt.Errorf("the command said %q", answer)
	}
	return nil
}

func execs(c *harness.Container, round int) (request, error) {
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			r, err := via.Runtime.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: command, Stdout: true})
			if err != nil {
				return "", err
			}
			var out bytes.Buffer
			_, err = streamclient.Run(ctx, r.Url, bothTransports[round%2], sandbox.Streams{Stdout: &out})
			return out.String(), err
		},
		check: saysDone,
	}, nil
}

// answerer answers each line of its input.
func answerer(d *harness.Daemon) containerConfig {
	return func(name string, o ...harness.ContainerOption) *runtimeapi.ContainerConfig {
		return d.Shell(name, "while read x; do echo got $x; done", append(o, input)...)
	}
}

func attaches(c *harness.Container, round int) (request, error) {
	all := streamclient.Process{Stdin: true, Stdout: true}
	return request{call: func(ctx context.Context, via *berthd.Client) (string, error) {
		r, err := via.Runtime.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: c.ID, Stdin: true, Stdout: true})
		if err != nil {
			return "", err
		}
		s, err := streamclient.Open(ctx, r.Url, bothTransports[round%2], all)
		if err != nil {
			return "", err
		}
		defer s.Vanish()
		defer context.AfterFunc(ctx, func() { s.Vanish() })()
		return "", converse(s.Stdin, s.Stdout, "got ")
	}}, nil
}

// converse says a line until it is answered: who has just attached may not hear the first answer.
func converse(w io.Writer, r io.Reader, prefix string) error {
	line := fmt.Sprintf("line%d", rand.Uint64())
	over := make(chan struct{})
	defer close(over)
	go func() {
		for {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return
			}
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	for lines := bufio.NewScanner(r); ; {
		if !lines.Scan() {
			return errors.Join(errors.New("the stream ended"), lines.Err())
		}
		if lines.Text() == prefix+line {
			return nil
		}
	}
}

// forwardedPort is that of echoServer.
const forwardedPort = 7777

// echoServer answers connections with what they send.
func echoServer(d *harness.Daemon) containerConfig {
	return func(name string, o ...harness.ContainerOption) *runtimeapi.ContainerConfig {
		return d.Container(name, []string{"probe", "echo", fmt.Sprintf("127.0.0.1:%d", forwardedPort)}, o...)
	}
}

func forwards(c *harness.Container, round int) (request, error) {
	call := forward1(c, bothTransports[round%2])
	var err error
	wait.Until(harness.Timeout, 10*time.Millisecond, func() bool {
		if round == 0 { // until it listens
			_, err = call(c.Context(), c.Client)
		}
		return err == nil
	})
	return request{call: call}, err
}

// forward1 talks to the forwarded port.
func forward1(c *harness.Container, transport streamclient.Transport) func(ctx context.Context, via *berthd.Client) (string, error) {
	return func(ctx context.Context, via *berthd.Client) (string, error) {
		r, err := via.Runtime.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: c.Pod.ID})
		if err != nil {
			return "", err
		}
		f, err := streamclient.Forward(ctx, r.Url, transport)
		if err != nil {
			return "", err
		}
		defer f.Close()
		defer context.AfterFunc(ctx, func() { f.Close() })()
		s, err := f.Connect(forwardedPort)
		if err != nil {
			return "", err
		}
		return "", converse(s, s, "")
	}
}

// ofImage gives each worker an image of some files, with layers of its own and the base image's.
func ofImage(d *harness.Daemon, next func(d *harness.Daemon, image registrytest.Pushed) (request, error)) func(string) (subject, error) {
	return func(name string) (subject, error) {
		noise := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32.32s", name))))
		var layers []registrytest.Layer
		for i := range 3 {
			b := images.NewBuilder()
			for n := range 60 {
				text := make([]byte, 8<<10)
				noise.Read(text)
				b.File(fmt.Sprintf("layer%d/file%d", i, n), string(text), 0o644)
			}
			layer, err := b.Layer()
			if err != nil {
				return subject{}, err
			}
			layers = append(layers, layer)
		}
		image := harness.PushImage(d.T, "sweep/"+name, imageConfig(func(*ocispecConfig) {}), layers...)
		return subject{next: func(int) (request, error) { return next(d, image) }}, nil
	}
}

func specOf(image registrytest.Pushed) *runtimeapi.ImageSpec {
	return &runtimeapi.ImageSpec{Image: image.Ref}
}

func pulls(d *harness.Daemon, image registrytest.Pushed) (request, error) {
	return request{
		call: func(ctx context.Context, via *berthd.Client) (string, error) {
			r, err := via.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: specOf(image)})
			return r.GetImageRef(), err
		},
		check: func(id string) error {
			s, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: specOf(image)})
			if err != nil || id != image.ImageID || s.GetImage().GetId() != id {
				return fmt.Errorf("pulled %s as %q, its status is %v, %w", image.ImageID, id, s, err)
			}
			return nil
		},
		end: func() error {
			_, err := removesImageBy(d, image)(d.Context(), d.Client)
			return err
		},
	}, nil
}

func removesImageBy(_ *harness.Daemon, image registrytest.Pushed) func(context.Context, *berthd.Client) (string, error) {
	return func(ctx context.Context, via *berthd.Client) (string, error) {
		_, err := via.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: specOf(image)})
		return "", err
	}
}

func removesImage(d *harness.Daemon, image registrytest.Pushed) (request, error) {
	if _, err := d.TryPull(image.Ref); err != nil {
		return request{}, err
	}
	return request{call: removesImageBy(d, image), check: func(string) error {
		s, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: specOf(image)})
		if err != nil || s.Image != nil {
			return fmt.Errorf("the status of what is removed: %v, %w", s, err)
		}
		return nil
	}}, nil
}

// events listens until it hears of a container that is created when it listens.
func events(p *harness.Pod, round int) (request, error) {
	return request{call: func(ctx context.Context, via *berthd.Client) (string, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream, err := via.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err != nil {
			return "", err
		}
		if _, err := stream.Header(); err != nil {
			return "", err
		}
		c, err := p.TryCreate(p.Sleeper(fmt.Sprintf("c%d-%d", round, rand.Uint32())))
		if err != nil {
			return "", err
		}
		for {
			e, err := stream.Recv()
			if err != nil || e.ContainerId == c.ID {
				return "", errors.Join(err, removedContainer(c)())
			}
		}
	}}, nil
}

// readingCalls are the sweeps of what only reads, of a pod with a container.
func readingCalls(c *harness.Container) (all []sweep) {
	add := func(name string, call func(context.Context, *berthd.Client) error) {
		all = append(all, sweep{methods: name, open: plain(call)})
	}
	add("Version", reads(ofRuntime, runtimeapi.RuntimeServiceClient.Version, &runtimeapi.VersionRequest{}))
	add("Status", reads(ofRuntime, runtimeapi.RuntimeServiceClient.Status, &runtimeapi.StatusRequest{Verbose: true}))
	add("RuntimeConfig", reads(ofRuntime, runtimeapi.RuntimeServiceClient.RuntimeConfig, &runtimeapi.RuntimeConfigRequest{}))
	add("ListPodSandbox", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{}))
	add("PodSandboxStatus", reads(ofRuntime, runtimeapi.RuntimeServiceClient.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: c.Pod.ID, Verbose: true}))
	add("ListContainers", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ListContainers, &runtimeapi.ListContainersRequest{}))
	add("ContainerStatus", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true}))
	add("ContainerStats", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: c.ID}))
	add("ListContainerStats", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ListContainerStats, &runtimeapi.ListContainerStatsRequest{}))
	add("PodSandboxStats", reads(ofRuntime, runtimeapi.RuntimeServiceClient.PodSandboxStats, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: c.Pod.ID}))
	add("ListPodSandboxStats", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{}))
	add("ListMetricDescriptors", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ListMetricDescriptors, &runtimeapi.ListMetricDescriptorsRequest{}))
	add("ListPodSandboxMetrics", reads(ofRuntime, runtimeapi.RuntimeServiceClient.ListPodSandboxMetrics, &runtimeapi.ListPodSandboxMetricsRequest{}))
	add("ListImages", reads(ofImages, runtimeapi.ImageServiceClient.ListImages, &runtimeapi.ListImagesRequest{}))
	add("ImageStatus", reads(ofImages, runtimeapi.ImageServiceClient.ImageStatus, &runtimeapi.ImageStatusRequest{Image: c.Config.Image, Verbose: true}))
	add("ImageFsInfo", reads(ofImages, runtimeapi.ImageServiceClient.ImageFsInfo, &runtimeapi.ImageFsInfoRequest{}))
	add("StreamPodSandboxes", drains(ofRuntime, runtimeapi.RuntimeServiceClient.StreamPodSandboxes, &runtimeapi.StreamPodSandboxesRequest{}))
	add("StreamContainers", drains(ofRuntime, runtimeapi.RuntimeServiceClient.StreamContainers, &runtimeapi.StreamContainersRequest{}))
	add("StreamContainerStats", drains(ofRuntime, runtimeapi.RuntimeServiceClient.StreamContainerStats, &runtimeapi.StreamContainerStatsRequest{}))
	add("StreamPodSandboxStats", drains(ofRuntime, runtimeapi.RuntimeServiceClient.StreamPodSandboxStats, &runtimeapi.StreamPodSandboxStatsRequest{}))
	add("StreamPodSandboxMetrics", drains(ofRuntime, runtimeapi.RuntimeServiceClient.StreamPodSandboxMetrics, &runtimeapi.StreamPodSandboxMetricsRequest{}))
	add("StreamImages", drains(ofImages, runtimeapi.ImageServiceClient.StreamImages, &runtimeapi.StreamImagesRequest{}))
	return all
}

func ofRuntime(via *berthd.Client) runtimeapi.RuntimeServiceClient { return via.Runtime }

func ofImages(via *berthd.Client) runtimeapi.ImageServiceClient { return via.Images }

// reads calls a method whose answer tells nothing here.
func reads[S, R, A any](service func(*berthd.Client) S, method func(S, context.Context, R, ...grpc.CallOption) (A, error), request R) func(context.Context, *berthd.Client) error {
	return func(ctx context.Context, via *berthd.Client) error {
		_, err := method(service(via), ctx, request)
		return err
	}
}

// drains calls a method that streams its answer.
func drains[S, R, M any](service func(*berthd.Client) S, method func(S, context.Context, R, ...grpc.CallOption) (grpc.ServerStreamingClient[M], error), request R) func(context.Context, *berthd.Client) error {
	return func(ctx context.Context, via *berthd.Client) error {
		stream, err := method(service(via), ctx, request)
		return drain(stream, err)
	}
}

// drain reads a stream to its end.
func drain[M any](s interface{ Recv() (M, error) }, err error) error {
	if err != nil {
		return err
	}
	for {
		if _, err := s.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
