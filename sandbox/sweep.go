package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/sandbox/store"
)

// sweep removes what carries the daemon's mark and no record names. IDs are never used twice and enter memory before anything of theirs exists, so what is
// not in memory now belongs to nobody. After an error something may be left; it may be called again.
func (m *Manager) sweep(monitors []store.Process, runtimes []string) error {
	var errs []error
	for _, part := range []struct {
		name  string
		sweep func(context.Context) error
	}{
		{"monitors", func(context.Context) error { return m.sweepMonitors(monitors) }},
		{"runtime cgroups", func(ctx context.Context) error { return m.sweepRuntimes(ctx, runtimes) }},
		{"cgroups", m.sweepCgroups},
		{"network attachments", m.sweepNetwork},
		{"pins", m.sweepPins},
		{"state folders", m.sweepStateDirs},
		{"runtime states", m.sweepRuntimeStates},
		{"writable layers", m.sweepLayers},
	} {
		if err := errors.Join(m.effect("sweep "+part.name), m.ctx.Err()); err != nil {
			return err
		}
		// What hangs in one part does not keep the others from being done.
		err := protect(func() error {
			ctx, cancel := context.WithTimeout(m.ctx, sweepTimeout)
			defer cancel()
			return part.sweep(ctx)
		})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.name, err))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) knowsPod(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pods[id] != nil
}

func (m *Manager) knowsContainer(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.containers[id] != nil
}

// swept says in the log what was removed.
func (m *Manager) swept(kind, name string) {
	m.logger(m.ctx).Info("Removed what no record names", "kind", kind, "name", name)
}

// runningMonitors lists what runs in the monitors' cgroup, with start times.
func (m *Manager) runningMonitors() ([]store.Process, error) {
	pids, err := m.cfg.Cgroups.PIDs(m.cfg.Cgroups.MonitorPath())
	if err != nil {
		return nil, err
	}
	var all []store.Process
	for _, pid := range pids {
		if pid == os.Getpid() { // version 1 lists the daemon for the one thread that starts monitors
			continue
		}
		if started, _, err := processStat(pid); err == nil {
			all = append(all, store.Process{PID: pid, StartTime: started})
		}
	}
	return all, nil
}

// sweepMonitors kills monitors that were there before this daemon and that no sandbox has; a first process of a shared pid namespace is its
// monitor's child, and goes with it.
func (m *Manager) sweepMonitors(before []store.Process) error {
	owned := map[int]bool{}
	m.mu.RLock()
	for _, p := range m.pods {
		owned[p.rec.Monitor.PID] = true
		if p.link != nil {
			owned[p.link.process.PID] = true
		}
	}
	m.mu.RUnlock()
	var errs []error
	for _, process := range before {
		fd, err := openProcess(process)
		if errors.Is(err, os.ErrProcessDone) {
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("open monitor %d: %w", process.PID, err))
			continue
		}
		_, parent, err := processStat(process.PID)
		if err != nil && !isGone(err) {
			errs = append(errs, fmt.Errorf("look at monitor %d: %w", process.PID, err))
		}
		if err == nil && !owned[process.PID] && !owned[parent] {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				errs = append(errs, fmt.Errorf("kill monitor %d: %w", process.PID, err))
			}
			m.swept("monitor", fmt.Sprint(process.PID))
		}
		unix.Close(fd)
	}
	return errors.Join(errs...)
}

// sweepRuntimes ends what an earlier daemon had other runtimes do: execs, and starts of containers that are gone. Those of containers that are
// known were ended with their recovery.
func (m *Manager) sweepRuntimes(ctx context.Context, before []string) error {
	var errs []error
	for _, name := range before {
		if path := m.cfg.Cgroups.RuntimePath(name); !m.knowsContainer(name) {
			errs = append(errs, m.cfg.Cgroups.Kill(path), m.cfg.Cgroups.Remove(ctx, path))
		}
	}
	return errors.Join(errs...)
}

// sweepRuntimeStates removes what other runtimes keep about containers that are gone.
func (m *Manager) sweepRuntimeStates(context.Context) error {
	folders, err := filepath.Glob(filepath.Join(m.cfg.State, "runtimes", "*", "*"))
	errs := []error{err}
	for _, path := range folders {
		if id := filepath.Base(path); store.ValidID(id) && !m.knowsContainer(id) {
			m.swept("runtime state", path)
			errs = append(errs, external.RemoveState(path))
		}
	}
	return errors.Join(errs...)
}

// sweepCgroups removes the sandboxes' and containers' cgroups of the own tree, and scopes. Those below other parents are named by the containers' records.
func (m *Manager) sweepCgroups(ctx context.Context) error {
	sandboxes, err := m.cfg.Cgroups.Sandboxes()
	if err != nil {
		return err
	}
	var errs []error
	for sandboxID, path := range sandboxes {
		if !store.ValidID(sandboxID) {
			continue
		}
		if m.knowsPod(sandboxID) {
			errs = append(errs, m.sweepContainerCgroups(ctx, path))
			continue
		}
		m.swept("cgroup", path)
		errs = append(errs, m.cfg.Cgroups.Kill(path), m.cfg.Cgroups.Remove(ctx, path))
	}
	return errors.Join(errs...)
}

func (m *Manager) sweepContainerCgroups(ctx context.Context, parent string) error {
	containers, err := m.cfg.Cgroups.List(parent)
	errs := []error{err}
	for _, containerID := range containers {
		if path := parent + "/" + containerID; store.ValidID(containerID) && !m.knowsContainer(containerID) {
			m.swept("cgroup", path)
			errs = append(errs, m.cfg.Cgroups.Kill(path), m.cfg.Cgroups.Remove(ctx, path))
		}
	}
	return errors.Join(errs...)
}

// sweepNetwork has the network free what no sandbox has.
func (m *Manager) sweepNetwork(ctx context.Context) error {
	m.adding.Lock()
	defer m.adding.Unlock()
	return m.freeNetwork(ctx)
}

// freeNetwork tells the network what sandboxes have. Preconditions: m.adding is held for writing.
func (m *Manager) freeNetwork(ctx context.Context) error {
	m.mu.RLock()
	var valid []cni.Attachment
	for _, p := range m.pods {
		if p.attachment != nil {
			valid = append(valid, *p.attachment)
		}
	}
	m.mu.RUnlock()
	return m.cfg.Network.GC(ctx, valid)
}

func (m *Manager) sweepPins(context.Context) error {
	ids, err := m.pins.List()
	errs := []error{err}
	for _, sandboxID := range ids {
		if !m.knowsPod(sandboxID) {
			m.swept("pin", m.pins.Path(sandboxID))
			errs = append(errs, m.pins.Unpin(sandboxID))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) sweepStateDirs(context.Context) error {
	entries, err := os.ReadDir(filepath.Join(m.cfg.State, "pods"))
	errs := []error{err}
	for _, e := range entries {
		if store.ValidID(e.Name()) && !m.knowsPod(e.Name()) {
			m.swept("state folder", e.Name())
			errs = append(errs, m.removeStateDir(e.Name()))
		}
	}
	return errors.Join(errs...)
}

func (m *Manager) sweepLayers(ctx context.Context) error {
	keys, err := m.cfg.RootFS.Keys(ctx)
	if err != nil {
		return fmt.Errorf("list writable layers: %w", err)
	}
	var errs []error
	for _, key := range slices.DeleteFunc(keys, m.knowsContainer) {
		m.swept("writable layer", key)
		errs = append(errs, m.cfg.RootFS.Release(ctx, key))
	}
	return errors.Join(errs...)
}
