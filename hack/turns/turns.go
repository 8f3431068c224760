// Package turns runs pods of the kernel's floor and of CRI runtimes one after the other, so that all see the same machine, and keeps how
// long they took. All pods run the same program, the floor's.
package turns

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/hack/floor"
	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/images"
)

// Side is what one side took: for each pod until its container ran, for each exec, and for each pod until it was gone.
type Side struct{ Ready, Exec, Gone []time.Duration }

// Peer is a runtime that takes turns.
type Peer struct {
	Side
	Client       *berthd.Client
	CgroupParent string // of its pods; "" for its own
}

// Turns are the floor and its peers. Open makes one, Add adds a peer, Close ends it.
type Turns struct {
	Floor Side
	Peers []*Peer
	Image string // of the floor's program, as Serve names it

	dir   string
	floor *floor.Floor
	made  int
}

// Open prepares the floor. What is made goes below dir.
func Open(dir string) (*Turns, error) {
	f, err := floor.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Turns{dir: dir, floor: f}, nil
}

// Close removes the image from the peers, and the floor. Pods must be gone.
func (t *Turns) Close(ctx context.Context) error {
	var errs []error
	for _, p := range t.Peers {
		_, err := p.Client.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: t.Image}})
		errs = append(errs, err)
	}
	return errors.Join(append(errs, t.floor.Close())...)
}

// Serve makes the image of the floor's program. The registry is needed until the last Add.
func (t *Turns) Serve(registry *registrytest.Registry) error {
	layer, err := images.NewBuilder().Program("bin/sleep", t.floor.Program()).Hardlink("bin/true", "bin/sleep").Layer()
	if err != nil {
		return err
	}
	pushed, err := registry.Push("bench/floor", "1", registrytest.Image{Layers: []registrytest.Layer{layer},
		Config: ocispec.ImageConfig{Env: []string{images.Path}, Cmd: []string{"/bin/sleep"}}})
	t.Image = pushed.Ref
	return err
}

// Add pulls the image to a peer, which takes turns from then on.
func (t *Turns) Add(ctx context.Context, p *Peer) error {
	if _, err := p.Client.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: t.Image}}); err != nil {
		return err
	}
	t.Peers = append(t.Peers, p)
	return nil
}

// Up runs one pod of a peer's with a name of its own.
func (t *Turns) Up(ctx context.Context, p *Peer, name string) (*berthd.Life, time.Duration, error) {
	return p.Client.Up(ctx, berthd.LifeSpec{Name: name, Image: t.Image, Command: []string{"/bin/sleep"}, LogDir: filepath.Join(t.dir, "logs"),
		CgroupParent: p.CgroupParent})
}

// round is what runs at the same time: a pod of the floor and one of each peer.
type round struct {
	floor *floor.Pod
	lives []*berthd.Life
}

// Run runs so many pods of each side, makes so many execs in each, and takes the pods away. It may be called again, and adds to what was
// measured.
func (t *Turns) Run(ctx context.Context, pods, execs int) error {
	var rounds []round
	for range pods {
		r, err := t.up(ctx)
		if err != nil {
			return err
		}
		rounds = append(rounds, r)
	}
	for range execs {
		for _, r := range rounds {
			if err := t.exec(ctx, r); err != nil {
				return err
			}
		}
	}
	for _, r := range rounds {
		if err := t.down(ctx, r); err != nil {
			return err
		}
	}
	return nil
}

func (t *Turns) up(ctx context.Context) (r round, err error) {
	var took time.Duration
	if r.floor, took, err = t.floor.Up(); err != nil {
		return r, err
	}
	t.Floor.Ready = append(t.Floor.Ready, took)
	t.made++
	for _, p := range t.Peers {
		l, took, err := t.Up(ctx, p, fmt.Sprintf("turn%d", t.made))
		if err != nil {
			return r, err
		}
		r.lives, p.Ready = append(r.lives, l), append(p.Ready, took)
	}
	return r, nil
}

func (t *Turns) exec(ctx context.Context, r round) error {
	took, err := r.floor.Exec()
	if err != nil {
		return err
	}
	t.Floor.Exec = append(t.Floor.Exec, took)
	for i, p := range t.Peers {
		if took, err = r.lives[i].Exec(ctx, "/bin/true"); err != nil {
			return err
		}
		p.Exec = append(p.Exec, took)
	}
	return nil
}

func (t *Turns) down(ctx context.Context, r round) error {
	took, err := r.floor.Down()
	if err != nil {
		return err
	}
	t.Floor.Gone = append(t.Floor.Gone, took)
	for i, p := range t.Peers {
		if took, err = r.lives[i].Down(ctx); err != nil {
			return err
		}
		p.Gone = append(p.Gone, took)
	}
	return nil
}

// At returns a quantile in milliseconds.
func At(d []time.Duration, q float64) float64 {
	s := slices.Sorted(slices.Values(d))
	return float64(s[int(q*float64(len(s)-1))].Microseconds()) / 1000
}

// Multiple says how many times the floor's median something took.
func Multiple(d, floor []time.Duration) float64 { return At(d, .5) / At(floor, .5) }
