package sandbox

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// Bounds of the network's garbage collection while pods come and go: new ones wait for it.
const (
	collectInterval = time.Hour // when nothing else is configured
	collectTimeout  = 30 * time.Second
	// collectRetry is how soon another attempt is made while a pod is being attached, or after one that failed. After collectPatience it waits its turn.
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

// collectNetwork has the network free what no sandbox has, again and again: plugins lose addresses too, and other programs links. What could not be done,
// as the sweep that ended with err, is soon tried again, and then less and less often.
func (m *Manager) collectNetwork(err error) {
	interval := cmp.Or(m.cfg.CollectInterval, collectInterval)
	again := collectRetry
	for {
		wait := interval
		if err != nil {
			wait = min(again, interval)
			again = 2 * wait
		} else {
			again = collectRetry
		}
		if pause(m.ctx, wait); m.ctx.Err() != nil {
			return
		}
		if err = protect(m.collectOnce); err != nil && m.ctx.Err() == nil {
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
