package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/berthd/berth/cni/conflist"
)

// Dispatcher is the Network that a daemon uses: for each new pod it takes the engine that the host's configuration asks for at that
// moment, for each attachment the one that made it.
type Dispatcher struct {
	cfg     Config
	folder  atomic.Pointer[conflist.Folder]
	plugins *plugins
	live    atomic.Pointer[Live]

	rendering sync.Mutex // held while a configuration is written

	mu      sync.Mutex
	bridges map[string]*bridge // by name: the configured one, and those that older attachments name
}

var _ Network = (*Dispatcher)(nil)

// Open checks cfg and makes the cache folder. Nothing else is made before the first pod needs it. The caller calls GC once it knows
// its attachments, and Close at the end.
func Open(_ context.Context, cfg Config) (*Dispatcher, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	p, err := newPlugins(cfg)
	if err != nil {
		return nil, err
	}
	d := &Dispatcher{cfg: cfg, plugins: p, bridges: make(map[string]*bridge)}
	d.folder.Store(conflist.Open(cfg.ConfDir))
	d.Reconfigure(cfg.Live)
	return d, nil
}

// Reconfigure changes where configurations and plugins are for what comes next. Calls under way end as they began.
func (d *Dispatcher) Reconfigure(l Live) {
	l = l.withDefaults()
	if d.folder.Load().Path() != l.ConfDir { // else it keeps what it knows
		d.folder.Store(conflist.Open(l.ConfDir))
	}
	d.plugins.setTools(l)
	d.live.Store(&l)
}

// Plan implements Network.
func (d *Dispatcher) Plan(_ context.Context, req Request) (Attachment, error) {
	req, err := req.normalize()
	if err != nil {
		return Attachment{}, err
	}
	list, err := d.configuration()
	if err != nil {
		return Attachment{}, err
	}
	if list != nil {
		return d.plugins.plan(list, req)
	}
	b, err := d.builtIn()
	if err != nil {
		return Attachment{}, err
	}
	return b.plan(req)
}

