package cni

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/hostport"
	"github.com/berthd/berth/cni/ipam"
	"github.com/berthd/berth/cni/rtnl"
)

const (
	hostIfPrefix = "vb"
	hostIfDigits = 10 // hexadecimal digits behind the prefix
	idleConns    = 8  // rtnetlink sockets kept open
)

// bridge is the built-in engine.
type bridge struct {
	cfg      BridgeConfig
	instance string
	home     *os.File // the network namespace of the process
	store    *ipam.Store
	ports    *hostport.Table
	reaper   *reaper
	conns    chan *rtnl.Conn
	pods     keyLock

	mu    sync.Mutex
	facts *bridgeFacts // nil: not set up yet, or lost
	probe probe
}

// bridgeFacts is what setUp found out. It is not changed afterwards.
type bridgeFacts struct {
	index  int
	mtu    int
	ranges []ipam.Range
	nat    error // why there is no NAT, nil: there is
}

// newBridge opens the engine for one bridge. It makes nothing on the host but the folder of reservations.
// home, the network namespace of the process, stays the caller's.
func newBridge(cfg BridgeConfig, whole Config, home *os.File) (*bridge, error) {
	store, err := ipam.Open(filepath.Join(whole.CacheDir, cfg.Name))
	if err != nil {
		return nil, err
	}
	b := &bridge{
		cfg: cfg, instance: whole.Instance, home: home, store: store,
		ports: hostport.New(hostport.Config{Table: tableName(cfg.Name), Bridge: cfg.Name, Subnets: cfg.Subnets}),
		conns: make(chan *rtnl.Conn, idleConns),
	}
	b.reaper = startReaper(b.deleteLinks)
	return b, nil
}

func tableName(bridge string) string { return "berth-" + bridge }

// hostIf returns the name of the host's end of a pod's veth pair.
func hostIf(instance, sandboxID string) string {
	sum := sha256.Sum256([]byte(instance + sandboxID))
	return hostIfPrefix + hex.EncodeToString(sum[:])[:hostIfDigits]
}

// plan is Network.Plan for a normalized request.
func (b *bridge) plan(req Request) (Attachment, error) {
	if len(req.PortMappings) > 0 {
		if err := b.natProblem(); err != nil {
			return Attachment{}, fmt.Errorf("plan host port %d: %w", req.PortMappings[0].HostPort, err)
		}
	}
	a := Attachment{
		Engine: EngineBridge, Network: b.cfg.Name, SandboxID: req.SandboxID, NetNS: req.NetNS, IfName: req.IfName,
		HostIf: hostIf(b.instance, req.SandboxID), Ports: req.PortMappings,
	}
	if req.Bandwidth != nil && req.Bandwidth.EgressRate > 0 {
		a.Ifb = ifbName(a.HostIf)
	}
	return a, nil
}

