package cnitest

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/berthd/berth/cni"
)

// Fake is a cni.Network in memory. The zero value is ready. Before, when it is set, is called at the beginning of every method with
// its name ("Plan", "Add", ...) and the sandbox ID, and an error that it returns is the method's; it may wait for the context.
type Fake struct {
	Before func(ctx context.Context, method, sandboxID string) error

	mu   sync.Mutex
	live map[string]cni.Attachment // by sandbox ID
	last netip.Addr
}

var _ cni.Network = (*Fake)(nil)

func (f *Fake) before(ctx context.Context, method, sandboxID string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if f.Before != nil {
		return f.Before(ctx, method, sandboxID)
	}
	return nil
}

// Plan implements cni.Network.
func (f *Fake) Plan(ctx context.Context, req cni.Request) (cni.Attachment, error) {
	if err := f.before(ctx, "Plan", req.SandboxID); err != nil {
		return cni.Attachment{}, err
	}
	if req.IfName == "" {
		req.IfName = "eth0"
	}
	return cni.Attachment{
		Engine: "fake", Network: "fake", SandboxID: req.SandboxID, NetNS: req.NetNS, IfName: req.IfName,
		Ports: req.PortMappings,
	}, nil
}

// Add implements cni.Network.
func (f *Fake) Add(ctx context.Context, req cni.Request, a *cni.Attachment) error {
	if err := f.before(ctx, "Add", req.SandboxID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if old, ok := f.live[a.SandboxID]; ok {
		*a = old
		return nil
	}
	if f.live == nil {
		f.live = make(map[string]cni.Attachment)
		f.last = netip.MustParseAddr("198.18.0.1")
	}
	f.last = f.last.Next()
	a.IPs = []netip.Prefix{netip.PrefixFrom(f.last, 15)}
	a.Gateways = []netip.Addr{netip.MustParseAddr("198.18.0.1")}
	f.live[a.SandboxID] = *a
	return nil
}

// Del implements cni.Network.
func (f *Fake) Del(ctx context.Context, a cni.Attachment) error {
	if err := f.before(ctx, "Del", a.SandboxID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.live, a.SandboxID)
	return nil
}

// Check implements cni.Network.
func (f *Fake) Check(ctx context.Context, a cni.Attachment) error {
	if err := f.before(ctx, "Check", a.SandboxID); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.live[a.SandboxID]; !ok {
		return fmt.Errorf("check pod %s: %w", a.SandboxID, cni.ErrNotAttached)
	}
	return nil
}

// Status implements cni.Network.
func (f *Fake) Status(ctx context.Context) error { return f.before(ctx, "Status", "") }

// GC implements cni.Network.
func (f *Fake) GC(ctx context.Context, valid []cni.Attachment) error {
	if err := f.before(ctx, "GC", ""); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for id := range f.live {
		if !slices.ContainsFunc(valid, func(a cni.Attachment) bool { return a.SandboxID == id }) {
			delete(f.live, id)
		}
	}
	return nil
}

// Live returns the sandbox IDs that are attached, sorted.
func (f *Fake) Live() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]string, 0, len(f.live))
	for id := range f.live {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
