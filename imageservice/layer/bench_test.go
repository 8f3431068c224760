package layer_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/imageservice/layer"
	. "github.com/berthd/berth/imageservice/snapshot/snapshottest"
)

// benchLayers are one layer of many small files and one of few large ones; or, with BERTH_LAYERS=DIR, the tars of DIR.
func benchLayers(b *testing.B) map[string][]byte {
	if dir := os.Getenv("BERTH_LAYERS"); dir != "" {
		layers := map[string][]byte{}
		names, err := filepath.Glob(filepath.Join(dir, "*.tar"))
		if err != nil || len(names) == 0 {
			b.Fatalf("no tars in %s: %v", dir, err)
		}
		for _, name := range names {
			if layers[filepath.Base(name)], err = os.ReadFile(name); err != nil {
				b.Fatal(err)
			}
		}
		return layers
	}
	noise := make([]byte, 32<<20)
	r := rand.NewChaCha8([32]byte{})
	r.Read(noise)
	var small []Entry
	for i := range 8000 {
		small = append(small, File(fmt.Sprintf("usr/share/d%d/e%d/file-%d", i%10, i/40, i), string(noise[i*1000:][:i%8000])))
	}
	return map[string][]byte{
		"small": Layer(small...),
		"large": Layer(File("a", string(noise)), File("b", string(noise[1<<20:])), File("c", strings.Repeat("text\n", 6<<20))),
	}
}

// BenchmarkApply stands beside "tar xf" of the same bytes.
func BenchmarkApply(b *testing.B) {
	needRoot(b)
	layers := benchLayers(b)
	names := make([]string, 0, len(layers))
	for name := range layers {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		content := layers[name]
		each := func(b *testing.B, unpack func(dir string) error) {
			b.SetBytes(int64(len(content)))
			for i := range b.N {
				dir := filepath.Join(b.TempDir(), fmt.Sprint(i))
				if err := os.Mkdir(dir, 0o755); err != nil {
					b.Fatal(err)
				}
				if err := unpack(dir); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				os.RemoveAll(dir)
				b.StartTimer()
			}
		}
		b.Run(name+"/berth", func(b *testing.B) {
			each(b, func(dir string) error {
				_, err := layer.Apply(b.Context(), bytes.NewReader(content), dir, nil, layer.Options{})
				return err
			})
		})
		b.Run(name+"/tar", func(b *testing.B) {
			if _, err := exec.LookPath("tar"); err != nil {
				b.Fatal("the command tar is needed")
			}
			each(b, func(dir string) error {
				cmd := exec.Command("tar", "xpf", "-", "-C", dir)
				cmd.Stdin = bytes.NewReader(content)
				return cmd.Run()
			})
		})
	}
}
