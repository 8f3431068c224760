package sandbox

import (
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/netns"
	"github.com/berthd/berth/sandbox/store"
)

// Stats are what a container, or a sandbox with all its containers, uses of the host.
type Stats struct {
	cgroup.Stats
	// NanoCores is the use of the processors lately: nanoseconds of their time a second. It is meant when Sampled is set.
	NanoCores uint64
	Sampled   bool
}

// PodStats are what a sandbox uses.
type PodStats struct {
	Stats
	Measured  bool   // false: it is not ready, and uses nothing
	Cgroup    string // above its containers'
	Processes uint64
	// Interfaces are those of its own network namespace but the loopback, the default one first; nil with the host's network.
	Interfaces []netns.Interface
}

// Unlimited is the limit of what has none.
const Unlimited = cgroup.Unlimited

// PSI is the pressure on one resource.
type PSI = cgroup.PSI

// Stall is for how long tasks waited.
type Stall = cgroup.Stall

// defaultInterface is what CNI configurations that are made for Kubernetes call it.
const defaultInterface = "eth0"

// measure reads a gauge whose object has the cgroup path and began at start. Errors: ErrNotFound, when it has ended.
func (m *Manager) measure(g *gauge, path string, start time.Time) (Stats, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return Stats{}, fmt.Errorf("measure cgroup %s: it has ended: %w", path, ErrNotFound)
	}
	meter, err := m.meterOf(g, path)
	if err != nil {
		return Stats{}, notFound(err)
	}
	if meter != g.meter {
		defer meter.Close()
	}
	read, err := meter.Read()
	if err != nil {
		g.drop(&m.meters) // another cgroup may come to have the name
		return Stats{}, notFound(err)
	}
	s := Stats{Stats: read}
	s.NanoCores, s.Sampled = g.rate(sample{at: s.At, cpu: s.CPU}, start)
	return s, nil
}

// meterOf is the gauge's meter, or one for this call when there are too many. Preconditions: g.mu held.
func (m *Manager) meterOf(g *gauge, path string) (*cgroup.Meter, error) {
	if g.meter != nil {
		return g.meter, nil
	}
	meter, err := m.cfg.Cgroups.Meter(path)
	if err != nil {
		return nil, err
	}
	if m.meters.open.Add(1) > m.meters.most {
		m.meters.open.Add(-1)
		return meter, nil
	}
	g.meter = meter
	return meter, nil
}

// notFound says ErrNotFound of a cgroup that is gone.
func notFound(err error) error {
	if errors.Is(err, cgroup.ErrGone) {
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}

// ContainerStats measures a container; id may be a unique prefix. One that does not run uses nothing. Errors: ErrNotFound, also when it
// ends meanwhile.
func (m *Manager) ContainerStats(id string) (Stats, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return Stats{}, err
	}
	rec := m.containerRecord(c)
	if rec.State != store.Running {
		return Stats{Stats: cgroup.Stats{At: time.Now(), Memory: cgroup.Memory{Limit: Unlimited}}}, nil
	}
	return m.measure(&c.gauge, rec.Cgroup, at(rec.StartedAt))
}

// PodStats measures a sandbox: by the cgroup above its containers', or when others share that, by what its containers use together. id may be
// a unique prefix. Errors: ErrNotFound.
func (m *Manager) PodStats(id string) (PodStats, error) {
	p, err := m.findPod(id)
	if err != nil {
		return PodStats{}, err
	}
	rec := m.record(p)
	if rec.State != store.Ready {
		return PodStats{}, nil
	}
	out := PodStats{Measured: true, Cgroup: rec.Cgroup}
	running := m.runningOf(p)
	if m.sharesCgroup(p, rec.Cgroup) {
		out.Stats, err = m.sum(p, running)
	} else {
		out.Stats, err = m.measure(&p.gauge, rec.Cgroup, at(rec.CreatedAt))
	}
	if errors.Is(err, ErrNotFound) { // it is being stopped, or has had no container yet
		out.Stats, err = m.sum(p, nil)
	}
	if err != nil {
		return PodStats{}, err
	}
	for _, c := range running {
		n, err := m.cfg.Cgroups.Processes(m.containerRecord(c).Cgroup)
		if err != nil {
			return PodStats{}, err
		}
		out.Processes += n
	}
	if !hostNetwork(p.config) {
		out.Interfaces, err = m.interfaces(p)
	}
	return out, err
}

// runningOf lists the containers of a sandbox that run.
func (m *Manager) runningOf(p *pod) []*container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []*container
	for _, c := range m.containers {
		if c.pod == p && c.rec.State == store.Running {
			all = append(all, c)
		}
	}
	return all
}

// sharesCgroup tells whether the sandbox's cgroup holds more than its containers.
func (m *Manager) sharesCgroup(p *pod, cgroup string) bool {
	if cgroup == "/" {
		return true
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, other := range m.pods {
		if other != p && other.rec.Cgroup == cgroup && other.rec.State == store.Ready {
			return true
		}
	}
	return false
}

// sum adds up what containers use. There is no pressure of them together.
func (m *Manager) sum(p *pod, containers []*container) (Stats, error) {
	total := Stats{Stats: cgroup.Stats{At: time.Now(), Memory: cgroup.Memory{Limit: Unlimited}}}
	for _, c := range containers {
		rec := m.containerRecord(c)
		s, err := m.measure(&c.gauge, rec.Cgroup, at(rec.StartedAt))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return Stats{}, err
		}
		total.CPU += s.CPU
		t := &total.Memory
		t.Usage += s.Memory.Usage
		t.WorkingSet += s.Memory.WorkingSet
		t.RSS += s.Memory.RSS
		t.Faults += s.Memory.Faults
		t.MajorFaults += s.Memory.MajorFaults
	}
	p.gauge.mu.Lock()
	defer p.gauge.mu.Unlock()
	total.NanoCores, total.Sampled = p.gauge.rate(sample{at: total.At, cpu: total.CPU}, time.Time{})
	return total, nil
}

// interfaces reads the sandbox's traffic. One that is being stopped has none any more.
func (m *Manager) interfaces(p *pod) ([]netns.Interface, error) {
	first := m.defaultInterface(p)
	g := &p.gauge
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil, nil
	}
	if g.counters == nil {
		counters, err := m.pins.Counters(p.id)
		if err != nil {
			return nil, err
		}
		g.counters = counters
	}
	all, err := g.counters.Read()
	if err != nil {
		return nil, err
	}
	return sortInterfaces(all, first), nil
}

func (m *Manager) defaultInterface(p *pod) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p.attachment != nil && p.attachment.IfName != "" {
		return p.attachment.IfName
	}
	return defaultInterface
}

// sortInterfaces leaves the loopback out and puts the default one first.
func sortInterfaces(all []netns.Interface, first string) []netns.Interface {
	var sorted []netns.Interface
	for _, i := range all {
		switch i.Name {
		case "lo":
		case first:
			sorted = append([]netns.Interface{i}, sorted...)
		default:
			sorted = append(sorted, i)
		}
	}
	return sorted
}
