// Package turns runs pods of the kernel's floor and of a berthd one after the other, so that both see the same machine, and keeps how
// long they took. The pods of both run the same program, the floor's.
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

// Turns are two sides. Open makes one, Close ends it.
type Turns struct {
	Floor, Berth Side

	dir    string
	floor  *floor.Floor
	daemon *berthd.Process
	image  string
	made   int
}

// Open prepares the floor, and pulls the floor's program as an image. What is made goes below dir.
func Open(ctx context.Context, dir string, daemon *berthd.Process) (*Turns, error) {
	f, err := floor.Open(dir)
	if err != nil {
		return nil, err
	}
	t := &Turns{dir: dir, floor: f, daemon: daemon}
	if err := t.pull(ctx); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

// Close removes the image and the floor. Pods must be gone.
func (t *Turns) Close(ctx context.Context) error {
	_, err := t.daemon.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: t.image}})
	return errors.Join(err, t.floor.Close())
}

func (t *Turns) pull(ctx context.Context) error {
	registry, err := registrytest.Start(registrytest.Options{})
	if err != nil {
		return err
	}
	defer registry.Close()
	layer, err := images.NewBuilder().Program("bin/sleep", t.floor.Program()).Hardlink("bin/true", "bin/sleep").Layer()
	if err != nil {
		return err
	}
	pushed, err := registry.Push("bench/floor", "1", registrytest.Image{Layers: []registrytest.Layer{layer},
		Config: ocispec.ImageConfig{Env: []string{images.Path}, Cmd: []string{"/bin/sleep"}}})
	if err != nil {
		return err
	}
	t.image = pushed.Ref
	_, err = t.daemon.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: t.image}})
	return err
}

// Up runs one pod of berth's with a name of its own.
func (t *Turns) Up(ctx context.Context, name string) (*berthd.Life, time.Duration, error) {
	return t.daemon.Up(ctx, berthd.LifeSpec{Name: name, Image: t.image, Command: []string{"/bin/sleep"}, LogDir: filepath.Join(t.dir, "logs")})
}

// Run runs so many pods of each side, calls loaded (if it is not nil) while all of them run, makes so many execs in each, and takes the
// pods away. It may be called again, and adds to what was measured.
func (t *Turns) Run(ctx context.Context, pods, execs int, loaded func() error) error {
	var floors []*floor.Pod
	var lives []*berthd.Life
	for range pods {
		p, took, err := t.floor.Up()
		if err != nil {
			return err
		}
		floors, t.Floor.Ready = append(floors, p), append(t.Floor.Ready, took)
		t.made++
		l, took, err := t.Up(ctx, fmt.Sprintf("turn%d", t.made))
		if err != nil {
			return err
		}
		lives, t.Berth.Ready = append(lives, l), append(t.Berth.Ready, took)
	}
	if loaded != nil {
		if err := loaded(); err != nil {
			return err
		}
	}
	for range execs {
		for i := range pods {
			took, err := floors[i].Exec()
			if err != nil {
				return err
			}
			t.Floor.Exec = append(t.Floor.Exec, took)
			if took, err = lives[i].Exec(ctx, "/bin/true"); err != nil {
				return err
			}
			t.Berth.Exec = append(t.Berth.Exec, took)
		}
	}
	for i := range pods {
		took, err := floors[i].Down()
		if err != nil {
			return err
		}
		t.Floor.Gone = append(t.Floor.Gone, took)
		if took, err = lives[i].Down(ctx); err != nil {
			return err
		}
		t.Berth.Gone = append(t.Berth.Gone, took)
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
