package uml_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
)

// Images as volumes on a kernel that takes layers in one string, and clones nothing that is mounted nowhere.
func TestImageVolumes(t *testing.T) {
	d := harness.Start(t)
	before := hostMounts(t)
	image, err := harness.Registry(t).Push("test/volume", "1", registrytest.Image{Layers: []registrytest.Layer{
		{Files: []registrytest.File{{Name: "etc/", Mode: 0o755}, {Name: "etc/conf", Body: []byte("below")}, {Name: "gone", Body: []byte("x")}}},
		{Files: []registrytest.File{{Name: "etc/conf", Body: []byte("above")}, {Name: ".wh.gone"}, {Name: "link", Type: '2', Linkname: "/../../etc"},
			{Name: "out", Type: '2', Linkname: "../../../../root"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	d.Pull(image.Ref)
	mount := func(at, sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: at, Readonly: true, Image: &runtimeapi.ImageSpec{Image: image.ImageID}, ImageSubPath: sub}
	}
	pod := d.RunPod(d.Pod("volumes", harness.Privileged))
	c := pod.Run(d.Sleeper("c", harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }),
		harness.Mounts(mount("/all", ""), mount("/part", "link"), mount("/new/file", "etc/conf"))))
	if got := c.Sh("cat /all/etc/conf /part/conf /new/file; ls /all /part"); got != "aboveaboveabove/all:\netc\nlink\nout\n\n/part:\nconf" {
		t.Errorf("content = %q", got)
	}
	c.Sh("for m in /all /part /new/file; do mount -o remount,bind,rw $m; mount -o remount,rw $m; done 2>/dev/null; true")
	for _, path := range []string{"/all/new", "/part/conf", "/new/file"} {
		if r := c.Exec("sh", "-c", "echo x > "+path); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("write to %s: %+v", path, r)
		}
	}
	if got := c.Status().Mounts[1].GetImage().GetImageRef(); got != image.ImageID {
		t.Errorf("image in the status = %q", got)
	}
	for _, sub := range []string{"gone", "out"} {
		if _, err := pod.TryCreate(d.Sleeper("bad", harness.Mounts(mount("/x", sub)))); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q of the image: %v, want InvalidArgument", sub, err)
		}
	}
	c.Stop(time.Second)
	pod.Remove()
	d.Eventually(harness.Timeout, "the mount table is as it was", func() bool { return hostMounts(t) == before })
	d.Check()
}
