package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// tellTimeout is how long a scope that has been killed may take to be stopped, before it is removed without systemd.
const tellTimeout = 3 * time.Second

// holdName is the leaf of a scope's holder.
const holdName = "hold"

// units are the scopes that a Driver has systemd make.
type units struct {
	manager *manager
	prefix  string   // of the scopes' names
	program *os.File // the holders'
	making  singleflight.Group
	waiting sync.WaitGroup
	// slices is held for writing while one may be stopped, which stops all that is in it; for reading while a scope is started.
	slices sync.RWMutex

	mu      sync.Mutex
	holders map[string]*holder // that are watched, by scope
	ended   func(scope string)
}

// OpenSystemd is Open for a Driver that has systemd make a scope for each pod, by connect. Within its scopes it does as another does: they are delegated.
// Errors: ErrNotSupported without a unified hierarchy, and what connecting gave.
func OpenSystemd(ctx context.Context, instance string, connect Connect) (_ *Driver, err error) {
	d, err := Open(instance)
	if err != nil {
		return nil, err
	}
	u := &units{manager: newManager(connect), prefix: "berth-", holders: map[string]*holder{}, ended: func(string) {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, u.close(), d.Close())
		}
	}()
	if d.unified == nil {
		return nil, fmt.Errorf("have systemd make cgroups: no version 2 hierarchy is mounted: %w", ErrNotSupported)
	}
	if instance != "" {
		u.prefix += instance + "-"
	}
	if _, err := u.manager.connected(ctx); err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	if u.program, err = openHolder(); err != nil {
		return nil, err
	}
	d.tree = expandSlice(strings.TrimSuffix(u.prefix, "-") + sliceSuffix)
	d.own = d.tree + "/" + u.prefix + "monitors" + scopeSuffix
	d.systemd = u
	return d, nil
}

// close ends what watches; holders stay.
func (u *units) close() error {
	u.mu.Lock()
	var errs []error
	for _, h := range u.holders {
		errs = append(errs, h.pidfd.Close())
	}
	clear(u.holders)
	u.mu.Unlock()
	u.waiting.Wait()
	u.manager.close()
	if u.program != nil {
		errs = append(errs, u.program.Close())
	}
	return errors.Join(errs...)
}

// Name is the driver's: cgroupfs or systemd.
func (d *Driver) Name() string {
	if d.systemd != nil {
		return "systemd"
	}
	return "cgroupfs"
}

// OnEnd has ended called with the path of each scope that ends without RemoveEmpty: somebody had systemd stop it, or killed all that was in it.
func (d *Driver) OnEnd(ended func(scope string)) {
	if d.systemd != nil {
		d.systemd.mu.Lock()
		defer d.systemd.mu.Unlock()
		d.systemd.ended = ended
	}
}

// Hold makes the scope that p is or is below, with a holder in it. It is idempotent; there is nothing to do for a path without a scope, which is any
// of the cgroupfs driver's.
func (d *Driver) Hold(p string) error {
	at := scopeOf(p)
	if d.systemd == nil || at == "" || d.held(at) {
		return nil
	}
	_, err, _ := d.systemd.making.Do(at, func() (any, error) {
		// Not the caller's to cut short: what is begun is there, or is not, when its undo comes.
		ctx, cancel := context.WithTimeout(d.systemd.manager.life, unitTimeout)
		defer cancel()
		return nil, d.makeScope(ctx, at)
	})
	if err != nil {
		return fmt.Errorf("make scope %s: %w", at, err)
	}
	return nil
}

// held tells whether the scope has its holder.
func (d *Driver) held(at string) bool {
	pids, err := d.unified.pids(relative(at + "/" + holdName))
	return err == nil && len(pids) > 0
}

func (d *Driver) makeScope(ctx context.Context, at string) (err error) {
	if d.held(at) {
		return nil
	}
	u, name := d.systemd, path.Base(at)
	u.slices.RLock()
	defer u.slices.RUnlock()
	h, err := startHolder(u.program, name)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.kill())
		}
	}()
	s := scope{name: name, slice: path.Base(path.Dir(at)), about: "berth sandbox " + strings.TrimSuffix(strings.TrimPrefix(name, u.prefix), scopeSuffix), pid: h.pid}
	if at == d.own {
		s.about, s.weight = "berth monitors", weight(monitorShares)
		s.signal = int32(unix.SIGKILL) // they end by no other, and it would be waited for
	}
	if _, err := u.manager.start(ctx, &s); err != nil {
		return err
	}
	// From the scope itself, where controllers cannot be handed down beside it, into its leaf; or from here into that of a scope whose holder was killed.
	leaf := relative(at + "/" + holdName)
	if _, err := d.unified.mkdir(leaf); err != nil {
		return fmt.Errorf("make %s: %w", leaf, err)
	}
	if err := d.unified.write(leaf, "cgroup.procs", fmt.Sprint(h.pid)); err != nil {
		return err
	}
	if err := h.settle(); err != nil {
		return err
	}
	u.watch(at, h)
	return nil
}

// Watch makes OnEnd know of a scope that an earlier daemon made. False: it has ended meanwhile. A path without a scope is fine as it is.
func (d *Driver) Watch(p string) bool {
	at := scopeOf(p)
	if d.systemd == nil || at == "" {
		return true
	}
	pids, err := d.unified.pids(relative(at + "/" + holdName))
	if err != nil || len(pids) == 0 {
		return false
	}
	h, err := findHolder(pids[0])
	if err != nil {
		return false
	}
	d.systemd.watch(at, h)
	return true
}

