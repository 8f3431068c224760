package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/selinux"
	"github.com/berthd/berth/oci/spec"
)

// categories is how many there are for levels: two of them make one (KEP-1710, and the kernel's policies).
const categories = 1024

// levelTries bounds the search for a level that no pod has. With all pods that a host can run it ends at once.
const levelTries = 1000

// chooseLevel gives a new sandbox its own SELinux level, where its containers need one. Preconditions: m.mu held.
func (m *Manager) chooseLevel(p *pod) error {
	if !spec.NeedsLevel(p.config, m.cfg.Host.SELinux) {
		return nil
	}
	taken := map[string]bool{}
	for _, other := range m.pods {
		taken[other.rec.SELinuxLevel] = true
	}
	for range levelTries {
		first, second := category(), category()
		if first > second {
			first, second = second, first
		}
		if level := fmt.Sprintf("s0:c%d,c%d", first, second); first != second && !taken[level] {
			p.rec.SELinuxLevel = level
			return nil
		}
	}
	return fmt.Errorf("no SELinux level is free: %w", ErrExhausted)
}

func category() int64 {
	n, _ := rand.Int(rand.Reader, big.NewInt(categories)) // it never fails (crypto/rand)
	return n.Int64()
}

// labelPodFiles labels files of a sandbox's folder that its containers share.
func (m *Manager) labelPodFiles(ctx context.Context, p *pod, names ...string) error {
	label := spec.PodMountLabel(m.specPod(p), m.cfg.Host.SELinux)
	if label == "" {
		return nil
	}
	for _, name := range names {
		if err := selinux.Relabel(ctx, filepath.Join(m.stateDir(p.id), name), label); err != nil {
			return err
		}
	}
	return nil
}

// relabelVolumes labels the volumes whose request says so.
func relabelVolumes(ctx context.Context, config *runtimeapi.ContainerConfig, made *specs.Spec) error {
	for _, path := range spec.Relabels(config, made) {
		err := selinux.Relabel(ctx, path, made.Linux.MountLabel)
		if errors.Is(err, selinux.ErrNotAllowed) {
			return &spec.InvalidError{Field: "config.mounts.selinux_relabel", Value: path, Rule: "must not be set for a path that the host itself lives in"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
