package integration_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
)

// content is an image that is nothing but files, of two layers, some of them hostile.
func content(t testing.TB, d *harness.Daemon, victim string) registrytest.Pushed {
	t.Helper()
	below := registrytestLayer(t, func(b *builder) {
		b.Dir("models", 0o755).File("models/a", "below", 0o644).File("models/gone", "x", 0o644)
	})
	above := registrytest.Layer{Files: []registrytest.File{
		{Name: "models/a", Body: []byte("above")}, {Name: "models/.wh.gone"}, {Name: "models/b", Body: []byte("b"), UID: 33, GID: 34, Mode: 0o600},
		{Name: "models/run", Body: []byte("#!/bin/sh\necho ran\n"), Mode: 0o755},
		{Name: "latest", Type: '2', Linkname: "/models"}, {Name: "file", Type: '2', Linkname: "latest/../models/a"},
		{Name: "escape", Type: '2', Linkname: "../../../../../../../../.." + victim}, {Name: "absolute", Type: '2', Linkname: victim},
		{Name: "magic", Type: '2', Linkname: "/proc/self/root" + victim}, {Name: "loop", Type: '2', Linkname: "loop"},
		{Name: "fifo", Type: '6'}, {Name: "null", Type: '3', Major: 1, Minor: 3, Mode: 0o666},
	}}
	pushed, err := harness.Registry(t).Push("test/content", "1", registrytest.Image{Layers: []registrytest.Layer{below, above}})
	if err != nil {
		t.Fatal(err)
	}
	d.Pull(pushed.Ref)
	return pushed
}

// imageMount mounts an image, or what is at a path in it.
func imageMount(image, at, sub string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: at, Readonly: true, Image: &runtimeapi.ImageSpec{Image: image}, ImageSubPath: sub}
}

func TestVolumesOfImages(t *testing.T) {
	d := harness.Start(t)
	victim := folder(t, d, "victim")
	image := content(t, d, victim)
	pod := d.RunPod(d.Pod("volumes"))
	noexec := imageMount(image.Ref, "/noexec", "models")
	noexec.MountOptions = []string{"noexec", "nosuid"}
	noexec.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	mounts := harness.Mounts(imageMount(image.Ref, "/all", ""), imageMount(image.ImageID, "/new/deep", "models"), imageMount(image.DigestRef, "/link", "latest"),
		imageMount(image.Ref, "/etc/passwd", "file"), noexec, imageMount(harness.Base(t).Ref, "/base", ""))
	c := pod.Run(d.Sleeper("c", mounts))
	if got := c.Sh("cat /all/models/a /new/deep/a /link/b /etc/passwd; ls /new/deep; stat -c '%u %g %a' /new/deep/b; /new/deep/run; /base/bin/busybox echo base"); got !=
		"aboveabovebabovea\nb\nrun\n33 34 600\nran\nbase" {
		t.Errorf("content = %q", got)
	}
	for _, script := range []string{"echo x > /all/new", "echo x > /new/deep/a", "rm /link/b", "echo x > /etc/passwd", "chmod 777 /base/bin"} {
		if r := c.Exec("sh", "-c", script); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
			t.Errorf("%q: %+v", script, r)
		}
	}
	if r := c.Exec("sh", "-c", "/noexec/run"); r.Code == 0 {
		t.Errorf("a program of a volume with noexec runs: %+v", r)
	}
	if r := c.Exec("sh", "-c", "echo x > /all/null"); r.Code == 0 {
		t.Errorf("a device in an image volume works: %+v", r)
	}
	if got := c.Sh("ls /all/escape /all/absolute 2>/dev/null; true"); got != "" {
		t.Errorf("a link of the image shows %q", got)
	}
	refs := map[string]string{}
	for _, m := range c.Status().Mounts {
		refs[m.ContainerPath] = m.GetImage().GetImage() + " " + m.GetImage().GetImageRef() + " " + m.ImageSubPath + " " + m.HostPath
	}
	if want := image.Ref + " " + image.ImageID + " models "; refs["/noexec"] != want {
		t.Errorf("status = %q, want %q", refs["/noexec"], want)
	}

	d.Restart()
	if got := c.Sh("cat /new/deep/a"); got != "above" {
		t.Errorf("after a restart = %q", got)
	}
	c.Stop(time.Second)
	c.Remove()
	d.Check()
}

