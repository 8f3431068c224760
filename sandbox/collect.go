package sandbox

import (
	"context"
	"fmt"
	"time"
)

// Bounds of the network's garbage collection while pods come and go: new ones wait for it.
const (
	collectInterval = time.Hour // when nothing else is configured
	collectTimeout  = 30 * time.Second
	// collectRetry is how soon another attempt is made while a pod is being attached. After collectPatience it waits its turn.
	collectRetry    = time.Second
	collectPatience = time.Minute
)

// CheckNetwork asks the network whether a sandbox is attached as it was left: nil also for one that has no network of its own. It may execute plugins.
// Errors: ErrNotFound, and what the network finds.
func (m *Manager) CheckNetwork(ctx context.Context, sandboxID string) error {
	m.mu.RLock()
	p, err := find(m.pods, "sandbox", sandboxID)
	if err != nil || p.attachment == nil || describePod(p).State != PodReady {
		m.mu.RUnlock()
		return err
	}
	attachment := *p.attachment
	m.mu.RUnlock()
	if err := m.cfg.Network.Check(ctx, attachment); err != nil {
		return fmt.Errorf("check network: %w", err)
	}
	return nil
}

// collectNetwork has the network free what no sandbox has, again and again: plugins lose addresses too, and other programs links.
func (m *Manager) collectNetwork() {
	interval := m.cfg.CollectInterval
	if interval == 0 {
		interval = collectInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-m.ctx.Done():
			return
		case <-tick.C:
		}
		if err := protect(m.collectOnce); err != nil && m.ctx.Err() == nil {
			m.logger(m.ctx).Error(err, "Could not collect the network's garbage")
		}
	}
}

// collectOnce waits for a moment in which no pod is being attached, so that a slow plugin does not make all others wait behind it.
func (m *Manager) collectOnce() error {
	retry := time.NewTicker(collectRetry)
	defer retry.Stop()
	for end := time.Now().Add(collectPatience); !m.adding.TryLock(); {
		if time.Now().After(end) {
			m.adding.Lock()
			break
		}
		select {
		case <-m.ctx.Done():
			return nil
		case <-retry.C:
		}
	}
	defer m.adding.Unlock()
	ctx, cancel := context.WithTimeout(m.ctx, collectTimeout)
	defer cancel()
	return m.freeNetwork(ctx)
}
