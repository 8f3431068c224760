package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
)

// spawner starts monitors in their cgroup, which it makes anew when it was taken away: systemd can be told to stop the scope that it is in.
type spawner struct {
	binary  string
	cgroups *cgroup.Driver

	mu    sync.RWMutex // held for reading while a monitor is started
	group *cgroup.Group
	now   *monitor.Spawner
}

func newSpawner(binary string, cgroups *cgroup.Driver) (*spawner, error) {
	s := &spawner{binary: binary, cgroups: cgroups}
	return s, s.open()
}

// open makes the cgroup and prepares the monitor. Preconditions: mu held, or nobody else has s.
func (s *spawner) open() (err error) {
	if s.group, err = s.cgroups.Monitors(); err != nil {
		return fmt.Errorf("make the monitors' cgroup: %w", err)
	}
	if s.now, err = monitor.NewSpawner(s.binary, s.group.Dirs); err != nil {
		return errors.Join(fmt.Errorf("prepare the monitor: %w", err), s.close())
	}
	return nil
}

// close gives everything back; monitors stay. Preconditions: as open's.
func (s *spawner) close() error {
	var errs []error
	if s.now != nil {
		errs = append(errs, s.now.Close())
		s.now = nil
	}
	if s.group != nil {
		errs = append(errs, s.group.Close())
		s.group = nil
	}
	return errors.Join(errs...)
}

// Spawn is monitor.Spawner's.
func (s *spawner) Spawn(ctx context.Context, p monitor.Pod) (*monitor.Process, error) {
	process, used, err := s.spawn(ctx, p)
	if err == nil || !s.lost() {
		return process, err
	}
	if err := s.reopen(used); err != nil {
		return nil, err
	}
	klog.FromContext(ctx).Info("Made the monitors' cgroup anew, which was taken away")
	if err := os.Remove(p.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	process, _, err = s.spawn(ctx, p)
	return process, err
}

func (s *spawner) spawn(ctx context.Context, p monitor.Pod) (*monitor.Process, *monitor.Spawner, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.now == nil {
		return nil, nil, errors.New("the monitors' cgroup is missing")
	}
	process, err := s.now.Spawn(ctx, p)
	return process, s.now, err
}

// lost tells whether the cgroup that is held has been removed.
func (s *spawner) lost() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.group == nil {
		return true
	}
	var st unix.Stat_t
	return unix.Fstatat(int(s.group.Dirs[0].Fd()), "cgroup.procs", &st, 0) != nil
}

// reopen replaces what was used in vain, unless somebody has done so.
func (s *spawner) reopen(used *monitor.Spawner) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.now != used {
		return nil
	}
	return errors.Join(s.close(), s.open())
}