// The layers of an image stay while a container has them mounted, or is to have them.
func TestImageVolumeOutlivesItsImage(t *testing.T) {
	d := harness.Start(t)
	image := content(t, d, "/victim")
	layers := filepath.Join(d.Options().Root, "images", "layers")
	layer := func() bool {
		_, err := os.Stat(filepath.Join(layers, image.Layers[1].DiffID.Encoded()))
		return err == nil
	}
	pod := d.RunPod(d.Pod("outlives"))
	running := pod.Run(d.Sleeper("running", harness.Mounts(imageMount(image.Ref, "/all", ""))))
	config := d.Sleeper("created", harness.Mounts(imageMount(image.Ref, "/all", ""), imageMount(image.Ref, "/part", "models")))
	created := pod.Create(config)
	if again := pod.Create(config); again.ID != created.ID {
		t.Errorf("the same request again made %s, want %s", again.ID, created.ID)
	}
	remove := &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image.Ref}}
	if _, err := d.Images.RemoveImage(d.Context(), remove); err != nil {
		t.Fatal(err)
	}
	_, err := pod.TryCreate(d.Sleeper("late", harness.Mounts(imageMount(image.Ref, "/all", ""))))
	refused(t, "an image that is gone", err, codes.NotFound, "config.mounts[0].image", image.Ref)
	d.Restart()
	created.Start()
	for _, c := range []*harness.Container{running, created} {
		if got := c.Sh("cat /all/models/a"); got != "above" {
			t.Errorf("content = %q", got)
		}
	}
	if got := created.Status().Mounts[1].GetImage().GetImageRef(); got != image.ImageID {
		t.Errorf("reference after a restart = %q, want %q", got, image.ImageID)
	}
	running.Remove()
	if !layer() {
		t.Error("a layer is gone while a container has it mounted")
	}
	created.Remove()
	d.Eventually(10*time.Second, "the layers go with the last container", func() bool { return !layer() })
	d.Pull(image.Ref) // the registry's content is whole again
	d.Check()
}

func TestImageVolumesRefused(t *testing.T) {
	d := harness.Start(t)
	victim := folder(t, d, "victim")
	image := content(t, d, victim)
	pod := d.RunPod(d.Pod("refused"))
	change := func(f func(*runtimeapi.Mount)) *runtimeapi.Mount {
		m := imageMount(image.Ref, "/x", "")
		f(m)
		return m
	}
	unchanged(d, func() {
		for _, tc := range []struct {
			name  string
			mount *runtimeapi.Mount
			code  codes.Code
			says  string
		}{
			{"writable", change(func(m *runtimeapi.Mount) { m.Readonly = false }), codes.InvalidArgument, "readonly"},
			{"with a host path", change(func(m *runtimeapi.Mount) { m.HostPath = "/etc" }), codes.InvalidArgument, "host_path"},
			{"that propagates", change(func(m *runtimeapi.Mount) {
				m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			}), codes.InvalidArgument, "propagation"},
			{"that is unknown", imageMount("127.0.0.1:1/no:1", "/x", ""), codes.NotFound, "127.0.0.1:1/no:1"},
			{"that is no reference", imageMount("NO WAY", "/x", ""), codes.InvalidArgument, "mounts[0].image"},
			{"a part that is not there", imageMount(image.Ref, "/x", "not-existing"), codes.InvalidArgument, "not-existing"},
			{"a part that was deleted", imageMount(image.Ref, "/x", "models/gone"), codes.InvalidArgument, "models/gone"},
			{"a part that climbs", imageMount(image.Ref, "/x", "../etc"), codes.InvalidArgument, "image_sub_path"},
			{"a part that is absolute", imageMount(image.Ref, "/x", "/models"), codes.InvalidArgument, "image_sub_path"},
			{"a link out of the image", imageMount(image.Ref, "/x", "escape"), codes.InvalidArgument, "escape"},
			{"an absolute link out of the image", imageMount(image.Ref, "/x", "absolute/file"), codes.InvalidArgument, "absolute"},
			{"a link through /proc", imageMount(image.Ref, "/x", "magic"), codes.InvalidArgument, "magic"},
			{"a link to itself", imageMount(image.Ref, "/x", "loop"), codes.InvalidArgument, "loop"},
			{"a FIFO", imageMount(image.Ref, "/x", "fifo"), codes.InvalidArgument, "fifo"},
			{"a device", imageMount(image.Ref, "/x", "null"), codes.InvalidArgument, "null"},
			{"over /proc/self", imageMount(image.Ref, "/proc/self", ""), codes.InvalidArgument, "container_path"},
			{"a part of no image", &runtimeapi.Mount{HostPath: victim, ContainerPath: "/x", ImageSubPath: "models"}, codes.InvalidArgument, "image_sub_path"},
			{"with an option that is unknown", change(func(m *runtimeapi.Mount) { m.MountOptions = []string{"suid"} }), codes.InvalidArgument, "mount_options"},
		} {
			_, err := pod.TryCreate(d.Sleeper("c", harness.Mounts(tc.mount)))
			refused(t, "an image volume "+tc.name, err, tc.code, tc.says)
			if message := status.Convert(err).Message(); tc.mount.Image != nil && !strings.HasPrefix(message, "ImageVolumeMountFailed: ") {
				t.Errorf("the kubelet does not count %q as a volume's error", message)
			}
		}
	})
}