func (u *units) watch(at string, h *holder) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if old := u.holders[at]; old != nil {
		old.pidfd.Close() //nolint:errcheck // it ends who waits
	}
	u.holders[at] = h
	u.waiting.Go(func() {
		ended := h.wait()
		u.mu.Lock()
		mine, tell := u.holders[at] == h, u.ended
		if mine {
			delete(u.holders, at)
		}
		u.mu.Unlock()
		h.pidfd.Close() //nolint:errcheck // it was only waited for
		if ended && mine {
			tell(at)
		}
	})
}

func (u *units) watches(at string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.holders[at] != nil
}

// forget takes the watch off a scope that is going to end.
func (u *units) forget(at string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.holders, at)
}

// removeScope ends a scope unless it holds anything but its holder. It needs no systemd to be there: one that hangs, or that this Driver does not
// speak to, finds the scope empty, which ends it as well.
func (d *Driver) removeScope(p string) error {
	rel := relative(p)
	for _, h := range d.hierarchies {
		children, err := h.children(rel)
		if err != nil {
			return fmt.Errorf("remove scope %s: %w", p, err)
		}
		if slices.ContainsFunc(children, func(name string) bool { return name != holdName }) {
			return nil
		}
	}
	if d.systemd != nil {
		d.systemd.forget(p)
	}
	if d.unified == nil || !d.Exists(p) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
	defer cancel()
	if err := d.Kill(p); err != nil { // the holder, which may not be in its leaf yet
		return err
	}
	var told error
	if d.systemd != nil {
		telling, cancel := context.WithTimeout(ctx, tellTimeout)
		told = d.systemd.manager.stop(telling, path.Base(p))
		cancel()
	} else {
		d.awaitEnd(ctx, rel)
	}
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		var errs []error
		for _, h := range d.hierarchies {
			errs = append(errs, h.removeOne(relative(p+"/"+holdName)), h.removeOne(rel))
		}
		err := errors.Join(errs...)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || sleep(ctx, pause) != nil {
			return fmt.Errorf("remove scope %s: %w", p, errors.Join(err, told))
		}
	}
}

// awaitEnd leaves it to systemd, which is not spoken to, to take an empty scope away: it does not hear of one that is gone before it has looked.
func (d *Driver) awaitEnd(ctx context.Context, rel string) {
	for end := time.Now().Add(tellTimeout); d.unified.exists(rel) && time.Now().Before(end); {
		if sleep(ctx, 5*time.Millisecond) != nil {
			return
		}
	}
}

// tellEnd has systemd forget a scope that was removed by its files. It is nil when systemd does not know it.
func (d *Driver) tellEnd(ctx context.Context, p string) error {
	if d.systemd == nil || !strings.HasSuffix(p, scopeSuffix) {
		return nil
	}
	d.systemd.forget(p)
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	return d.systemd.manager.stop(ctx, path.Base(p))
}

// removeSlice has systemd end a slice with nothing in it: one that was made for a scope stays for ever otherwise.
func (d *Driver) removeSlice(p string) error {
	rel := relative(p)
	if d.systemd != nil {
		d.systemd.slices.Lock()
		defer d.systemd.slices.Unlock()
	}
	for _, h := range d.hierarchies {
		children, err := h.children(rel)
		pids, perr := h.pids(rel)
		if err := errors.Join(err, perr); err != nil {
			return fmt.Errorf("remove slice %s: %w", p, err)
		}
		if len(children)+len(pids) > 0 {
			return nil
		}
	}
	if d.systemd != nil && d.Exists(p) {
		ctx, cancel := context.WithTimeout(context.Background(), unitTimeout)
		defer cancel()
		if err := d.systemd.manager.stop(ctx, path.Base(p)); err != nil {
			return err
		}
	}
	return d.removeEmpty(p)
}

// Sandboxes are those that have a cgroup of this daemon's making, with its path: in the own tree, and with systemd in whatever slice its scope is.
func (d *Driver) Sandboxes() (map[string]string, error) {
	all := map[string]string{}
	if d.systemd != nil {
		return all, d.findScopes("/", all)
	}
	names, err := d.List(d.tree)
	for _, name := range names {
		all[name] = d.tree + "/" + name
	}
	return all, err
}

// Find is the cgroup of a sandbox whose record cannot be read: where it is, else where one that names no parent would be.
func (d *Driver) Find(sandboxID string) string {
	if all, err := d.Sandboxes(); err == nil && all[sandboxID] != "" {
		return all[sandboxID]
	}
	if d.systemd != nil {
		return d.tree + "/" + d.systemd.prefix + sandboxID + scopeSuffix
	}
	return d.tree + "/" + sandboxID
}

// findScopes looks for scopes in slices.
func (d *Driver) findScopes(at string, all map[string]string) error {
	names, err := d.List(at)
	errs := []error{err}
	for _, name := range names {
		p := path.Join(at, name)
		if strings.HasSuffix(name, sliceSuffix) {
			errs = append(errs, d.findScopes(p, all))
		} else if id, found := strings.CutPrefix(name, d.systemd.prefix); found && strings.HasSuffix(id, scopeSuffix) {
			all[strings.TrimSuffix(id, scopeSuffix)] = p
		}
	}
	return errors.Join(errs...)
}
