package sandbox

import (
	"context"
	"errors"
	"time"

	"github.com/berthd/berth/cni"
)

const (
	// networkPatience is how long a sandbox waits for a network that is not ready: on a node that has just come up, or while its network is
	// installed anew, it soon is.
	networkPatience = 2 * time.Second
	networkPause    = 50 * time.Millisecond
)

// planNetwork plans the sandbox's attachment.
func (m *Manager) planNetwork(ctx context.Context, request cni.Request) (cni.Attachment, error) {
	patience, cancel := context.WithTimeout(ctx, networkPatience)
	defer cancel()
	for {
		attachment, err := m.cfg.Network.Plan(ctx, request)
		if !errors.Is(err, cni.ErrNotReady) || patience.Err() != nil {
			return attachment, err
		}
		pause(patience, networkPause)
	}
}