// Not even a privileged container writes into what other containers share with it.
func TestPrivilegedContainerCannotChangeImages(t *testing.T) {
	for _, tc := range []struct {
		name string
		pod  []harness.PodOption
	}{{"host's users", []harness.PodOption{harness.Privileged}}, {"users of its own", []harness.PodOption{harness.Privileged, users(500000)}}} {
		t.Run(tc.name, func(t *testing.T) {
			if len(tc.pod) > 1 {
				harness.Native(t, "user namespaces")
			}
			d := harness.Start(t)
			if len(tc.pod) > 1 {
				needUsers(t, d)
			}
			one, err := harness.Registry(t).Push("test/one", "1", registrytest.Image{Config: ocispecs.ImageConfig{},
				Layers: []registrytest.Layer{registrytestLayer(t, func(b *builder) { b.File("dir/file", "image", 0o644) })}})
			if err != nil {
				t.Fatal(err)
			}
			d.Pull(one.Ref)
			pod := d.RunPod(d.Pod("privileged", tc.pod...))
			c := pod.Run(d.Sleeper("c", likePod(pod), harness.Security(func(s *security) { s.Privileged = true }),
				harness.Mounts(imageMount(one.Ref, "/one", ""), imageMount(one.Ref, "/part", "dir"), imageMount(one.Ref, "/file", "dir/file"))))
			c.Sh("for m in /one /part /file; do mount -o remount,bind,rw $m; mount -o remount,rw $m; done 2>/dev/null; true")
			for _, script := range []string{"echo x > /one/dir/file", "echo x > /one/new", "echo x > /part/file", "echo x > /file"} {
				if r := c.Exec("sh", "-c", script); r.Code == 0 {
					t.Errorf("%q: %+v", script, r)
				}
			}
			if got := c.Sh("cat /one/dir/file /part/file /file; ls /one /part; stat -c %u /one/dir/file /file"); got != "imageimageimage/one:\ndir\n\n/part:\nfile\n0\n0" {
				t.Errorf("content = %q", got)
			}
		})
	}
}

func TestImageVolumesOfUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d := startWithUsers(t)
	image := content(t, d, "/victim")
	d.Pull(harness.Base(t).Ref)
	layers := filepath.Join(d.Options().Root, "images", "layers")
	before := tree(t, layers)
	pod := d.RunPod(d.Pod("users", users(600000)))
	c := pod.Run(d.Sleeper("c", likePod(pod), harness.Mounts(mapped(pod, imageMount(image.Ref, "/all", "")), imageMount(image.Ref, "/plain", ""),
		mapped(pod, imageMount(image.Ref, "/part", "latest")), mapped(pod, imageMount(image.Ref, "/etc/passwd", "file")))))
	if got := c.Sh("cat /etc/passwd /part/b; stat -c %u:%g /all /all/models/a /all/models/b /plain/models/b /part/b /etc/passwd; /part/run"); got !=
		"aboveb0:0\n0:0\n33:34\n33:34\n33:34\n0:0\nran" {
		t.Errorf("content and owners = %q", got)
	}
	if r := c.Exec("sh", "-c", "echo x > /all/new"); r.Code == 0 {
		t.Errorf("write: %+v", r)
	}
	for _, m := range c.Status().Mounts {
		if m.GetImage().GetImageRef() != image.ImageID {
			t.Errorf("status of %s: image_ref = %q, want %q", m.ContainerPath, m.GetImage().GetImageRef(), image.ImageID)
		}
	}
	other := imageMount(image.Ref, "/x", "")
	other.UidMappings = []*runtimeapi.IDMapping{{HostId: 5, Length: 1}}
	other.GidMappings = other.UidMappings
	_, err := pod.TryCreate(d.Sleeper("other", likePod(pod), harness.Mounts(other)))
	refused(t, "other owners than the pod's", err, codes.InvalidArgument, "uidMappings")
	pod.Remove()
	if after := tree(t, layers); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Error("the image's layers were changed")
	}
	d.Check()
}

