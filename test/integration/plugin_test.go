package integration_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"

	"github.com/berthd/berth/test/harness"
)

// pluginRole is the environment variable that makes this test program a plugin; pre-installed plugins know themselves by the library's.
const pluginRole = "BERTH_TEST_PLUGIN"

// nodePlugin is a plugin over the real socket. Functions that are nil do nothing.
type nodePlugin struct {
	api  stub.Stub
	name string

	synchronize func([]*api.PodSandbox, []*api.Container) []*api.ContainerUpdate
	create      func(*api.PodSandbox, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	update      func(*api.Container, *api.LinuxResources) []*api.ContainerUpdate
	told        func(event string) error
	policy      api.FailurePolicy
	closed      chan struct{}
	synced      chan struct{}

	mu         sync.Mutex
	events     []string
	pods       []string
	containers []string
}

// validating is a plugin that is asked what it thinks of the others' adjustments.
type validating struct {
	*nodePlugin
	validate func(*api.ValidateContainerAdjustmentRequest) error
}

func (v validating) ValidateContainerAdjustment(_ context.Context, r *api.ValidateContainerAdjustmentRequest) error {
	return v.validate(r)
}

// join connects a plugin to the daemon and waits until it is synchronized.
func join(d *harness.Daemon, name string, change func(*nodePlugin)) *nodePlugin {
	d.T.Helper()
	p, err := tryJoin(d, name, change, nil)
	if err != nil {
		d.T.Fatalf("plugin %s: %v", name, err)
	}
	return p
}

func tryJoin(d *harness.Daemon, name string, change func(*nodePlugin), validate func(*api.ValidateContainerAdjustmentRequest) error) (*nodePlugin, error) {
	d.T.Helper()
	p := &nodePlugin{name: name, closed: make(chan struct{}), synced: make(chan struct{})}
	if change != nil {
		change(p)
	}
	var all any = p
	if validate != nil {
		all = validating{p, validate}
	}
	var err error
	p.api, err = stub.New(all, stub.WithPluginIdx(name[:2]), stub.WithPluginName(name[3:]), stub.WithSocketPath(pluginSocket(d)),
		stub.WithOnClose(sync.OnceFunc(func() { close(p.closed) })), stub.WithLogger(quiet{}), stub.WithFailurePolicy(&p.policy))
	if err != nil {
		return nil, err
	}
	if err := p.api.Start(d.Context()); err != nil {
		return nil, err
	}
	d.T.Cleanup(p.api.Stop)
	select {
	case <-p.synced:
		return p, nil
	case <-p.closed:
		return nil, errors.New("the connection was closed before it was synchronized")
	case <-time.After(2 * harness.Timeout):
		return nil, errors.New("it was not synchronized")
	}
}

func pluginSocket(d *harness.Daemon) string {
	return filepath.Join(d.Options().State, "nri.sock")
}

// saw waits until the plugin was told of events, each after the one before, of an object.
func (p *nodePlugin) saw(t testing.TB, d *harness.Daemon, want ...string) {
	t.Helper()
	d.Eventually(harness.Timeout, fmt.Sprintf("plugin %s is told of %q", p.name, want), func() bool {
		rest := want
		for _, e := range p.log() {
			if len(rest) > 0 && e == rest[0] {
				rest = rest[1:]
			}
		}
		return len(rest) == 0
	})
}

func (p *nodePlugin) log() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func (p *nodePlugin) note(event string) error {
	p.mu.Lock()
	p.events = append(p.events, event)
	p.mu.Unlock()
	if p.told == nil {
		return nil
	}
	return p.told(event)
}

func (p *nodePlugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) (updates []*api.ContainerUpdate, _ error) {
	p.mu.Lock()
	for _, pod := range pods {
		p.pods = append(p.pods, pod.GetId())
	}
	for _, c := range containers {
		p.containers = append(p.containers, c.GetId())
	}
	p.mu.Unlock()
	if p.synchronize != nil {
		updates = p.synchronize(pods, containers)
	}
	close(p.synced)
	return updates, nil
}

func (p *nodePlugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RunPodSandbox " + pod.GetName())
}

func (p *nodePlugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, r *api.LinuxResources) error {
	return p.note(fmt.Sprintf("UpdatePodSandbox %s to %d shares", pod.GetName(), r.GetCpu().GetShares().GetValue()))
}

func (p *nodePlugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("PostUpdatePodSandbox " + pod.GetName())
}

func (p *nodePlugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("StopPodSandbox " + pod.GetName())
}

func (p *nodePlugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.note("RemovePodSandbox " + pod.GetName())
}

func (p *nodePlugin) CreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if err := p.note("CreateContainer " + c.GetName()); err != nil || p.create == nil {
		return nil, nil, err
	}
	return p.create(pod, c)
}

func (p *nodePlugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("PostCreateContainer " + c.GetName())
}

func (p *nodePlugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("StartContainer " + c.GetName())
}

func (p *nodePlugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("PostStartContainer " + c.GetName())
}

func (p *nodePlugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	if err := p.note("UpdateContainer " + c.GetName()); err != nil || p.update == nil {
		return nil, err
	}
	return p.update(c, r), nil
}

func (p *nodePlugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("PostUpdateContainer " + c.GetName())
}

func (p *nodePlugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.note("StopContainer " + c.GetName())
}

func (p *nodePlugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.note("RemoveContainer " + c.GetName())
}

// quiet logs nothing.
type quiet struct{}

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// process is the plugin that this test program is when it is started as one: it puts its configuration into containers' environment, and stays
// in the creation of those that are named for that.
type process struct{ config string }

func (p *process) Configure(_ context.Context, config, _, _ string) (stub.EventMask, error) {
	p.config = config
	return 0, nil
}

func (p *process) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if c.GetName() == "deadly" {
		select {} // until it is killed
	}
	a := &api.ContainerAdjustment{}
	a.AddEnv("PLUGIN", "config="+p.config)
	return a, nil, nil
}

// bePlugin is the life of that program.
func bePlugin() {
	options := []stub.Option{stub.WithLogger(quiet{})}
	if socket := os.Getenv(pluginRole); socket != "" { // else the daemon has started it, and connected it
		options = append(options, stub.WithSocketPath(socket), stub.WithPluginIdx("50"), stub.WithPluginName("process"))
	}
	s, err := stub.New(&process{}, options...)
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "plugin:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
