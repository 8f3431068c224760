package cri

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice"
)

// Threat B10: what the kubelet enforces runAsNonRoot by.
func TestImageUser(t *testing.T) {
	for user, want := range map[string]string{
		"": "-1 ", ":": "-1 ", ":0": "-1 ", "0": "0 ", "00": "0 ", "1000": "1000 ", "1000:1000": "1000 ", "app": "-1 app", "app:grp": "-1 app",
		"4294967296": "4294967296 ", "99999999999999999999": "-1 99999999999999999999", "-1": "-1 -1", "0x0": "-1 0x0", "+0": "-1 +0", " 0": "-1  0",
		"\xff": "-1 \uFFFD",
	} {
		uid, name := imageUser(user)
		if got := fmt.Sprintf("%d %s", uid, name); got != want {
			t.Errorf("imageUser(%q) = %q, want %q", user, got, want)
		}
	}
}

func TestImageStatus(t *testing.T) {
	w := newWorld(t)
	diffIDs := []digest.Digest{digest.FromString("a"), digest.FromString("b")}
	w.images.images = []imageservice.Image{{
		ID: imageID, RepoTags: []string{"r/x:1"}, RepoDigests: []string{"r/x@sha256:2"}, Size: 5, DiffIDs: diffIDs, RawConfig: []byte(`{"os":"linux"}`),
		Config: imageservice.ImageConfig{User: "1000:1"},
	}}
	for _, reference := range []string{imageID, "r/x:1", "r/x@sha256:2"} {
		s, err := w.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: reference}})
		if err != nil || s.GetImage().GetId() != imageID || s.GetImage().GetUid().GetValue() != 1000 || s.GetImage().GetUsername() != "" || s.GetInfo() != nil {
			t.Errorf("ImageStatus(%s) = %v, %v", reference, s, err)
		}
	}
	s, err := w.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: imageID}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var facts struct {
		ChainID   string `json:"chainID"`
		ImageSpec struct{ OS string }
	}
	if err := json.Unmarshal([]byte(s.GetInfo()["info"]), &facts); err != nil || facts.ImageSpec.OS != "linux" ||
		facts.ChainID != digest.FromString(diffIDs[0].String()+" "+diffIDs[1].String()).String() {
		t.Errorf("info = %q, %v", s.GetInfo()["info"], err)
	}
}

func TestImageStatusOfWhatIsNotThere(t *testing.T) {
	w := newWorld(t)
	w.images.pulls = []imageservice.Progress{{Ref: "r/y:1"}}
	s, err := w.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "r/y:1"}, Verbose: true})
	if err != nil || s.GetImage() != nil || s.GetInfo()["pull"] == "" {
		t.Errorf("ImageStatus = %v, %v, want no image and its pull", s, err)
	}
	w.images.pulls[0].Ended = &time.Time{}
	s, err = w.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "r/y:1"}, Verbose: true})
	if err != nil || s.GetInfo()["pull"] != "" || !strings.Contains(s.GetInfo()["lastPull"], "r/y:1") {
		t.Errorf("ImageStatus = %v, %v, want how the last pull went", s, err)
	}
	w.images.fail["Image"] = fmt.Errorf("reference: %w", imageservice.ErrInvalidReference)
	if _, err := w.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "UPPER"}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ImageStatus = %v, want InvalidArgument", err)
	}
	if _, err := w.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("ImageStatus without a name = %v, want InvalidArgument", err)
	}
}

func TestListImages(t *testing.T) {
	w := newWorld(t)
	w.images.images = []imageservice.Image{{ID: imageID, RepoTags: []string{"r/x:1"}, Pinned: true}, {ID: "sha256:2"}}
	for filter, want := range map[string]int{"": 2, "r/x:1": 1, "none": 0} {
		l, err := w.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: filter}}})
		if err != nil || len(l.GetImages()) != want {
			t.Errorf("ListImages(%q) = %v, %v, want %d", filter, l, err, want)
		}
	}
}

func TestPullImage(t *testing.T) {
	w := newWorld(t)
	r := &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: "r/x:1"},
		Auth:  &runtimeapi.AuthConfig{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"},
	}
	answer, err := w.image.PullImage(t.Context(), r)
	if err != nil || answer.GetImageRef() != imageID {
		t.Errorf("PullImage = %v, %v", answer, err)
	}
	if w.images.auth != (imageservice.Auth{Username: "u", Password: "p", Auth: "a", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}) {
		t.Error("credentials were lost on the way")
	}
	w.images.fail["Pull"] = fmt.Errorf("pull r/x:1: %w: dial tcp: connection refused", imageservice.ErrRegistryUnavailable)
	_, err = w.image.PullImage(t.Context(), r)
	if status.Code(err) != codes.Unknown || !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable: ") {
		t.Errorf("PullImage = %v, want what the kubelet looks for", err)
	}
	r.Image.RuntimeHandler = "kata"
	if _, err = w.image.PullImage(t.Context(), r); status.Code(err) != codes.InvalidArgument {
		t.Errorf("PullImage with an unknown handler = %v", err)
	}
}

func TestRemoveImageOfWhatIsNotThere(t *testing.T) {
	w := newWorld(t)
	w.images.fail["Remove"] = imageservice.ErrNotFound
	if _, err := w.image.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: strings.Repeat("0", 64)}}); err != nil {
		t.Errorf("RemoveImage = %v", err)
	}
}

func TestImageFsInfo(t *testing.T) {
	w := newWorld(t)
	i, err := w.image.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range [][]*runtimeapi.FilesystemUsage{i.GetImageFilesystems(), i.GetContainerFilesystems()} {
		if len(u) != 1 || u[0].GetTimestamp() <= 0 || u[0].GetFsId().GetMountpoint() == "" || u[0].GetUsedBytes().GetValue() == 0 || u[0].GetInodesUsed().GetValue() == 0 {
			t.Errorf("usage = %v", u)
		}
	}
}