func TestMountOptions(t *testing.T) {
	d := harness.Start(t)
	status, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil || !status.GetFeatures().GetMountOptions() {
		t.Errorf("features = %v, %v", status.GetFeatures(), err)
	}
	dir := folder(t, d, "volume")
	for name, mode := range map[string]os.FileMode{"program": 0o755, "setuid": 0o755 | os.ModeSetuid} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(d.Pod("options"))
	mountOptionsHold(t, pod, dir)
	if users := podOfUsers(t, d); users != nil {
		mountOptionsHold(t, users, dir)
	}
	for _, o := range []string{"exec", "suid", "dev", "rw", "ro", "remount", "bind", "noexec,nodev", "rnoexec", "noatime", "", "uid=0"} {
		_, err := pod.TryCreate(d.Sleeper("bad", bind(dir, "/x", optional(o))))
		refused(t, "option "+o, err, codes.InvalidArgument, "mount_options")
	}
}

func optional(options ...string) func(*runtimeapi.Mount) {
	return func(m *runtimeapi.Mount) { m.MountOptions = options }
}

// mountOptionsHold mounts a folder with options in a container, with its owners mapped if the pod has a user namespace.
func mountOptionsHold(t *testing.T, pod *harness.Pod, dir string) {
	t.Helper()
	own := func(m *runtimeapi.Mount) {
		if pod.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions != nil {
			mapped(pod, m)
		}
	}
	c := pod.Run(pod.Sleeper("c", likePod(pod), bind(dir, "/plain", own), bind(dir, "/noexec", own, optional("noexec")), bind(dir, "/nodev", own, optional("nodev"), readonly),
		bind(dir, "/all", own, optional("noexec", "nodev", "nosuid")), bind(filepath.Join(dir, "program"), "/program", own, optional("noexec"))))
	for at, want := range map[string][]string{"/plain": nil, "/noexec": {"noexec"}, "/nodev": {"nodev", "ro"}, "/all": {"nodev", "noexec", "nosuid"}, "/program": {"noexec"}} {
		options := "," + c.Sh("grep ' "+at+" ' /proc/self/mountinfo | cut -d' ' -f6") + ","
		for _, o := range []string{"noexec", "nodev", "nosuid", "ro"} {
			asked := false
			for _, w := range want {
				asked = asked || w == o
			}
			if asked && !strings.Contains(options, ","+o+",") {
				t.Errorf("%s has options %q, want %s", at, options, o)
			}
		}
	}
	for script, runs := range map[string]bool{"/plain/program": true, "/noexec/program": false, "/all/program": false, "/program": false, "/nodev/program": true} {
		if r := c.Exec("sh", "-c", script); (r.Code == 0) != runs {
			t.Errorf("%s: %+v, want it to run: %t", script, r, runs)
		}
	}
	if r := c.Exec("sh", "-c", "echo x > /all/null"); r.Code == 0 {
		t.Errorf("a device of a volume with nodev: %+v", r)
	}
	if got := c.Status().Mounts[3].MountOptions; strings.Join(got, " ") != "noexec nodev nosuid" {
		t.Errorf("options in the status = %q", got)
	}
}

