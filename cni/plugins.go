package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni/conflist"
	"github.com/berthd/berth/cni/plugin"
	"github.com/berthd/berth/cni/rtnl"
)

const (
	undoTimeout = 30 * time.Second
	statusTTL   = 2 * time.Second // how long an answer to STATUS is believed
	// statusTimeout bounds how long a plugin may think about it: kubelets wait for the answer.
	statusTimeout = 5 * time.Second
	statusGrace   = 5 * time.Second // how long a plugin may say no before the network counts as down
)

// plugins is the engine that runs the plugins of the host's configuration.
type plugins struct {
	tools    atomic.Pointer[tools]
	exec     *plugin.Exec
	home     *os.File // the network namespace of the process
	cacheDir string
	instance string
	pods     keyLock

	mu      sync.Mutex
	holders map[netip.Addr]string // sandbox ID that has an address, as far as this process knows

	statusMu sync.Mutex // held while plugins are asked
	status   pluginStatus
}

type pluginStatus struct {
	file     string
	asked    time.Time
	answer   error
	lastGood time.Time
}

func newPlugins(cfg Config) (*plugins, error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("open own network namespace: %w", err)
	}
	exec := &plugin.Exec{Timeout: cfg.PluginTimeout}
	p := &plugins{exec: exec, home: home, cacheDir: cfg.CacheDir, instance: cfg.Instance, holders: make(map[netip.Addr]string)}
	p.setTools(cfg.Live)
	return p, nil
}

// tools are how plugins are run now. They are not changed, only replaced.
type tools struct {
	*libcni.CNIConfig
	binDirs []string
	sendGC  bool // whether this daemon alone uses the configuration
}

// setTools takes the folders of a configuration over.
func (p *plugins) setTools(l Live) {
	p.tools.Store(&tools{
		CNIConfig: libcni.NewCNIConfigWithCacheDir(l.BinDirs, p.cacheDir, p.exec), binDirs: l.BinDirs,
		sendGC: p.instance == "" || l.ConfDir != DefaultConfDir,
	})
}

// cni runs plugins.
func (p *plugins) cni() *tools { return p.tools.Load() }

// plan is Network.Plan for a normalized request.
func (p *plugins) plan(list *conflist.List, req Request) (Attachment, error) {
	if err := p.installed(list); err != nil {
		return Attachment{}, err
	}
	capabilities, err := json.Marshal(capabilitiesOf(list.NetworkConfigList, req))
	if err != nil {
		return Attachment{}, fmt.Errorf("encode capabilities: %w", err)
	}
	return Attachment{
		Engine: EngineCNI, Network: list.Name, SandboxID: req.SandboxID, NetNS: req.NetNS, IfName: req.IfName,
		Ports: req.PortMappings, ConfigFile: list.File, Config: list.Config, Capabilities: capabilities,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", req.Namespace},
			{"K8S_POD_NAME", req.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", req.SandboxID},
			{"K8S_POD_UID", req.UID},
		},
	}, nil
}

// installed returns an ErrNotReady that names file and plugin when one is missing.
func (p *plugins) installed(list *conflist.List) error {
	for _, c := range list.Plugins {
		if _, err := p.exec.FindInPath(c.Network.Type, p.cni().binDirs); err != nil {
			return fmt.Errorf("%w: CNI configuration %s: %w", ErrNotReady, list.File, err)
		}
	}
	return nil
}

// capabilitiesOf returns what req asks for and a plugin of the list can do, CONVENTIONS.md of the CNI specification.
func capabilitiesOf(list *libcni.NetworkConfigList, req Request) map[string]any {
	offered := make(map[string]bool)
	for _, c := range list.Plugins {
		for name, on := range c.Network.Capabilities {
			offered[name] = offered[name] || on
		}
	}
	m := make(map[string]any)
	for name, value := range asked(req) {
		if offered[name] {
			m[name] = value
		}
	}
	return m
}

// asked returns what req asks for by capability.
func asked(req Request) map[string]any {
	m := make(map[string]any)
	if len(req.PortMappings) > 0 {
		m["portMappings"] = req.PortMappings
	}
	if req.Bandwidth != nil {
		m["bandwidth"] = req.Bandwidth
	}
	if req.DNS != nil {
		m["dns"] = req.DNS
	}
	if len(req.IPs) > 0 {
		m["ips"] = req.IPs
	}
	if len(req.Annotations) > 0 {
		m["io.kubernetes.cri.pod-annotations"] = req.Annotations
	}
	return m
}

// call is an attachment in libcni's terms.
func call(a Attachment) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	list, err := conflist.Parse(a.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("read CNI configuration of pod %s (from %s): %w", a.SandboxID, a.ConfigFile, err)
	}
	rt := &libcni.RuntimeConf{ContainerID: a.SandboxID, NetNS: a.NetNS, IfName: a.IfName, Args: a.Args}
	if len(a.Capabilities) > 0 {
		if err := json.Unmarshal(a.Capabilities, &rt.CapabilityArgs); err != nil {
			return nil, nil, fmt.Errorf("read CNI capabilities of pod %s: %w", a.SandboxID, err)
		}
	}
	return list, rt, nil
}

