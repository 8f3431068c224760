package sandbox

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/netns"
	"github.com/berthd/berth/sandbox/store"
)

// Manager owns all sandboxes and containers of one daemon.
type Manager struct {
	cfg    Config
	store  *store.Store
	pins   *netns.Pins
	bootID string

	service
	// adding is held for reading while the network adds an attachment, for writing while it collects what nobody has.
	adding sync.RWMutex
	hooks  hooks
	// meters are those that are open.
	meters meters
	events events
	// handlers are the present ones of Config.Handlers.
	handlers atomic.Pointer[map[string]*external.Program]

	mu         sync.RWMutex // guards what follows, and the fields of pod and container that say so
	pods       map[string]*pod
	containers map[string]*container
	names      map[string]*pod       // by metadata
	childNames map[string]*container // by sandbox and metadata
}

// service is the Manager's own.
type service struct {
	// ctx ends with Close; background are all goroutines that outlive a call.
	ctx        context.Context //nolint:containedctx // the life of the Manager itself
	background background
}

// Open loads the records and returns; sandboxes are recovered in the background, each within five seconds. The context's logger is used
// for what happens in the background. Its end does not end the Manager: Close does.
func Open(ctx context.Context, cfg Config) (*Manager, error) {
	return open(ctx, cfg, hooks{readExit: monitor.ReadExit})
}

// hooks are what tests put themselves between.
type hooks struct {
	// fault is called before each effect on the host. Tests make it fail, or block, as a daemon that was killed would; it is nil otherwise.
	fault func(step string) error
	// readExit reads the monitor's record of an exit.
	readExit func(path string) (monitor.Exit, error)
	// resctrl is the kernel's folder of classes of service, when it is not classes.Resctrl.
	resctrl string
}

func open(ctx context.Context, cfg Config, hooks hooks) (*Manager, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if cfg.Host.NoDeviceRules {
		klog.FromContext(ctx).Info("The host has no cgroup rules for devices: containers get no CAP_MKNOD, and root filesystems without device nodes")
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot's ID: %w", err)
	}
	for _, folder := range []string{cfg.Root, cfg.State, filepath.Join(cfg.State, "pods")} {
		if err := errors.Join(os.MkdirAll(folder, 0o700), os.Chmod(folder, 0o700)); err != nil {
			return nil, fmt.Errorf("open sandboxes: %w", err)
		}
	}
	records, err := store.Open(cfg.Root)
	if err != nil {
		return nil, err
	}
	m := &Manager{cfg: cfg, store: records, pins: netns.New(cfg.NetNSFolder, cfg.Instance), bootID: strings.TrimSpace(string(bootID)),
		hooks: hooks, meters: meters{most: maxMeters()}, events: newEvents(),
		pods: map[string]*pod{}, containers: map[string]*container{}, names: map[string]*pod{}, childNames: map[string]*container{}}
	m.SetHandlers(cfg.Handlers)
	m.ctx, m.background.cancel = context.WithCancel(context.WithoutCancel(ctx))
	cfg.Cgroups.OnEnd(m.scopeEnded)
	if err := m.recover(); err != nil {
		m.background.cancel()
		return nil, err
	}
	return m, nil
}

// Close ends what runs in the background and leaves sandboxes alone. Operations under way are undone, for as long as ctx allows.
func (m *Manager) Close(ctx context.Context) error {
	m.background.cancel()
	done := make(chan struct{})
	go func() { m.background.wait(); m.closeGauges(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close sandboxes: %w", ctx.Err())
	}
}

// SetHandlers changes what new sandboxes may name. Those that are there keep what their handler meant.
func (m *Manager) SetHandlers(handlers map[string]*external.Program) { m.handlers.Store(&handlers) }

// effect is called before each effect on the host.
func (m *Manager) effect(step string) error {
	if m.hooks.fault == nil {
		return nil
	}
	return m.hooks.fault(step)
}

func (m *Manager) logger(ctx context.Context) klog.Logger { return klog.FromContext(ctx) }

// Pods lists all sandboxes, in no order.
func (m *Manager) Pods() []Pod {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]Pod, 0, len(m.pods))
	for _, p := range m.pods {
		all = append(all, describePod(p))
	}
	return all
}

// Pod finds a sandbox by its ID or a unique prefix of it. Errors: ErrNotFound, ErrInvalid (the prefix is not unique).
func (m *Manager) Pod(sandboxID string) (Pod, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	p, err := find(m.pods, "sandbox", sandboxID)
	if err != nil {
		return Pod{}, err
	}
	return describePod(p), nil
}

// Containers lists all containers, in no order. Those that are still being made are not among them.
func (m *Manager) Containers() []Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]Container, 0, len(m.containers))
	for _, c := range m.containers {
		if c.rec.State != store.Creating {
			all = append(all, describeContainer(c))
		}
	}
	return all
}

// Container finds a container by its ID or a unique prefix of it. Errors: ErrNotFound, ErrInvalid (the prefix is not unique).
func (m *Manager) Container(containerID string) (Container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c, err := find(m.containers, "container", containerID)
	if err != nil {
		return Container{}, err
	}
	if c.rec.State == store.Creating {
		return Container{}, fmt.Errorf("container %s: %w", containerID, ErrNotFound)
	}
	return describeContainer(c), nil
}

func (m *Manager) findPod(sandboxID string) (*pod, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.pods, "sandbox", sandboxID)
}

func (m *Manager) findContainer(containerID string) (*container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.containers, "container", containerID)
}

func find[T any](all map[string]*T, kind, id string) (*T, error) {
	if found, ok := all[id]; ok {
		return found, nil
	}
	var found *T
	for full, object := range all {
		if id == "" || !strings.HasPrefix(full, id) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s %q: more than one ID begins so: %w", kind, id, ErrInvalid)
		}
		found = object
	}
	if found == nil {
		return nil, fmt.Errorf("%s %s: %w", kind, strconv.Quote(id), ErrNotFound)
	}
	return found, nil
}

// newID makes an ID of 64 lower-case hex digits.
func newID() string {
	var b [32]byte
	rand.Read(b[:]) //nolint:errcheck // it never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// podName is what makes a sandbox the same one for the kubelet.
func podName(meta *runtimeapi.PodSandboxMetadata) string {
	return strings.Join([]string{meta.GetNamespace(), meta.GetName(), meta.GetUid(), strconv.FormatUint(uint64(meta.GetAttempt()), 10)}, "/")
}

func containerName(sandboxID string, meta *runtimeapi.ContainerMetadata) string {
	return strings.Join([]string{sandboxID, meta.GetName(), strconv.FormatUint(uint64(meta.GetAttempt()), 10)}, "/")
}

// pack serializes a configuration for the record, and hashes it with what else makes two requests the same.
func pack(config proto.Message, more ...string) (packed []byte, hash string, err error) {
	packed, err = proto.MarshalOptions{Deterministic: true}.Marshal(config)
	if err != nil {
		return nil, "", fmt.Errorf("serialize configuration: %w: %w", ErrInvalid, err)
	}
	h := sha256.New()
	h.Write(packed)
	for _, s := range more {
		fmt.Fprintf(h, "\x00%s", s)
	}
	return packed, hex.EncodeToString(h.Sum(nil)), nil
}
