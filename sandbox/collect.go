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

// collect removes what belongs to nobody: all that an earlier daemon left, with sweep, and from then on, again and again, what the network has:
// plugins lose addresses too, and other programs links. What fails is soon tried again, and then less and less often, with ten times as much
// time between the attempts as one takes, because new pods may have to wait for it.
func (m *Manager) collect(sweep func() error) {
	interval := cmp.Or(m.cfg.CollectInterval, collectInterval)
	work, again := sweep, collectRetry
	for m.ctx.Err() == nil {
		wait, start := interval, time.Now()
		if err := protect(work); err == nil {
			work, again = m.collectOnce, collectRetry
		} else if m.ctx.Err() == nil {
			wait = min(max(again, 10*time.Since(start)), interval)
			again = 2 * wait
			m.logger(m.ctx).Error(err, "Could not remove what no record names", "again", wait)
		}
		pause(m.ctx, wait)
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