// add is Network.Add.
func (p *plugins) add(ctx context.Context, a *Attachment) (err error) {
	leave, err := p.pods.enter(ctx, a.SandboxID)
	if err != nil {
		return err
	}
	defer leave()
	if len(a.Result) > 0 {
		return nil
	}
	list, rt, err := call(*a)
	if err != nil {
		return err
	}
	if err := p.loopbackUp(a.NetNS); err != nil {
		return err
	}
	if old, err := p.cni().GetNetworkListCachedResult(list, rt); err != nil || old != nil {
		// An ADD whose end was not recorded: plugins must not get a second one without a DEL.
		if err := p.remove(ctx, *a); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(err, p.remove(ctx, *a))
		}
	}()
	result, err := p.cni().AddNetworkList(ctx, list, rt)
	if err != nil {
		return fmt.Errorf("CNI configuration %s: %w", a.ConfigFile, err)
	}
	plan := *a
	if err := plan.take(result); err != nil {
		return fmt.Errorf("CNI configuration %s: result of ADD: %w", a.ConfigFile, err)
	}
	if err := p.hold(plan); err != nil {
		return fmt.Errorf("CNI configuration %s: result of ADD: %w", a.ConfigFile, err)
	}
	*a = plan
	return nil
}

// take fills an attachment in from a result.
func (a *Attachment) take(result types.Result) error {
	if err := checkNulls(result); err != nil {
		return err
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return err
	}
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && (*i < 0 || *i >= len(r.Interfaces)) {
			return fmt.Errorf("address %s is of interface %d, which is not there", ip.Address.String(), *i)
		} else if i != nil && (r.Interfaces[*i].Sandbox == "" || r.Interfaces[*i].Name != a.IfName) {
			continue
		}
		prefix, err := netip.ParsePrefix(ip.Address.String())
		if err != nil {
			return fmt.Errorf("address %q: %w", ip.Address.String(), err)
		}
		a.IPs = append(a.IPs, prefix)
		if gateway, ok := netip.AddrFromSlice(ip.Gateway); ok {
			a.Gateways = append(a.Gateways, gateway.Unmap())
		}
	}
	if len(a.IPs) == 0 {
		return fmt.Errorf("has no address for interface %s", a.IfName)
	}
	for _, i := range r.Interfaces {
		if i.Sandbox == "" {
			a.HostIf = i.Name // of a veth pair's two the host's end comes last
		}
	}
	a.Result, err = json.Marshal(r)
	return err
}

// checkNulls refuses a null in a list of a result: the library's conversions follow it.
func checkNulls(result types.Result) error {
	raw, err := json.Marshal(result)
	if err != nil {
		return err
	}
	var lists struct{ Interfaces, IPs, Routes []json.RawMessage }
	if err := json.Unmarshal(raw, &lists); err != nil {
		return err
	}
	for name, list := range map[string][]json.RawMessage{"interfaces": lists.Interfaces, "ips": lists.IPs, "routes": lists.Routes} {
		for i, entry := range list {
			if string(entry) == "null" {
				return fmt.Errorf("entry %d of %s is null", i, name)
			}
		}
	}
	return nil
}

// hold notes the addresses of an attachment; one that another pod has is an error.
func (p *plugins) hold(a Attachment) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ip := range a.IPs {
		if holder := p.holders[ip.Addr()]; holder != "" && holder != a.SandboxID {
			return fmt.Errorf("address %s is pod %s's", ip.Addr(), holder)
		}
	}
	for _, ip := range a.IPs {
		p.holders[ip.Addr()] = a.SandboxID
	}
	return nil
}

func (p *plugins) letGo(sandboxID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for ip, holder := range p.holders {
		if holder == sandboxID {
			delete(p.holders, ip)
		}
	}
}

// loopbackUp sets lo up: no plugin needs to be configured for it.
func (p *plugins) loopbackUp(netNS string) error {
	ns, err := openNetNS(netNS)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	c, err := rtnl.DialIn(ns, int(p.home.Fd()), nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Do(rtnl.Up(rtnl.Loopback))
}

// del is Network.Del.
func (p *plugins) del(ctx context.Context, a Attachment) error {
	leave, err := p.pods.enter(ctx, a.SandboxID)
	if err != nil {
		return err
	}
	defer leave()
	return p.remove(ctx, a)
}

// remove runs DEL. Preconditions: the pod's lock is held.
func (p *plugins) remove(ctx context.Context, a Attachment) error {
	list, rt, err := call(a)
	if err != nil {
		return err
	}
	if ns, err := openNetNS(a.NetNS); err != nil {
		rt.NetNS = "" // it is gone, or what is there is not a namespace: CNI spec section 2, DEL
	} else {
		unix.Close(ns)
	}
	p.letGo(a.SandboxID) // before DEL: the plugin may give the address away while it still runs
	if err := p.cni().DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("CNI configuration %s: %w", a.ConfigFile, err)
	}
	return nil
}

// check is Network.Check. A configuration that is too old for CHECK, or forbids it, is not asked.
func (p *plugins) check(ctx context.Context, a Attachment) error {
	if len(a.IPs) == 0 {
		return fmt.Errorf("check pod %s: %w", a.SandboxID, ErrNotAttached)
	}
	list, rt, err := call(a)
	if err != nil {
		return err
	}
	if can, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !can {
		return err
	}
	if err := p.cni().CheckNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("check pod %s: CNI configuration %s: %w: %w", a.SandboxID, a.ConfigFile, ErrNotAttached, err)
	}
	return nil
}
