package main

import (
	"context"
	"errors"
	"maps"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cri"
)

// reloader takes changed configuration over while the daemon runs: all of it, or nothing when something in it is wrong.
type reloader struct {
	flags  flags
	parts  *parts
	server *cri.Server

	mu      sync.Mutex
	started config // what the daemon was started with, for keys that need a restart
	now     config // what holds: of started, with the live keys of the last reload
	refused string // why the last reload was refused
}

// run reloads on each signal until ctx ends.
func (r *reloader) run(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		var clock unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock) // cannot fail
		tell(ctx, "RELOADING=1\nMONOTONIC_USEC="+strconv.FormatInt(clock.Nano()/int64(time.Microsecond), 10))
		status := "Configuration taken over"
		if err := r.reload(ctx); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") { // an error for each key
				klog.FromContext(ctx).Error(errors.New(line), "Refused a changed configuration: everything stays as it was")
			}
			status = "Refused a changed configuration, see the log"
		}
		tell(ctx, "READY=1\nSTATUS="+status)
	}
}

// tell tells the service manager, which may have gone.
func tell(ctx context.Context, state string) {
	if err := notify(state); err != nil {
		klog.FromContext(ctx).Info("Left the service manager waiting", "err", err)
	}
}

// reload reads the configuration and takes it over. After an error nothing has changed.
func (r *reloader) reload(ctx context.Context) (err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		r.refused = ""
		if err != nil {
			r.refused = err.Error()
		}
	}()
	c, err := r.flags.readConfig()
	if err != nil {
		return err
	}
	if err := setUpLog(c.verbosity); err != nil {
		return err
	}
	// From here on nothing fails.
	changed, _ := keys.Changed(r.now.values, c.values)
	_, later := keys.Changed(r.started.values, c.values)
	r.now.values, r.now.images, r.now.network = c.values, c.images, c.network
	r.now.runtimes, r.now.verbosity = c.runtimes, c.verbosity
	placeRuntimes(r.now.runtimes, r.flags.state)
	r.parts.images.Configure(c.images)
	r.parts.network.Reconfigure(c.network)
	r.parts.manager.SetHandlers(c.runtimes)
	r.server.SetHandlers(r.parts.handlers(ctx, r.now))
	if was := r.started.streaming; was.cert == c.streaming.cert && was.key == c.streaming.key {
		r.parts.streams.SetCertificate(c.streaming.certificate)
	}
	logger := klog.FromContext(ctx)
	logger.Info("Took the configuration over", "changed", strings.Join(changed, ", "), "paths", strings.Join(c.values.Files, ", "))
	if len(later) > 0 {
		logger.Info("Changed keys need a restart", "keys", strings.Join(later, ", "))
	}
	r.now.logMissing(ctx)
	return nil
}

// facts are what Status tells of the configuration.
func (r *reloader) facts() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, p := r.now, r.parts
	engine, name := p.network.Engine()
	facts := map[string]string{
		"root": r.flags.root, "state": r.flags.state, "socket": r.flags.socket, "instance": p.instance, "network": engine + " " + name,
		"cniConfDir": c.network.ConfDir, "streaming": p.streams.URL(), "registryConfigPath": c.images.HostsDir, "monitor": c.monitor,
		"verbosity": strconv.Itoa(c.verbosity), "appArmor": p.appArmor, "configFiles": strings.Join(c.values.Files, " "),
	}
	if r.refused != "" {
		maps.Copy(facts, map[string]string{"configRefused": r.refused})
	}
	if _, later := keys.Changed(r.started.values, c.values); len(later) > 0 {
		facts["configNeedsRestart"] = strings.Join(later, " ")
	}
	return facts
}

// readConfig reads the configuration that the command line names.
func (f flags) readConfig() (config, error) {
	read := readDefaultConfig
	if f.mustConfig {
		read = readConfig
	}
	c, err := read(f.config)
	if err != nil {
		return config{}, err
	}
	if f.verbosity >= 0 {
		c.verbosity = f.verbosity
	}
	return c, nil
}