// Add implements Network.
func (d *Dispatcher) Add(ctx context.Context, req Request, a *Attachment) error {
	req, err := req.normalize()
	if err != nil {
		return err
	}
	if req.SandboxID != a.SandboxID || req.IfName != a.IfName || req.NetNS != a.NetNS {
		return invalid("attachment of pod", a.SandboxID, "is not what was planned for the request")
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	switch a.Engine {
	case EngineCNI:
		return wrap("add", *a, d.plugins.add(ctx, a))
	case EngineBridge:
		b, err := d.bridge(a.Network)
		if err != nil {
			return err
		}
		return wrap("add", *a, b.add(ctx, req, a))
	}
	return unknownEngine(*a)
}

// Del implements Network.
func (d *Dispatcher) Del(ctx context.Context, a Attachment) error {
	switch a.Engine {
	case EngineCNI:
		return wrap("delete", a, d.plugins.del(ctx, a))
	case EngineBridge:
		b, err := d.bridge(a.Network)
		if err != nil {
			return err
		}
		return wrap("delete", a, b.del(ctx, a))
	}
	return unknownEngine(a)
}

// Check implements Network.
func (d *Dispatcher) Check(ctx context.Context, a Attachment) error {
	switch a.Engine {
	case EngineCNI:
		return d.plugins.check(ctx, a)
	case EngineBridge:
		b, err := d.bridge(a.Network)
		if err != nil {
			return err
		}
		return b.check(a)
	}
	return unknownEngine(a)
}

// Status implements Network.
func (d *Dispatcher) Status(ctx context.Context) error {
	list, err := d.configuration()
	if err != nil {
		return err
	}
	if list != nil {
		return d.plugins.ready(ctx, list)
	}
	b, err := d.builtIn()
	if err != nil {
		return err
	}
	return b.ready()
}

// Conditions returns what does not work on this host although the network is ready. It is cheap to call again and again.
func (d *Dispatcher) Conditions(_ context.Context) []Condition {
	if list, err := d.configuration(); list != nil || err != nil {
		return nil
	}
	b, err := d.builtIn()
	if err != nil {
		return nil
	}
	return b.conditions()
}

// Engine returns the name of the engine that the next pod gets, and of its network: the bridge's or the configuration's.
func (d *Dispatcher) Engine() (engine, network string) {
	if list, err := d.configuration(); err == nil && list != nil {
		return EngineCNI, list.Name
	}
	return EngineBridge, d.cfg.Bridge.Name
}

// GC implements Network.
func (d *Dispatcher) GC(ctx context.Context, valid []Attachment) error {
	pluginPods := make(map[string]Attachment)
	bridgePods := make(map[string]map[string]Attachment) // by network
	for _, a := range valid {
		switch a.Engine {
		case EngineCNI:
			pluginPods[a.SandboxID] = a
		case EngineBridge:
			if bridgePods[a.Network] == nil {
				bridgePods[a.Network] = make(map[string]Attachment)
			}
			bridgePods[a.Network][a.SandboxID] = a
		}
	}
	list, err := d.folder.Load().Current() // a broken configuration does not keep the rest from being freed
	errs := []error{d.plugins.gc(ctx, list, pluginPods)}
	if err != nil {
		errs = append(errs, err)
	}
	names, err := d.networks()
	errs = append(errs, err)
	for name := range bridgePods {
		names[name] = true
	}
	for name := range names {
		b, err := d.bridge(name)
		if err == nil {
			err = b.gc(ctx, bridgePods[name])
		}
		if err == nil && name != d.cfg.Bridge.Name && len(bridgePods[name]) == 0 {
			err = d.retire(name)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("collect network garbage: %w", err)
	}
	return nil
}

// networks returns the bridges that have ever had pods of this daemon.
func (d *Dispatcher) networks() (map[string]bool, error) {
	names := make(map[string]bool)
	entries, err := os.ReadDir(d.cfg.CacheDir)
	if err != nil {
		return names, fmt.Errorf("list networks: %w", err)
	}
	for _, e := range entries {
		if e.IsDir() && e.Name() != resultsFolder {
			names[e.Name()] = true
		}
	}
	return names, nil
}

// retire ends a bridge that is no longer configured and has no pods.
func (d *Dispatcher) retire(name string) error {
	d.mu.Lock()
	b := d.bridges[name]
	delete(d.bridges, name)
	d.mu.Unlock()
	if b == nil {
		return nil
	}
	if err := b.close(); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(d.cfg.CacheDir, name))
}

// Idle waits until the links and addresses of all ended attachments are free.
func (d *Dispatcher) Idle(ctx context.Context) error {
	for _, b := range d.open() {
		if err := b.reaper.idle(ctx); err != nil {
			return fmt.Errorf("wait for the end of links: %w", err)
		}
	}
	return nil
}

// Close ends the goroutines, after they have deleted what is queued. Attachments stay; a bridge without any goes. No other method may
// be called afterwards, but Close again, which does nothing.
func (d *Dispatcher) Close() error {
	var errs []error
	for _, b := range d.open() {
		errs = append(errs, b.close())
	}
	d.mu.Lock()
	clear(d.bridges)
	d.mu.Unlock()
	if err := d.plugins.home.Close(); !errors.Is(err, os.ErrClosed) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d *Dispatcher) open() []*bridge {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]*bridge, 0, len(d.bridges))
	for _, b := range d.bridges {
		list = append(list, b)
	}
	return list
}

// configuration returns the host's CNI configuration, nil when there is none, or an ErrNotReady.
func (d *Dispatcher) configuration() (*conflist.List, error) {
	list, err := d.folder.Load().Current()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
	return list, nil
}

// builtIn returns the configured bridge.
func (d *Dispatcher) builtIn() (*bridge, error) {
	if d.cfg.Bridge.Disabled {
		return nil, fmt.Errorf("%w: no CNI configuration in %s, and the built-in bridge is disabled", ErrNotReady, d.folder.Load().Path())
	}
	return d.bridge(d.cfg.Bridge.Name)
}

// bridge returns the engine of the bridge with that name.
func (d *Dispatcher) bridge(name string) (*bridge, error) {
	cfg := d.cfg.Bridge
	if name != cfg.Name {
		// Of one that was configured earlier only the name counts: nothing is added to it.
		var err error
		if cfg, err = (BridgeConfig{Name: name, Subnets: cfg.Subnets}).withDefaults(""); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if b := d.bridges[name]; b != nil {
		return b, nil
	}
	b, err := newBridge(cfg, d.cfg, d.plugins.home)
	if err != nil {
		return nil, err
	}
	d.bridges[name] = b
	return b, nil
}

func wrap(verb string, a Attachment, err error) error {
	if err != nil {
		return fmt.Errorf("%s attachment of pod %s to %s: %w", verb, a.SandboxID, a.Network, err)
	}
	return nil
}

func unknownEngine(a Attachment) error {
	return invalid("engine", a.Engine, "of pod "+a.SandboxID+"'s attachment is unknown")
}
