package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/images"
)

// bigLayers are the sizes of the big image's layers: 809 MiB.
var bigLayers = []int64{1 << 20, 101 << 20, 101 << 20, 101 << 20, 101 << 20, 101 << 20, 101 << 20, 101 << 20, 101 << 20}

// bigImage is the image that is pulled.
type bigImage struct {
	ref    string
	packed int64         // bytes
	gunzip time.Duration // gzip alone, one process a CPU
}

// pull measures pulls of the big image, side by side.
func (b *bench) pull(ctx context.Context) error {
	layers, err := images.Big(bigLayers...)
	if err != nil {
		return err
	}
	pushed, err := b.registry.Push("bench/big", "1", registrytest.Image{Layers: layers})
	if err != nil {
		return err
	}
	b.big.ref = pushed.Ref
	if b.big.gunzip, err = gunzip(ctx, filepath.Join(b.dir, "blobs"), layers); err != nil {
		return err
	}
	for _, l := range layers {
		b.big.packed += int64(len(l.Blob))
	}
	for range b.pulls {
		for _, s := range b.sides {
			start := time.Now()
			if err := pull(ctx, s, b.big.ref); err != nil {
				return err
			}
			s.pulls = append(s.pulls, time.Since(start))
			if err := s.removeImage(ctx, b.big.ref); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

func pull(ctx context.Context, s *side, ref string) error {
	_, err := s.Client.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("%s: pull %s: %w", s.name, ref, err)
	}
	return nil
}

// gunzip measures what unpacking costs without network, checksums, tar and files.
func gunzip(ctx context.Context, dir string, layers []registrytest.Layer) (time.Duration, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	for i, l := range layers {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d.gz", i)), l.Blob, 0o600); err != nil {
			return 0, err
		}
	}
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	start := time.Now()
	for i := range layers {
		g.Go(func() error {
			return exec.CommandContext(ctx, "gzip", "-dc", filepath.Join(dir, fmt.Sprintf("%d.gz", i))).Run()
		})
	}
	err := g.Wait()
	return time.Since(start), err
}
