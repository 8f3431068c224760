package integration_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
)

func TestVolumesOfArtifacts(t *testing.T) {
	d := harness.Start(t)
	pushed, err := harness.Registry(t).Push("test/artifact", "1", registrytest.Artifact{Files: []registrytest.File{
		{Name: "models/a", Body: []byte("weights")}, {Name: "readme", Body: []byte("read me")},
	}}.Image())
	if err != nil {
		t.Fatal(err)
	}
	id := pushed.Digest.String()
	image := &runtimeapi.ImageSpec{Image: pushed.Ref}
	pull, err := d.Images.PullImage(d.Context(), &runtimeapi.PullImageRequest{Image: image})
	if err != nil || pull.ImageRef != id {
		t.Fatalf("PullImage = %v, %v, want %s", pull, err, id)
	}
	st, err := d.Images.ImageStatus(d.Context(), &runtimeapi.ImageStatusRequest{Image: image, Verbose: true})
	if err != nil || st.Image.GetId() != id || len(st.Image.GetRepoTags()) != 1 || st.Image.GetSize() == 0 {
		t.Errorf("ImageStatus = %v, %v", st, err)
	}
	list, err := d.Images.ListImages(d.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: image}})
	if err != nil || len(list.Images) != 1 || list.Images[0].Id != id {
		t.Errorf("ListImages = %v, %v", list, err)
	}

	pod := d.RunPod(d.Pod("artifacts"))
	_, err = pod.TryCreate(d.Sleeper("run", func(c *runtimeapi.ContainerConfig) { c.Image = image }))
	refused(t, "a container from an artifact", err, codes.FailedPrecondition, "artifact", "application/vnd.example.thing", pushed.Ref)

	mounts := harness.Mounts(imageMount(pushed.Ref, "/all", ""), imageMount(id, "/folder", "models"), imageMount(pushed.DigestRef, "/file", "readme"))
	c := pod.Run(d.Sleeper("c", mounts))
	check := func() {
		t.Helper()
		if got := c.Sh("cat /all/models/a /all/readme /folder/a /file; echo; stat -c '%u %g %a' /all/readme; ls /all"); got != "weightsread meweightsread me\n0 0 444\nmodels\nreadme" {
			t.Errorf("content = %q", got)
		}
		if r := c.Exec("sh", "-c", "rm -f /all/readme"); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("a file of it was removed: %+v", r)
		}
	}
	check()
	for _, m := range c.Status().Mounts {
		if m.GetImage() != nil && m.GetImage().GetImageRef() != id {
			t.Errorf("image_ref = %q, want %q", m.GetImage().GetImageRef(), id)
		}
	}
	if _, err := d.Images.RemoveImage(d.Context(), &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
		t.Fatal(err)
	}
	d.Restart()
	check()
	_, err = pod.TryCreate(d.Sleeper("late", harness.Mounts(imageMount(pushed.Ref, "/all", ""))))
	refused(t, "an artifact that is gone", err, codes.NotFound, pushed.Ref)
	c.Stop(time.Second)
	c.Remove()
	d.Check()
}

func TestVolumeOfAnArtifactInAUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	pushed, err := harness.Registry(t).Push("test/artifact", "users", registrytest.Artifact{Files: []registrytest.File{{Name: "a", Body: []byte("a")}}}.Image())
	if err != nil {
		t.Fatal(err)
	}
	d.Pull(pushed.Ref)
	d.Pull(harness.Base(t).Ref)
	pod := d.RunPod(d.Pod("users", users(600000)))
	c := pod.Run(d.Sleeper("c", likePod(pod), harness.Mounts(mapped(pod, imageMount(pushed.Ref, "/all", "")), mapped(pod, imageMount(pushed.Ref, "/file", "a")))))
	if got := c.Sh("cat /all/a /file; stat -c %u:%g /all /all/a /file"); got != "aa0:0\n0:0\n0:0" {
		t.Errorf("content and owners = %q", got)
	}
	pod.Remove()
	d.Check()
}
