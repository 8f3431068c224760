package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/hostport"
	"github.com/berthd/berth/cni/ipam"
	"github.com/berthd/berth/cni/rtnl"
)

// gc is Network.GC for the attachments of this bridge, which valid holds by sandbox ID.
func (b *bridge) gc(ctx context.Context, valid map[string]Attachment) error {
	busy := b.pods.watch()
	defer busy.stop()
	err := b.doom(valid, busy)
	if err != nil && !errors.Is(err, errNoBridge) {
		return err
	}
	wanted := make(map[string][]hostport.Mapping)
	for id, a := range valid {
		if list := mappings(a); len(list) > 0 {
			wanted[id] = list
		}
	}
	var portsErr error
	if err != nil && len(wanted) == 0 && len(busy.all()) == 0 {
		portsErr = b.ports.Delete()
	} else if portsErr = b.ports.Keep(wanted, busy.has); errors.Is(portsErr, ErrNotSupported) {
		portsErr = nil
	}
	// An address is free when its link is gone, not before.
	if err := b.reaper.idle(ctx); err != nil {
		return errors.Join(portsErr, fmt.Errorf("wait for the end of links: %w", err))
	}
	swept := b.store.Sweep(ctx, func(o ipam.Owner, ip netip.Addr) bool {
		if busy.has(o.ContainerID) {
			return true
		}
		a, ok := valid[o.ContainerID]
		return ok && (len(a.IPs) == 0 || slices.ContainsFunc(a.IPs, func(p netip.Prefix) bool { return p.Addr() == ip }))
	})
	return errors.Join(portsErr, swept, b.restore(ctx, valid))
}

// restore reserves again what pods have whose reservations somebody took away or damaged.
func (b *bridge) restore(ctx context.Context, valid map[string]Attachment) error {
	held, err := b.store.List()
	if err != nil {
		return err
	}
	var errs []error
	for id, a := range valid {
		owner := ipam.Owner{ContainerID: id, IfName: a.IfName}
		if slices.ContainsFunc(a.IPs, func(p netip.Prefix) bool { return held[p.Addr()] != owner }) {
			errs = append(errs, b.restorePod(ctx, owner, a))
		}
	}
	return errors.Join(errs...)
}

// restorePod is restore for one pod. One that is detached meanwhile, or was, has nothing any more.
func (b *bridge) restorePod(ctx context.Context, owner ipam.Owner, a Attachment) error {
	leave, err := b.pods.enter(ctx, a.SandboxID)
	if err != nil {
		return err
	}
	defer leave()
	if b.reaper.has(a.HostIf) || b.withConn(func(c *rtnl.Conn) error { _, err := c.Link(a.HostIf); return err }) != nil {
		return nil
	}
	var errs []error
	for _, p := range a.IPs {
		errs = append(errs, b.store.ReserveExact(ctx, owner, p.Addr()))
	}
	return errors.Join(errs...)
}

var errNoBridge = errors.New("there is no bridge")

// doom queues the links of this bridge whose pods are neither valid nor busy.
func (b *bridge) doom(valid map[string]Attachment, busy *keyWatch) error {
	var ports, ifbs []rtnl.Link
	err := b.withConn(func(c *rtnl.Conn) (err error) {
		if ifbs, err = c.LinksOfKind(ifbKind); err != nil {
			return err
		}
		master, err := c.Link(b.cfg.Name)
		if err == nil {
			ports, err = c.Ports(master.Index)
		}
		return err
	})
	noBridge := errors.Is(err, unix.ENODEV)
	if err != nil && !noBridge {
		return err
	}
	keep := make(map[string]bool, len(valid))
	for _, a := range valid {
		keep[a.HostIf], keep[a.Ifb] = true, true
	}
	for _, id := range busy.all() { // now: a link in ports may be of an Add that began after gc
		name := hostIf(b.instance, id)
		keep[name], keep[ifbName(name)] = true, true
	}
	for _, l := range ports {
		if isHostIf(l) && !keep[l.Name] {
			b.reaper.push(l.Name, nil)
		}
	}
	for _, l := range ifbs {
		if isIfb(l, b.cfg.Name) && !keep[l.Name] {
			b.reaper.push(l.Name, nil)
		}
	}
	if noBridge {
		return errNoBridge
	}
	return nil
}

// isHostIf reports whether a link is one that hostIf named.
func isHostIf(l rtnl.Link) bool {
	digits, ok := strings.CutPrefix(l.Name, hostIfPrefix)
	return ok && l.Kind == "veth" && len(digits) == hostIfDigits && strings.Trim(digits, "0123456789abcdef") == ""
}

// close waits for the links that are ending. When no pod is left, the bridge and the table go as well.
func (b *bridge) close() error {
	b.reaper.close()
	err := b.tearDown()
	b.ports.Close()
	for {
		select {
		case c := <-b.conns:
			c.Close()
		default:
			return err
		}
	}
}

// tearDown removes bridge and table if nobody uses them. A bridge that somebody else has made stays.
func (b *bridge) tearDown() error {
	held, err := b.store.List()
	if err != nil || len(held) > 0 {
		return err
	}
	return b.withConn(func(c *rtnl.Conn) error {
		master, err := c.Link(b.cfg.Name)
		if errors.Is(err, unix.ENODEV) {
			return b.ports.Delete()
		}
		if err != nil {
			return err
		}
		ports, err := c.Ports(master.Index)
		if err != nil || len(ports) > 0 {
			return err
		}
		if master.Kind == bridgeKind && bytes.HasPrefix(master.MAC, macPrefix) {
			if err := c.Do(rtnl.Del(b.cfg.Name)); err != nil {
				return err
			}
		}
		return b.ports.Delete()
	})
}
