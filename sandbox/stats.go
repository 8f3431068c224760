package sandbox

import "github.com/berthd/berth/sandbox/cgroup"

// Stats are what a container uses of the host, from its cgroup.
type Stats = cgroup.Stats

// ContainerStats measures a container; id may be a unique prefix. One that does not run uses nothing. Errors: ErrNotFound.
func (m *Manager) ContainerStats(id string) (Stats, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return Stats{}, err
	}
	return m.cfg.Cgroups.Stats(m.containerRecord(c).Cgroup)
}
