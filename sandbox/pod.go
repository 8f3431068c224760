package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/sandbox/store"
)

// pod is one sandbox.
type pod struct {
	id        string
	name      string // of podName
	config    *runtimeapi.PodSandboxConfig
	turn      turn
	recovered chan struct{} // closed once recovery has dealt with it, or at once
	create    *operation    // nil when it was loaded from its record

	write recordLock
	gauge gauge

	// Guarded by Manager.mu:
	rec        store.Pod
	attachment *cni.Attachment
	link       *link
	message    string
	updated    *runtimeapi.PodSandboxConfig // config with the resources of an update; nil: never updated
	told       podTold
	lingering  bool // its creation failed and could not be undone: its name is free, StopPod and RemovePod try again
}

var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// Paths of the sandbox's files.
func (m *Manager) stateDir(sandboxID string) string {
	return filepath.Join(m.cfg.State, "pods", sandboxID)
}
func (m *Manager) socket(sandboxID string) string {
	return filepath.Join(m.stateDir(sandboxID), "monitor.sock")
}
func (m *Manager) shm(sandboxID string) string { return filepath.Join(m.stateDir(sandboxID), "shm") }

// updatePod changes the record on disk and in memory. Memory is changed even when the disk refuses, so that a full disk does not keep a
// sandbox from being stopped; the error says so.
func (m *Manager) updatePod(p *pod, change func(*store.Pod)) error {
	p.write.Lock()
	defer p.write.Unlock()
	m.mu.RLock()
	rec := p.rec
	m.mu.RUnlock()
	change(&rec)
	var err error
	if !p.write.removed {
		if err = m.effect("write pod record"); err == nil {
			err = m.store.PutPod(&rec)
		}
	}
	m.mu.Lock()
	became := p.rec.State != rec.State && rec.State == store.Ready
	p.rec = rec
	if became {
		m.tell(p, p.id, EventCreated, EventStarted)
	}
	m.mu.Unlock()
	return err
}

// shown is the configuration as it is now. Preconditions: Manager.mu held.
func (p *pod) shown() *runtimeapi.PodSandboxConfig {
	if p.updated != nil {
		return p.updated
	}
	return p.config
}

// record is a copy of the sandbox's record.
func (m *Manager) record(p *pod) store.Pod {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return p.rec
}

// podState is the sandbox's state now.
func (m *Manager) podState(p *pod) PodState { return PodState(m.record(p).State) }

// setAttachment keeps a in memory; the record takes its JSON.
func (m *Manager) setAttachment(p *pod, a *cni.Attachment) (json.RawMessage, error) {
	var text json.RawMessage
	if a != nil {
		var err error
		if text, err = json.Marshal(a); err != nil {
			return nil, fmt.Errorf("encode attachment: %w", err)
		}
	}
	m.mu.Lock()
	p.attachment = a
	m.mu.Unlock()
	return text, nil
}

// containersOf lists the containers of a sandbox.
func (m *Manager) containersOf(p *pod) []*container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []*container
	for _, c := range m.containers {
		if c.pod == p {
			all = append(all, c)
		}
	}
	return all
}

// ancestors lists the cgroups above the containers' that this daemon has to make, or has made for another sandbox already. Each sandbox
// below them records them, so that the last one takes them away.
func (m *Manager) ancestors(parent string) []string {
	missing := m.cfg.Cgroups.Missing(parent)
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []string
	for at := parent; at != "/" && at != m.cfg.Cgroups.Tree(); at = filepath.Dir(at) {
		if slices.Contains(missing, at) || m.madeBefore(at) {
			list = append(list, at)
		}
	}
	slices.Reverse(list)
	return list
}

// madeBefore tells whether a record names the cgroup as one that berth makes. Preconditions: m.mu held.
func (m *Manager) madeBefore(cgroup string) bool {
	for _, p := range m.pods {
		if slices.Contains(p.rec.Ancestors, cgroup) {
			return true
		}
	}
	return false
}

// errNotRecovered means that nothing is known yet of what became of a sandbox since its record was written.
var errNotRecovered = errors.New("not recovered yet")

func (p *pod) isRecovered() bool {
	select {
	case <-p.recovered:
		return true
	default:
		return false
	}
}

func (p *pod) awaitRecovery(ctx context.Context) error {
	select {
	case <-p.recovered:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("sandbox %s: wait for its recovery: %w", p.id, ctx.Err())
	}
}

// ready waits until the sandbox is recovered, and takes its turn.
func (m *Manager) ready(ctx context.Context, p *pod) error {
	if err := p.awaitRecovery(ctx); err != nil {
		return err
	}
	if err := p.turn.take(ctx); err != nil {
		return fmt.Errorf("sandbox %s: wait for another call: %w", p.id, err)
	}
	return nil
}

// forgetPod takes the sandbox out of memory.
func (m *Manager) forgetPod(p *pod) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pods, p.id)
	if m.names[p.name] == p {
		delete(m.names, p.name)
	}
	if p.rec.State != store.Creating { // nobody has heard of it
		m.tell(p, p.id, EventDeleted)
	}
}

// gone tells whether the sandbox was removed while the caller waited for its turn.
func (m *Manager) gone(p *pod) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pods[p.id] != p
}

// hostNetwork tells whether the sandbox uses the host's network namespace.
func hostNetwork(config *runtimeapi.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

func hostIPC(config *runtimeapi.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE
}

func sharedPID(config *runtimeapi.PodSandboxConfig) bool {
	return config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_POD
}

// mustBeReady is ErrState, with the state, when the sandbox is not ready.
func (m *Manager) mustBeReady(p *pod) error {
	if state := m.podState(p); state != PodReady {
		return fmt.Errorf("sandbox %s is %s, not Ready: %w", p.id, state, ErrState)
	}
	return nil
}

var errNoMonitor = errors.New("sandbox has no monitor")

// monitorOf is the client for the sandbox's monitor.
func (m *Manager) monitorOf(p *pod) (Monitor, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p.link == nil {
		return nil, fmt.Errorf("sandbox %s: %w", p.id, errNoMonitor)
	}
	return p.link.client, nil
}
