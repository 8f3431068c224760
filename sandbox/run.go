package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/store"
)

// undoTimeout bounds the undo of an operation, whose own context may have ended.
const undoTimeout = 30 * time.Second

// setupTimeout bounds how long a new monitor may take to set the sandbox up.
const setupTimeout = 20 * time.Second

// RunPod makes a sandbox and returns its ID. With the metadata and configuration of one that is ready it returns that one's; with those of one
// that is being made it waits for it. When ctx ends and nobody else waits, the sandbox is undone behind the call.
// Errors: ErrNameInUse, ErrUnknownHandler, ErrHandlerMissing, ErrInvalid, *spec.InvalidError, ErrExhausted, ErrState (the network is not ready).
func (m *Manager) RunPod(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if err := m.checkPod(config, handler); err != nil {
		return "", err
	}
	packed, hash, err := pack(config, handler)
	if err != nil {
		return "", err
	}
	rec := store.Pod{State: store.Creating, Handler: handler, ConfigHash: hash, Config: packed, BootID: m.bootID, Runtime: m.runtimeOf(handler),
		LogFolder: logFolder(config)}
	for {
		p, err := m.claimPod(ctx, config, rec)
		if errors.Is(err, errAbandoned) {
			if err := p.create.settled(ctx); err != nil {
				return "", fmt.Errorf("run sandbox: wait for the undo of sandbox %s: %w", p.id, err)
			}
			continue
		}
		if errors.Is(err, errNotRecovered) {
			if err := p.awaitRecovery(ctx); err != nil {
				return "", fmt.Errorf("run sandbox: %w", err)
			}
			continue
		}
		if err != nil {
			return "", err
		}
		if p.create == nil || m.podState(p) == PodReady {
			return p.id, nil
		}
		if err := p.create.wait(ctx); err != nil {
			return "", fmt.Errorf("run sandbox %s: %w", p.id, classify(err))
		}
		return p.id, nil
	}
}

func (m *Manager) checkPod(config *runtimeapi.PodSandboxConfig, handler string) error {
	handlers := *m.handlers.Load()
	program, known := handlers[handler]
	if !known && handler != "" {
		return fmt.Errorf("runtime handler %q, known are %q: %w", handler, slices.Sorted(maps.Keys(handlers)), ErrUnknownHandler)
	}
	if err := spec.ValidatePod(config); err != nil {
		return err
	}
	if users := spec.Users(config); len(users.UIDs) > 0 && (m.cfg.UserNamespaces != nil || program != nil) {
		rule := fmt.Sprintf("is not supported by handler %q", handler)
		if program == nil {
			rule = "is not supported on this host: " + m.cfg.UserNamespaces.Error()
		}
		return &spec.InvalidError{Field: "config.linux.security_context.namespace_options.userns_options.mode", Value: "POD", Rule: rule}
	}
	parent, err := spec.CgroupParent(config)
	if err != nil || parent == "" {
		return err
	}
	_, err = m.cfg.Cgroups.PodPath(parent, "")
	return classify(err)
}

// claimPod returns the sandbox that has the name, joined if it is being made, or a new one whose making has begun.
// Errors: ErrNameInUse; errAbandoned, with the sandbox, when it is being undone; errNotRecovered, with it, before its recovery.
func (m *Manager) claimPod(ctx context.Context, config *runtimeapi.PodSandboxConfig, rec store.Pod) (*pod, error) {
	name := podName(config.GetMetadata())
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.names[name]; p != nil {
		return p, p.sharedBy(rec.ConfigHash)
	}
	p := &pod{id: newID(), name: name, config: config, turn: newTurn(), recovered: closed, rec: rec}
	p.rec.ID = p.id
	p.rec.CreatedAt = time.Now().UnixNano()
	if err := m.chooseLevel(p); err != nil {
		return nil, err
	}
	p.turn <- struct{}{} // given back by makePod
	if p.create = m.begin(ctx, func(ctx context.Context) error { return m.makePod(ctx, p) }); p.create == nil {
		return nil, ErrClosing
	}
	m.pods[p.id], m.names[name] = p, p
	return p, nil
}

