package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/store"
)

// container is one container.
type container struct {
	id     string
	name   string // of containerName
	pod    *pod
	config *runtimeapi.ContainerConfig
	user   *runtimeapi.ContainerUser
	turn   turn
	create *operation // nil when it was loaded from its record

	write recordLock

	start  startState
	root   rootState
	exec   execState
	gauge  gauge
	limits limits

	// Guarded by Manager.mu:
	rec store.Container
	outside
}

// outside is what others than calls of the container are told of it.
type outside struct {
	told   containerTold
	exited chan struct{} // closed when rec.State becomes Exited
	killed atomic.Bool   // by a call: whatever died of the lack of memory before, the container does not
}

// startState is what is known of a container's start.
type startState struct {
	at      int64                // when it began, nanoseconds since 1970; guarded by Manager.mu
	unheard *error               // how it went, when the caller had gone by then; guarded by turn
	failed  atomic.Pointer[exit] // why it is being undone, which is how the container ends then
}

// rootState is the root filesystem of a container.
type rootState struct {
	trees  runtime.Trees // prepared again when empty; guarded by turn
	ending sync.Mutex    // held by handler.end
}

// recordLock is held while a record is replaced, or removed.
type recordLock struct {
	sync.Mutex
	removed bool // the record is gone for good
}

// remove removes the record, and lets nobody write it again.
func (l *recordLock) remove(from func() error) error {
	l.Lock()
	defer l.Unlock()
	if err := from(); err != nil {
		return err
	}
	l.removed = true
	return nil
}

// execState is what execs and attached clients need of a container.
type execState struct {
	sync.Mutex
	spec      *specs.Spec // read from disk when nil
	shed      bool        // the container has exited: spec is not kept
	leftovers []string    // cgroups of execs that still had processes when the exec ended
	inputs    []*os.File  // attached clients' ways to stdin
}

func newContainer(p *pod, id, name string, config *runtimeapi.ContainerConfig) *container {
	return &container{id: id, name: name, pod: p, config: config, turn: newTurn(), outside: outside{exited: make(chan struct{})}}
}

// updateContainer changes the record on disk and in memory. Memory is changed even when the disk refuses; the error says so.
// The change sees the record as it is, and may leave it alone.
func (m *Manager) updateContainer(c *container, change func(*store.Container)) error {
	c.write.Lock()
	defer c.write.Unlock()
	m.mu.RLock()
	rec := c.rec
	m.mu.RUnlock()
	before := rec.State
	change(&rec)
	var err error
	if !c.write.removed {
		if err = m.effect("write container record"); err == nil {
			err = m.store.PutContainer(&rec)
		}
	}
	m.mu.Lock()
	c.rec = rec
	m.tellContainer(c, before)
	m.mu.Unlock()
	if rec.State == store.Exited && before != store.Exited {
		close(c.exited)
		c.gauge.close(&m.meters)
	}
	return err
}

func (m *Manager) containerRecord(c *container) store.Container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return c.rec
}

func (m *Manager) forgetContainer(c *container) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.containers, c.id)
	if m.childNames[c.name] == c {
		delete(m.childNames, c.name)
	}
	if c.rec.State != store.Creating { // nobody has heard of it
		m.tell(c.pod, c.id, EventDeleted)
	}
}

func (m *Manager) containerGone(c *container) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.containers[c.id] != c
}

// readyContainer finds a container whose sandbox is recovered, and takes its turn. The caller gives it back.
func (m *Manager) readyContainer(ctx context.Context, containerID string) (*container, error) {
	c, err := m.recoveredContainer(ctx, containerID)
	if err != nil {
		return nil, err
	}
	if err := c.turn.take(ctx); err != nil {
		return nil, fmt.Errorf("container %s: wait for another call: %w", c.id, err)
	}
	if m.containerGone(c) {
		c.turn.give()
		return nil, fmt.Errorf("container %s: %w", c.id, ErrNotFound)
	}
	return c, nil
}

func (m *Manager) recoveredContainer(ctx context.Context, containerID string) (*container, error) {
	c, err := m.findContainer(containerID)
	if err != nil {
		return nil, err
	}
	if err := c.pod.awaitRecovery(ctx); err != nil {
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	return c, nil
}

// rememberUser keeps who the container runs as, for its status.
func (c *container) rememberUser(u spec.User, rec *store.Container) error {
	linux := &runtimeapi.LinuxContainerUser{Uid: int64(u.UID), Gid: int64(u.GID)}
	for _, g := range u.Groups {
		linux.SupplementalGroups = append(linux.SupplementalGroups, int64(g))
	}
	c.user = &runtimeapi.ContainerUser{Linux: linux}
	text, err := json.Marshal(u)
	if err != nil {
		return fmt.Errorf("encode user: %w", err)
	}
	rec.User = text
	return nil
}

// recallUser undoes rememberUser. A record without a user has none.
func (c *container) recallUser(rec *store.Container) {
	var u spec.User
	if len(rec.User) > 0 && json.Unmarshal(rec.User, &u) == nil {
		again := *rec
		c.rememberUser(u, &again) //nolint:errcheck // it came from JSON
	}
}

// shed drops what is not needed once the container has exited: there may be many of them.
func (c *container) shed() {
	c.exec.Lock()
	defer c.exec.Unlock()
	c.exec.spec, c.exec.leftovers, c.exec.shed = nil, nil, true
}

func now() int64 { return time.Now().UnixNano() }