// add is Network.Add.
func (b *bridge) add(ctx context.Context, req Request, a *Attachment) (err error) {
	leave, err := b.pods.enter(ctx, a.SandboxID)
	if err != nil {
		return err
	}
	defer leave()
	facts, err := b.setUp()
	if err != nil {
		return err
	}
	for _, name := range a.links() {
		if err := b.reaper.wait(ctx, name); err != nil {
			return fmt.Errorf("wait for the end of link %s: %w", name, err)
		}
	}
	if len(a.IPs) > 0 && b.checkLinks(*a) == nil {
		return b.ports.Add(a.SandboxID, mappings(*a))
	}
	ns, err := openNetNS(a.NetNS)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	plan := *a
	plan.IPs, plan.Gateways = nil, nil
	defer func() {
		if err != nil {
			err = errors.Join(err, b.undo(plan))
		}
	}()
	if plan.IPs, err = b.reserve(ctx, req, facts.ranges); err != nil {
		return err
	}
	for _, r := range facts.ranges {
		plan.Gateways = append(plan.Gateways, r.Gateway)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := b.connect(ns, facts, &plan); err != nil {
		return err
	}
	if req.Bandwidth != nil {
		if err := b.shape(*req.Bandwidth, plan, facts.mtu); err != nil {
			return err
		}
	}
	if len(plan.Ports) > 0 {
		if facts.nat != nil {
			return fmt.Errorf("map host ports: %w", facts.nat)
		}
		if err := b.publish(plan); err != nil {
			return err
		}
	}
	*a = plan
	return nil
}

// reserve takes the addresses that req names, and the next free ones of the other ranges.
func (b *bridge) reserve(ctx context.Context, req Request, ranges []ipam.Range) ([]netip.Prefix, error) {
	owner := ipam.Owner{ContainerID: req.SandboxID, IfName: req.IfName}
	for _, p := range req.IPs {
		if !slices.ContainsFunc(ranges, func(r ipam.Range) bool { return r.Subnet.Contains(p.Addr()) && r.Gateway != p.Addr() }) {
			return nil, invalid("address", p, "is not one of bridge "+b.cfg.Name)
		}
		if err := b.store.ReserveExact(ctx, owner, p.Addr()); err != nil {
			return nil, err
		}
	}
	return b.store.Reserve(ctx, owner, ranges)
}

// mappings are a's host ports in terms of its addresses.
func mappings(a Attachment) []hostport.Mapping {
	var list []hostport.Mapping
	for _, p := range a.Ports {
		for _, ip := range a.IPs {
			m := hostport.Mapping{
				Protocol: protocolNumber(p.Protocol), HostPort: p.HostPort,
				Pod: netip.AddrPortFrom(ip.Addr(), p.ContainerPort),
			}
			if !unspecifiedFor(p.HostIP, ip.Addr()) {
				if p.HostIP.Is4() != ip.Addr().Is4() || p.HostIP.IsUnspecified() {
					continue
				}
				m.HostIP = p.HostIP
			}
			list = append(list, m)
		}
	}
	return list
}

// publish leads host ports to the pod.
func (b *bridge) publish(a Attachment) error {
	list := mappings(a)
	for _, p := range a.Ports {
		if !slices.ContainsFunc(list, func(m hostport.Mapping) bool { return m.HostPort == p.HostPort }) {
			return invalid("host IP", p.HostIP, "of a host port is of a family that the pod has no address of")
		}
	}
	err := b.withConn(func(c *rtnl.Conn) error {
		// With br_netfilter a packet of the pod to its own host port goes back through the port that it came from.
		return c.Do(rtnl.Hairpin(a.HostIf))
	})
	if err != nil {
		return err
	}
	return b.ports.Add(a.SandboxID, list)
}

// del is Network.Del.
func (b *bridge) del(ctx context.Context, a Attachment) error {
	leave, err := b.pods.enter(ctx, a.SandboxID)
	if err != nil {
		return err
	}
	defer leave()
	return b.undo(a)
}

// undo takes an attachment away, whatever there is of it. The link ends behind the call, and its addresses are free after that.
// Preconditions: the pod's lock is held.
func (b *bridge) undo(a Attachment) error {
	owner := ipam.Owner{ContainerID: a.SandboxID, IfName: a.IfName}
	if len(a.Ports) > 0 {
		known := a
		for _, ip := range b.store.Owned(owner) {
			if !slices.ContainsFunc(known.IPs, func(p netip.Prefix) bool { return p.Addr() == ip }) {
				known.IPs = append(known.IPs[:len(known.IPs):len(known.IPs)], netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
		if err := b.ports.Remove(a.SandboxID, mappings(known)); err != nil {
			return err
		}
	}
	var addrs []netip.Addr
	for _, p := range a.IPs {
		addrs = append(addrs, p.Addr())
	}
	if a.Ifb != "" {
		b.reaper.push(a.Ifb, nil)
	}
	b.reaper.push(a.HostIf, func(ctx context.Context) error { return b.store.Release(ctx, owner, addrs...) })
	return nil
}

// check is Network.Check.
func (b *bridge) check(a Attachment) error {
	if len(a.IPs) == 0 {
		return fmt.Errorf("check pod %s: %w", a.SandboxID, ErrNotAttached)
	}
	if err := b.checkLinks(a); err != nil {
		return fmt.Errorf("check pod %s: %w", a.SandboxID, err)
	}
	if err := b.checkIfb(a); err != nil {
		return fmt.Errorf("check pod %s: %w", a.SandboxID, err)
	}
	held := b.store.Owned(ipam.Owner{ContainerID: a.SandboxID, IfName: a.IfName})
	for _, p := range a.IPs {
		if !slices.Contains(held, p.Addr()) {
			return fmt.Errorf("check pod %s: address %s is not reserved: %w", a.SandboxID, p.Addr(), ErrNotAttached)
		}
	}
	return b.ports.Check(a.SandboxID, mappings(a))
}

// checkLinks looks at both ends of the pair.
func (b *bridge) checkLinks(a Attachment) error {
	var near, master rtnl.Link
	if b.reaper.has(a.HostIf) {
		return fmt.Errorf("link %s is ending: %w", a.HostIf, ErrNotAttached)
	}
	err := b.withConn(func(c *rtnl.Conn) (err error) {
		if near, err = c.Link(a.HostIf); err == nil {
			master, err = c.Link(b.cfg.Name)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAttached, err)
	}
	if near.Master != master.Index || !near.IsUp() {
		return fmt.Errorf("link %s is down or not in bridge %s: %w", a.HostIf, b.cfg.Name, ErrNotAttached)
	}
	ns, err := openNetNS(a.NetNS)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAttached, err)
	}
	defer unix.Close(ns)
	c, err := rtnl.DialIn(ns, int(b.home.Fd()), nil)
	if err != nil {
		return err
	}
	defer c.Close()
	far, err := c.Link(a.IfName)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotAttached, err)
	}
	addrs, err := c.Addresses(far.Index)
	if err != nil {
		return err
	}
	if far.Peer != near.Index || !far.IsUp() {
		return fmt.Errorf("interface %s is down or not the peer of %s: %w", a.IfName, a.HostIf, ErrNotAttached)
	}
	for _, p := range a.IPs {
		if !slices.Contains(addrs, p) {
			return fmt.Errorf("interface %s has no address %s: %w", a.IfName, p, ErrNotAttached)
		}
	}
	return nil
}

// withConn runs f with a rtnetlink socket of the host's namespace.
func (b *bridge) withConn(f func(*rtnl.Conn) error) error {
	var c *rtnl.Conn
	select {
	case c = <-b.conns:
	default:
		var err error
		if c, err = rtnl.Dial(); err != nil {
			return err
		}
	}
	err := f(c)
	if c.Closed() {
		return err
	}
	select {
	case b.conns <- c:
	default:
		c.Close()
	}
	return err
}
