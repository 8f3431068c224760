package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
)

// Sizes of the crowds.
const (
	callers      = 10
	statsPods    = 30
	statsRounds  = 40
	loadedPods   = 50
	burstPods    = 100
	burstPodsFew = 30 // of a runtime that is slow
	manyPods     = 200
)

// spec names pods of one crowd.
func (b *bench) spec(s *side, crowd string) func(int) berthd.LifeSpec {
	return func(n int) berthd.LifeSpec {
		return berthd.LifeSpec{Name: fmt.Sprintf("%s%d", crowd, n), Image: b.turns.Image, Command: []string{"/bin/sleep"},
			LogDir: filepath.Join(b.dir, "logs-"+s.name), CgroupParent: s.CgroupParent}
	}
}

// crowds measures pods a second, statistics of 30 containers, and memory with 50.
func (s *side) crowds(ctx context.Context, b *bench) error {
	lives, _, err := s.Client.Burst(ctx, statsPods, callers, b.spec(s, "stats"))
	if err != nil {
		return err
	}
	for range statsRounds {
		start := time.Now()
		r, err := s.Client.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
		if err != nil {
			return err
		}
		if len(r.Stats) < statsPods {
			return fmt.Errorf("statistics of %d containers, want %d", len(r.Stats), statsPods)
		}
		s.stats = append(s.stats, time.Since(start))
	}
	more, _, err := s.Client.Burst(ctx, loadedPods-statsPods, callers, b.spec(s, "loaded"))
	if err != nil {
		return err
	}
	if s.loaded, err = s.weigh(); err != nil {
		return err
	}
	if s.berth != nil {
		if s.newMonitors, err = s.monitors(); err != nil {
			return err
		}
	}
	if _, err := berthd.Sink(ctx, append(lives, more...), callers); err != nil {
		return err
	}
	pods := burstPods
	if len(s.Ready) > 0 && s.Ready[len(s.Ready)/2] > 50*time.Millisecond {
		pods = burstPodsFew
	}
	lives, took, err := s.Client.Burst(ctx, pods, callers, b.spec(s, "burst"))
	if err != nil {
		return err
	}
	s.rate = float64(pods) / took.Seconds()
	_, err = berthd.Sink(ctx, lives, callers)
	return err
}

// weighNew weighs the monitors of pods that were just started.
func (s *side) weighNew(ctx context.Context, b *bench) error {
	lives, _, err := s.Client.Burst(ctx, loadedPods, callers, b.spec(s, "new"))
	if err != nil {
		return err
	}
	if s.newMonitors, err = s.monitors(); err != nil {
		return err
	}
	_, err = berthd.Sink(ctx, lives, callers)
	return err
}

// many is what a crowd of 200 pods of berth's took.
type many struct{ up, list, gone time.Duration }

// twoHundred runs 200 pods, lists them, takes them away, and holds the host against what it was before.
func (b *bench) twoHundred(ctx context.Context) error {
	s := b.sides[0]
	before, err := invariants.Steady(ctx, s.berth.Daemon(), invariants.Take)
	if err != nil {
		return err
	}
	lives, up, err := s.Client.Burst(ctx, manyPods, callers, b.spec(s, "many"))
	if err != nil {
		return err
	}
	start := time.Now()
	pods, err := s.Client.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := s.Client.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	b.many = many{up: up, list: time.Since(start)}
	if p, c := len(pods.Items), len(containers.Containers); p != manyPods || c != manyPods {
		return fmt.Errorf("%d pods and %d containers are listed, want %d", p, c, manyPods)
	}
	if b.many.gone, err = berthd.Sink(ctx, lives, callers); err != nil {
		return err
	}
	lines, err := invariants.Settle(ctx, func(context.Context) ([]string, error) {
		after, err := invariants.Take(s.berth.Daemon())
		return invariants.Diff(s.berth.Daemon(), before, after), err
	})
	if err == nil && len(lines) > 0 {
		err = errors.New("the host is not as before:\n  " + strings.Join(lines, "\n  "))
	}
	return err
}
