package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/berthd/berth/cni/conflist"
)

// ready is Network.Status: every plugin is there and, from CNI 1.1 on, says that it can work.
func (p *plugins) ready(ctx context.Context, list *conflist.List) error {
	if err := p.installed(list); err != nil {
		return err
	}
	p.statusMu.Lock()
	defer p.statusMu.Unlock()
	now := time.Now()
	if p.status.file != list.File {
		p.status = pluginStatus{file: list.File}
	}
	if now.Sub(p.status.asked) >= statusTTL {
		asking, cancel := context.WithTimeout(ctx, statusTimeout)
		p.status.answer = p.cni().GetStatusNetworkList(asking, list.NetworkConfigList)
		cancel()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		p.status.asked = now
		if p.status.answer == nil {
			p.status.lastGood = now
		}
	}
	if p.status.answer == nil || now.Sub(p.status.lastGood) < statusGrace {
		return nil
	}
	return fmt.Errorf("%w: CNI configuration %s: STATUS: %w", ErrNotReady, list.File, p.status.answer)
}

// gc is Network.GC for the attachments of this engine, which valid holds by sandbox ID. What was added and is not valid gets a DEL
// with the configuration that it was added with; then the plugins of the present configuration, which may be nil, get GC.
func (p *plugins) gc(ctx context.Context, list *conflist.List, valid map[string]Attachment) error {
	cached, err := p.cni().GetCachedAttachments("")
	if err != nil {
		return fmt.Errorf("list cached attachments: %w", err)
	}
	busy := p.pods.watch()
	defer busy.stop()
	var errs []error
	ended := make(map[string]bool)
	for _, c := range cached {
		if _, ok := valid[c.ContainerID]; ok || busy.has(c.ContainerID) && !ended[c.ContainerID] {
			continue
		}
		ended[c.ContainerID] = true
		capabilities, err := json.Marshal(c.CapabilityArgs)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, p.del(ctx, Attachment{
			Engine: EngineCNI, Network: c.Network, SandboxID: c.ContainerID, NetNS: c.NetNS, IfName: c.IfName,
			ConfigFile: "of network " + c.Network, Config: c.Config, Args: c.CniArgs, Capabilities: capabilities,
		}))
	}
	for _, a := range valid {
		_ = p.hold(a) // two records with one address: each is ended in its own time
	}
	if list == nil || list.DisableGC || !p.cni().sendGC {
		return errors.Join(errs...)
	}
	args := &libcni.GCArgs{}
	for _, a := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: a.SandboxID, IfName: a.IfName})
	}
	for _, id := range busy.all() {
		if _, ok := valid[id]; !ok && !ended[id] {
			args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: defaultIfName})
		}
	}
	if err := p.cni().GCNetworkList(ctx, list.NetworkConfigList, args); err != nil {
		errs = append(errs, fmt.Errorf("CNI configuration %s: GC: %w", list.File, err))
	}
	return errors.Join(errs...)
}
