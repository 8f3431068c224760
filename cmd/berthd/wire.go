package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cmd/berthd/prometheus"
	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cri"
	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/oci/apparmor"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/spec/host"
	"github.com/berthd/berth/sandbox"
)

// parts are what the daemon is made of.
type parts struct {
	images   *imageservice.Service
	network  *cni.Dispatcher
	manager  *sandbox.Manager
	streams  *streaming.Server
	calls    *prometheus.Calls // nil: nobody counts
	closers  []func(context.Context) error
	instance string
	appArmor string // the profile of containers that name none, or "disabled"
	driver   runtimeapi.CgroupDriver
	users    error // why pods cannot have user namespaces
}

// openParts opens images, network and sandboxes, in the order in which they need each other. When one cannot be opened, those
// before it are closed.
func openParts(ctx context.Context, f flags, c config, instance string) (p *parts, err error) {
	p = &parts{instance: instance}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close(context.WithoutCancel(ctx)))
		}
	}()
	c.images.Root = filepath.Join(f.root, "images")
	p.images, err = imageservice.Open(ctx, c.images)
	if err != nil {
		return p, fmt.Errorf("open images: %w", err)
	}
	p.closeWith(func(context.Context) error { return p.images.Close() })
	for _, problem := range p.images.Problems() {
		klog.FromContext(ctx).Error(problem, "Put an image aside")
	}
	p.network, err = cni.Open(ctx, cni.Config{
		Live: c.network, CacheDir: filepath.Join(f.root, "network"), Instance: instance,
		Bridge: cni.BridgeConfig{Name: c.bridge, Subnets: c.subnets, MTU: c.mtu},
	})
	if err != nil {
		return p, fmt.Errorf("open network: %w", err)
	}
	p.closeWith(func(context.Context) error { return p.network.Close() })
	cgroups, err := openCgroups(ctx, c.cgroupDriver, instance)
	if err != nil {
		return p, fmt.Errorf("open cgroups: %w", err)
	}
	p.closeWith(func(context.Context) error { return cgroups.Close() })
	p.driver = toldDriver(cgroups)
	spawner, err := newSpawner(c.monitor, cgroups)
	if err != nil {
		return p, err
	}
	p.closeWith(func(context.Context) error { return spawner.close() })
	facts, err := host.Read()
	if err != nil {
		return p, fmt.Errorf("look at the host: %w", err)
	}
	if err := c.adjust.complete(&facts); err != nil {
		return p, fmt.Errorf("look at the host: %w", err)
	}
	p.appArmor = "disabled"
	if facts.AppArmor.Enabled {
		p.appArmor = apparmor.Name
	}
	if p.users = engine.ProbeUserNamespaces(filepath.Join(f.root, "images", "ingest"), f.state); p.users != nil {
		klog.FromContext(ctx).Info("Pods cannot have user namespaces", "err", p.users)
	}
	placeRuntimes(c.runtimes, f.state)
	c.logMissing(ctx)
	plugins := c.adjust.prepare(ctx, f.state)
	p.manager, err = sandbox.Open(ctx, sandbox.Config{
		Root: f.root, State: f.state, Instance: instance, Network: p.network, RootFS: rootFS{p.images},
		Spawner: spawner, Cgroups: cgroups, Host: facts, UserNamespaces: p.users, Handlers: c.runtimes, Prober: c.prober,
		NetworkRules: sandbox.NetworkRules{PrimaryIP: c.primaryIP, CollectInterval: c.gcInterval},
		Stage:        sandbox.Stage{Adjusters: c.adjust.adjusters(plugins), Plugins: plugins.told()},
	})
	if err != nil {
		return p, fmt.Errorf("open sandboxes: %w", err)
	}
	p.closeWith(p.manager.Close)
	if err := plugins.start(p.manager); err != nil {
		return p, err
	}
	p.closeWith(plugins.close)
	if p.streams, err = c.streaming.listen(ctx, p.manager); err != nil {
		return p, err
	}
	p.closeWith(p.streams.Shutdown)
	return p, p.serveMetrics(ctx, c.metrics)
}

// closeWith remembers how a part is closed.
func (p *parts) closeWith(closer func(context.Context) error) { p.closers = append(p.closers, closer) }

// close closes the parts, the last first. Pods run on.
func (p *parts) close(ctx context.Context) error {
	var all []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		all = append(all, p.closers[i](ctx))
	}
	p.closers = nil
	return errors.Join(all...)
}

// handlers are what Status tells of the handlers.
func (p *parts) handlers(ctx context.Context, c config) []cri.Handler {
	native := runtime.NativeFeatures()
	native.UserNamespaces = p.users == nil
	return c.handlers(context.WithoutCancel(ctx), native)
}

// server makes the CRI server of the parts.
func (p *parts) server(ctx context.Context, c config, facts func() map[string]string) *cri.Server {
	return cri.NewServer(cri.Config{
		Pods: p.manager, Containers: p.manager, Images: p.images, Network: network{p.network},
		Stats: p.manager, Limits: p.manager, Layers: p.images, Events: p.manager, Streaming: p.streams,
		Handlers: p.handlers(ctx, c), Version: semanticVersion(version), Logger: klog.FromContext(ctx), Facts: facts, Observe: p.observer(), CgroupDriver: p.driver,
	})
}

// network gives the CRI server what it wants to know of the network.
type network struct{ *cni.Dispatcher }

// SetPodRanges tells the network the ranges of this node's pods.
func (n network) SetPodRanges(ctx context.Context, ranges []netip.Prefix) (string, error) {
	effect, err := n.Dispatcher.SetPodRanges(ctx, ranges)
	return string(effect), err
}

// Warnings are the network's conditions.
func (n network) Warnings(ctx context.Context) []cri.Warning {
	conditions := n.Conditions(ctx)
	all := make([]cri.Warning, len(conditions))
	for i, c := range conditions {
		all[i] = cri.Warning{Type: c.Type, Message: c.Message}
	}
	return all
}

// rootFS gives sandboxes the root filesystems of images: the two packages do not know each other.
type rootFS struct{ images *imageservice.Service }

// Prepare makes a writable layer on an image and lists its mounts.
func (r rootFS) Prepare(ctx context.Context, key, imageID string, volumes []string) (runtime.Trees, error) {
	mounts, err := r.images.Prepare(ctx, key, imageID, volumes...)
	if err != nil {
		return runtime.Trees{}, err
	}
	trees := runtime.Trees{Root: make([]runtime.Mount, len(mounts)), Images: map[string][]runtime.Mount{}}
	for i, m := range mounts {
		trees.Root[i] = runtime.Mount{Type: m.Type, Source: m.Source, Options: m.Options}
	}
	if len(volumes) == 0 {
		return trees, nil
	}
	views, err := r.images.Volumes(key)
	if err != nil {
		return runtime.Trees{}, err
	}
	for i, id := range volumes {
		trees.Images[id] = []runtime.Mount{{Type: views[i].Type, Source: views[i].Source, Options: views[i].Options}}
	}
	return trees, nil
}

// Release gives a writable layer back.
func (r rootFS) Release(ctx context.Context, key string) error { return r.images.Release(ctx, key) }

// Keys are the writable layers that there are.
func (r rootFS) Keys(context.Context) ([]string, error) { return r.images.Keys() }