// A handler that does not say that it can is asked for no recursively read-only mount: it might leave writable what is mounted below.
func TestRecursiveReadOnlyNeedsTheHandler(t *testing.T) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "old")
	script := "#!/bin/sh\nfor a; do [ \"$a\" != features ] || exit 1; done\nexec " + runc + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[runtimes.silent]\ntype = \"oci\"\npath = %q\n", program)))
	dir := folder(t, d, "volume")
	pod := runWith(d, "silent", "silent")
	config := d.Sleeper("c", bind(dir, "/x", readonly))
	config.Mounts[0].RecursiveReadOnly = true
	_, err = pod.TryCreate(config)
	refused(t, "a recursively read-only mount", err, codes.FailedPrecondition, "RROUnsupported", "silent")
	config.Mounts[0].RecursiveReadOnly = false
	pod.Run(config)

	// The handler is the one that the pod was made with, whatever its name means by now.
	path := d.Options().Config
	text := readRaw(t, path)
	for what, now := range map[string]string{"that is gone": text[:strings.Index(text, "[runtimes.silent]")], "of another program": strings.Replace(text, program, runc, 1)} {
		d.Write(path, now)
		d.Restart()
		config := d.Sleeper("later", bind(dir, "/x", readonly))
		config.Mounts[0].RecursiveReadOnly = true
		_, err = pod.TryCreate(config)
		refused(t, "a recursively read-only mount of a handler "+what, err, codes.FailedPrecondition, "RROUnsupported", "silent")
	}
}

// A container either has all of an image that somebody else pulls and removes meanwhile, or is told that it is not there.
func TestImageVolumeOfAnImageThatComesAndGoes(t *testing.T) {
	d := harness.Start(t)
	image := content(t, d, "/victim")
	pod := d.RunPod(d.Pod("races"))
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		var errs []error
		for {
			select {
			case <-stop:
				ended <- errors.Join(errs...)
				return
			default:
			}
			_, err := d.Images.RemoveImage(d.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image.Ref}})
			_, pullErr := d.TryPull(image.Ref)
			errs = append(errs, err, pullErr)
			time.Sleep(10 * time.Millisecond) // else it is hardly ever there
		}
	}()
	had, missed := 0, 0
	for end, n := time.Now().Add(20*time.Second), 0; had < 15 && time.Now().Before(end); n++ {
		c, err := pod.TryCreate(d.Shell(fmt.Sprint("c", n), "cat /all/models/a /part/b; exit 7", harness.Mounts(imageMount(image.Ref, "/all", ""), imageMount(image.Ref, "/part", "models"))))
		if err != nil {
			if missed++; status.Code(err) != codes.NotFound {
				t.Errorf("CreateContainer = %v", err)
			}
			time.Sleep(time.Millisecond)
			continue
		}
		had++
		c.Start()
		if s := c.Wait(20 * time.Second); s.ExitCode != 7 || c.Output() != "aboveb\n" {
			t.Errorf("code %d, output %q", s.ExitCode, c.Output())
		}
		c.Remove()
	}
	close(stop)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf("%d containers, %d refusals", had, missed)
	d.Check()
}

// The daemon is killed while a container with image volumes is made and started; what comes after it leaves nothing of what was half done.
func TestImageVolumesWhenTheDaemonIsKilled(t *testing.T) {
	d := harness.Start(t)
	image := content(t, d, "/victim")
	d.Pull(harness.Base(t).Ref)
	for n := range 10 {
		pod := d.RunPod(d.Pod(fmt.Sprint("killed", n)))
		config := d.Sleeper("c", harness.Mounts(imageMount(image.Ref, "/all", ""), imageMount(image.Ref, "/part", "models"), imageMount(image.Ref, "/file", "file")))
		done := make(chan struct{})
		go func() {
			defer close(done)
			if c, err := pod.TryCreate(config); err == nil {
				c.TryStart() //nolint:errcheck // the daemon dies under it
			}
		}()
		time.Sleep(time.Duration(n) * 4 * time.Millisecond) // anywhere in it
		d.Restart()
		<-done
		list, err := d.Runtime.ListContainers(d.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod.ID}})
		if err != nil {
			t.Fatal(err)
		}
		if len(list.Containers) == 1 && list.Containers[0].State == runtimeapi.ContainerState_CONTAINER_CREATED {
			c := &harness.Container{Pod: pod, ID: list.Containers[0].Id, Config: config}
			// The list is answered while the pod is still being recovered: a start that the kill interrupted may have been carried through.
			if err := c.TryStart(); err != nil && c.Status().State != running {
				t.Errorf("StartContainer: %v", err)
			}
			if got := c.Sh("cat /all/models/a /part/b /file"); got != "abovebabove" {
				t.Errorf("content = %q", got)
			}
		}
		pod.Remove()
		d.AsBefore()
	}
}