// sharedBy tells whether a request with the configuration hash may have this sandbox. A sandbox that is being made is joined.
// Preconditions: Manager.mu held.
func (p *pod) sharedBy(hash string) error {
	inUse := fmt.Errorf("sandbox %s is %s and has the name %s: %w", p.id, p.rec.State, p.name, ErrNameInUse)
	switch {
	case !p.isRecovered():
		return errNotRecovered
	case p.rec.ConfigHash != hash:
		return inUse
	case p.rec.State == store.Ready:
		return nil
	case p.rec.State == store.Creating && p.create != nil:
		if !p.create.join() {
			return errAbandoned
		}
		return nil
	}
	return inUse
}

// makePod makes the sandbox, or undoes what it did.
func (m *Manager) makePod(ctx context.Context, p *pod) error {
	defer p.turn.give()
	start := time.Now()
	err := protect(func() error { return m.setUpPod(ctx, p) })
	if err == nil {
		m.logger(ctx).V(2).Info("Ran sandbox", "podSandboxID", p.id, "pod", klog.KRef(p.config.GetMetadata().GetNamespace(), p.config.GetMetadata().GetName()),
			"duration", time.Since(start))
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	if undoErr := m.undoPod(undo, p); undoErr != nil {
		m.logger(ctx).Error(undoErr, "Could not undo sandbox", "podSandboxID", p.id)
		return errors.Join(err, undoErr)
	}
	return err
}

// undoPod takes away all of a sandbox that did not become ready. What cannot be taken away stays listed, NotReady, without its name.
func (m *Manager) undoPod(ctx context.Context, p *pod) error {
	m.tellPodStopped(ctx, p)
	err := m.tearDown(ctx, p)
	if err == nil {
		err = m.dropPod(ctx, p)
	}
	if err == nil || m.ctx.Err() != nil { // the next daemon undoes what this one's end cut short
		return err
	}
	m.mu.Lock()
	p.lingering, p.message = true, "its creation failed and could not be undone: "+err.Error()
	if m.names[p.name] == p {
		delete(m.names, p.name)
	}
	m.mu.Unlock()
	return errors.Join(err, m.updatePod(p, func(rec *store.Pod) { rec.State = store.NotReady }))
}

// setUpPod makes the sandbox: record, monitor, network and files, as much at once as can be.
func (m *Manager) setUpPod(ctx context.Context, p *pod) error {
	rec := m.record(p)
	if err := m.usable(ctx, &rec); err != nil { // before anything is made
		return err
	}
	request := m.networkRequest(p)
	rec, err := m.planPod(ctx, p, request)
	if err != nil {
		return err
	}
	if err := m.effect("add pod record"); err != nil {
		return err
	}
	m.mu.Lock()
	p.rec = rec
	m.mu.Unlock()
	if err := m.store.AddPod(&rec); err != nil {
		return err
	}
	if err := m.spawn(ctx, p); err != nil {
		return err
	}
	tasks := newTasks(ctx)
	tasks.run(func(ctx context.Context) error { return m.greet(ctx, p) })
	tasks.run(func(ctx context.Context) error { return m.writePodFiles(p) })
	tasks.run(func(context.Context) error { return m.holdScope(&rec) })
	var text []byte
	if !hostNetwork(p.config) {
		tasks.run(func(ctx context.Context) (err error) {
			text, err = m.attach(ctx, p, request)
			return err
		})
	}
	if err := tasks.wait(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := m.writeHosts(p); err != nil {
		return err
	}
	if err := m.introducePod(ctx, p); err != nil {
		return err
	}
	process := m.linkOf(p).process
	err = m.updatePod(p, func(rec *store.Pod) {
		rec.State, rec.Attachment, rec.IPs, rec.Monitor = store.Ready, text, m.addresses(p), process
	})
	if err != nil {
		return err
	}
	m.follow(p)
	return nil
}

// planPod completes the record: all that is going to be made has its name there.
func (m *Manager) planPod(ctx context.Context, p *pod, request cni.Request) (store.Pod, error) {
	rec := m.record(p)
	parent, err := spec.CgroupParent(p.config)
	if err != nil {
		return rec, err
	}
	if rec.Cgroup, err = m.cfg.Cgroups.PodPath(parent, p.id); err != nil {
		return rec, err
	}
	rec.Ancestors = m.ancestors(rec.Cgroup)
	if hostNetwork(p.config) {
		return rec, nil
	}
	rec.NetNS = request.NetNS
	attachment, err := m.planNetwork(ctx, request)
	if err != nil {
		return rec, fmt.Errorf("plan network: %w", err)
	}
	rec.Attachment, err = m.setAttachment(p, &attachment)
	return rec, err
}

func (m *Manager) networkRequest(p *pod) cni.Request {
	meta, dns := p.config.GetMetadata(), p.config.GetDnsConfig()
	request := cni.Request{SandboxID: p.id, Namespace: meta.GetNamespace(), Name: meta.GetName(), UID: meta.GetUid(), NetNS: m.pins.Path(p.id),
		Annotations: p.config.GetAnnotations()}
	if dns != nil {
		request.DNS = &cni.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()}
	}
	for _, mapping := range p.config.GetPortMappings() {
		if mapping.GetHostPort() == 0 {
			continue
		}
		hostIP, _ := netip.ParseAddr(mapping.GetHostIp()) // spec.ValidatePod has parsed it; "" stays the zero Addr
		request.PortMappings = append(request.PortMappings, cni.PortMapping{HostPort: uint16(mapping.GetHostPort()),
			ContainerPort: uint16(mapping.GetContainerPort()), Protocol: strings.ToLower(mapping.GetProtocol().String()), HostIP: hostIP})
	}
	return request
}

// spawn starts the monitor in the sandbox's namespaces and pins the network namespace.
func (m *Manager) spawn(ctx context.Context, p *pod) error {
	if err := m.effect("make state folder"); err != nil {
		return err
	}
	if err := os.Mkdir(m.stateDir(p.id), 0o700); err != nil {
		return fmt.Errorf("make state folder: %w", err)
	}
	sysctls, err := spec.Sysctls(p.config)
	if err != nil {
		return err
	}
	if err := m.effect("spawn monitor"); err != nil {
		return err
	}
	ownNet, users := !hostNetwork(p.config), spec.Users(p.config)
	hostname := p.config.GetHostname()
	if !ownNet {
		hostname = "" // it would be the host's
	}
	started, err := m.cfg.Spawner.Spawn(ctx, monitor.Pod{SandboxID: p.id, Socket: m.socket(p.id), RecordDir: m.store.RecordDir(p.id),
		Hostname: hostname, Sysctls: sysctls, NewNet: ownNet, NewUTS: ownNet, NewIPC: !hostIPC(p.config), SharedPID: sharedPID(p.config),
		UIDs: runtime.IDMaps(users.UIDs), GIDs: runtime.IDMaps(users.GIDs)})
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	defer started.PIDFD.Close()
	l, err := m.connect(p, store.Process{PID: started.PID, StartTime: started.StartTime}, started.PIDFD)
	if err = errors.Join(err, started.PIDFD.Close()); err != nil {
		return err
	}
	m.setLink(p, l)
	if !ownNet {
		return nil
	}
	if err := m.effect("pin network namespace"); err != nil {
		return err
	}
	return m.pins.Pin(p.id, started.PID)
}

// greet waits until the monitor has set the sandbox up.
func (m *Manager) greet(ctx context.Context, p *pod) error {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	l := m.linkOf(p)
	hello, err := l.client.Hello(ctx)
	if err != nil {
		return fmt.Errorf("set sandbox up: %w", err)
	}
	if users := spec.Users(p.config); len(users.UIDs) > 0 {
		if err := monitor.MapsUsers(hello); err != nil {
			return fmt.Errorf("set sandbox up: %w", err)
		}
	}
	m.mu.Lock()
	l.pidInit = hello.PIDNSInit
	m.mu.Unlock()
	return nil
}

// attach gives the sandbox its network and returns the attachment as the record keeps it.
func (m *Manager) attach(ctx context.Context, p *pod, request cni.Request) ([]byte, error) {
	m.adding.RLock()
	defer m.adding.RUnlock()
	if err := m.effect("add network"); err != nil {
		return nil, err
	}
	m.mu.RLock()
	attachment := *p.attachment
	m.mu.RUnlock()
	if err := m.cfg.Network.Add(ctx, request, &attachment); err != nil {
		return nil, fmt.Errorf("set up network: %w", err)
	}
	return m.setAttachment(p, &attachment)
}

// addresses are the sandbox's, from its attachment, the primary one first.
func (m *Manager) addresses(p *pod) []netip.Addr {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if p.attachment == nil {
		return nil
	}
	var ips []netip.Addr
	for _, prefix := range p.attachment.IPs {
		ips = append(ips, prefix.Addr())
	}
	m.cfg.PrimaryIP.order(ips)
	return ips
}

// protect turns a panic into an error, so that what was half made is undone.
func protect(work func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return work()
}
