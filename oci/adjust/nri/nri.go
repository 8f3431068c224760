package nri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator"
	"github.com/containerd/ttrpc"

	"github.com/berthd/berth/oci/adjust"
)

// Defaults of Config.
const (
	DefaultPluginPath          = adaptation.DefaultPluginPath
	DefaultConfigPath          = adaptation.DefaultPluginConfigPath
	DefaultRegistrationTimeout = adaptation.DefaultPluginRegistrationTimeout
	DefaultRequestTimeout      = adaptation.DefaultPluginRequestTimeout
	DefaultSyncTimeout         = 5 * time.Second
)

// Validator is what the built-in validator refuses of other plugins' adjustments.
type Validator = validator.DefaultValidatorConfig

// Config says where plugins are, and how long they may take.
type Config struct {
	Version                string // the daemon's, as plugins are told
	Socket                 string
	PluginPath, ConfigPath string
	// Plugins that do not register, or answer, for so long are dropped. Being synchronized has a time of its own: a plugin may have much to do then.
	RegistrationTimeout, RequestTimeout, SyncTimeout time.Duration
	Validator                                        Validator
	// Devices gives a container the CDI devices that a request names; nil: there are none.
	Devices func(ctx context.Context, c *adjust.Container) error
	// BlockIO gives a container a class of block I/O; nil: there are none.
	BlockIO func(ctx context.Context, c *adjust.Container, class string) error
	// Log takes what the library has to say.
	Log Logger
}

// Plugins are the plugins of one daemon.
type Plugins struct {
	cfg     Config
	runtime adjust.Runtime
	library atomic.Pointer[adaptation.Adaptation] // nil before Start
	count   atomic.Int64                          // registered
	joining atomic.Int64                          // being synchronized

	started    chan struct{} // closed when Start returns
	background sync.WaitGroup
	ctx        context.Context //nolint:containedctx // ends with Close
	cancel     context.CancelFunc
}

// New makes what Start starts.
func New(cfg Config) *Plugins {
	p := &Plugins{cfg: cfg, started: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

// Start starts the plugins of the folder, and lets others connect. A plugin that cannot be started is left out. It is called once.
func (p *Plugins) Start(runtime adjust.Runtime) (err error) {
	p.runtime = runtime
	defer close(p.started)
	folder, done, err := p.startable()
	if err != nil {
		return fmt.Errorf("find plugins: %w", err)
	}
	defer func() { err = errors.Join(err, done()) }()
	nrilog.Set(logger{p.cfg.Log})
	adaptation.SetPluginRegistrationTimeout(p.cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(max(p.cfg.RequestTimeout, p.cfg.SyncTimeout)) // intercept has the rest
	library, err := adaptation.New("berth", p.cfg.Version, p.synchronize, p.unsolicited,
		adaptation.WithSocketPath(p.cfg.Socket), adaptation.WithPluginPath(folder), adaptation.WithPluginConfigPath(p.cfg.ConfigPath),
		adaptation.WithDefaultValidator(&p.cfg.Validator), adaptation.WithMetrics(metrics{p}),
		adaptation.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(p.intercept)},
			[]ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(p.interceptPlugin)}))
	if err != nil {
		return fmt.Errorf("prepare plugins: %w", err)
	}
	p.library.Store(library)
	if err := library.Start(); err != nil {
		return fmt.Errorf("start plugins: %w", err)
	}
	if err := os.Chmod(p.cfg.Socket, 0o600); err != nil { // the folder is the daemon's alone
		return errors.Join(fmt.Errorf("start plugins: %w", err), p.Close(context.Background()))
	}
	return nil
}

// Close ends the plugins that Start started, and lets no more connect. It waits for what plugins are asked, but not longer than ctx allows.
func (p *Plugins) Close(ctx context.Context) error {
	p.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if library := p.library.Load(); library != nil {
			library.Stop()
		}
		p.background.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end plugins: %w", ctx.Err())
	}
}

// Active tells whether there is a plugin to be told. What happens while it is false is seen by a plugin that comes later.
func (p *Plugins) Active() bool { return p.count.Load() > 0 || p.joining.Load() > 0 }

// Enter keeps plugins from joining until leave, for at most as long as one that is joining takes.
func (p *Plugins) Enter() (leave func()) {
	library := p.library.Load()
	if library == nil {
		return func() {}
	}
	return library.BlockPluginSync().Unblock
}

// synchronize tells a plugin that joins of all that there is. Its updates are done behind the call, once it has joined: what they wait for may
// wait for plugins itself.
func (p *Plugins) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	p.joining.Add(1)
	sandboxes, containers := p.runtime.Present()
	pods := make([]*api.PodSandbox, len(sandboxes))
	for i, s := range sandboxes {
		pods[i] = sandboxOf(s)
	}
	all := make([]*api.Container, len(containers))
	for i, c := range containers {
		all[i] = containerOf(c)
	}
	asked, err := tell(ctx, pods, all)
	if err != nil {
		p.joining.Add(-1)
		return err
	}
	p.background.Go(func() {
		<-p.started
		p.Enter()() // now it has joined
		p.joining.Add(-1)
		updates, err := updatesOf(asked, nil)
		if err != nil {
			p.cfg.Log(LogError, "A plugin that joined asked for an update that cannot be done: "+err.Error())
		}
		for _, u := range updates {
			if err := p.change(p.ctx, u); err != nil && !u.MayFail {
				p.cfg.Log(LogError, "Could not do what a plugin asked for: "+err.Error())
			}
		}
	})
	return nil
}

// unsolicited does updates that a plugin asks for by itself, and returns those that failed.
func (p *Plugins) unsolicited(ctx context.Context, asked []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	for _, one := range asked {
		updates, err := updatesOf([]*api.ContainerUpdate{one}, nil)
		for _, u := range updates {
			err = errors.Join(err, p.change(ctx, u))
		}
		if err == nil {
			continue
		}
		p.cfg.Log(LogError, "Could not do what a plugin asked for: "+err.Error())
		if !one.GetIgnoreFailure() {
			failed = append(failed, one)
		}
	}
	return failed, nil
}

// change does one update. A plugin waits for it only for a part of its own time: what the update waits for may wait for the plugin.
func (p *Plugins) change(ctx context.Context, u adjust.Update) error {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.RequestTimeout/2)
	defer cancel()
	return p.runtime.Change(ctx, u)
}

// metrics learns how many plugins there are.
type metrics struct{ p *Plugins }

func (m metrics) UpdatePluginCount(n int)                                                  { m.p.count.Store(int64(n)) }
func (metrics) RecordPluginInvocation(string, string, error)                               {}
func (metrics) RecordPluginLatency(string, string, time.Duration)                          {}
func (metrics) RecordPluginAdjustments(string, string, *api.ContainerAdjustment, int, int) {}
