package sandbox

import (
	"strings"

	"github.com/berthd/berth/sandbox/store"
)

// scoped tells whether a sandbox's cgroup is a scope of systemd's.
func scoped(rec *store.Pod) bool { return strings.HasSuffix(rec.Cgroup, ".scope") }

// holdScope has systemd make the sandbox's scope, if it is to have one: a first container would have to wait for it.
func (m *Manager) holdScope(rec *store.Pod) error {
	if !scoped(rec) {
		return nil
	}
	if err := m.effect("make scope"); err != nil {
		return err
	}
	return m.cfg.Cgroups.Hold(rec.Cgroup)
}

// watchScope takes the watch over a scope over from an earlier daemon.
func (m *Manager) watchScope(p *pod) {
	if rec := m.record(p); scoped(&rec) && !m.cfg.Cgroups.Watch(rec.Cgroup) {
		m.scopeEnded(rec.Cgroup)
	}
}

// releaseScope ends the scope of a sandbox that is stopped.
func (m *Manager) releaseScope(p *pod) error {
	rec := m.record(p)
	if !scoped(&rec) {
		return nil
	}
	if err := m.effect("end scope"); err != nil {
		return err
	}
	return m.cfg.Cgroups.RemoveEmpty(rec.Cgroup)
}

// scopeEnded is told of a scope that somebody else has ended, or whose holder somebody has killed. What ran in it has ended with it, and tells so itself; the next container that is started
// has it made anew.
func (m *Manager) scopeEnded(scope string) {
	m.mu.RLock()
	var owner *pod
	for _, p := range m.pods {
		if p.rec.Cgroup == scope && p.rec.State == store.Ready {
			owner = p
		}
	}
	m.mu.RUnlock()
	if owner != nil {
		m.logger(m.ctx).Info("Scope of a sandbox was ended by others, with all that ran in it, or its holder alone was", "podSandboxID", owner.id, "scope", scope)
	}
	if strings.HasPrefix(m.cfg.Cgroups.MonitorPath(), scope+"/") {
		m.logger(m.ctx).Info("Scope of the monitors was ended by others, with all monitors, or its holder alone was", "scope", scope)
	}
}
