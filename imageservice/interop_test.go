package imageservice

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// TestPullsWhatAnotherImplementationPushed holds our reading of the specifications against somebody else's: images made,
// pushed and served by go-containerregistry.
func TestPullsWhatAnotherImplementationPushed(t *testing.T) {
	needRoot(t)
	srv := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	s := openReal(t, filepath.Join(t.TempDir(), "images"))
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for i, media := range []types.MediaType{types.DockerManifestSchema2, types.OCIManifestSchema1} {
		img, err := random.Image(100_000, 3)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.OS, config.Architecture, config.Config.User = "linux", runtime.GOARCH, "nobody"
		if img, err = mutate.ConfigFile(mutate.MediaType(img, media), config); err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(fmt.Sprintf("%s/some/image:%d", host, i))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
		want, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		id, err := s.Pull(t.Context(), ref.String(), Auth{}, nil)
		if err != nil || id != want.String() {
			t.Errorf("Pull(%s) = %s, %v, want %s", ref, id, err, want)
		}
		index, err := random.Index(10, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}},
		})
		ref, err = name.ParseReference(fmt.Sprintf("%s/some/index:%d", host, i))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.WriteIndex(ref, index); err != nil {
			t.Fatal(err)
		}
		if id, err := s.Pull(t.Context(), ref.String(), Auth{}, nil); err != nil || id != want.String() {
			t.Errorf("Pull(%s) = %s, %v, want %s", ref, id, err, want)
		}
		got, err := s.Image(want.String())
		if err != nil || len(got.RepoTags) != 2 || len(got.RepoDigests) != 2 || got.Config.User != "nobody" {
			t.Errorf("Image = %+v, %v", got, err)
		}
	}
}
