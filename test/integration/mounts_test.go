package integration_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func bind(host, container string, change ...func(*runtimeapi.Mount)) harness.ContainerOption {
	m := &runtimeapi.Mount{HostPath: host, ContainerPath: container}
	for _, c := range change {
		c(m)
	}
	return harness.Mounts(m)
}

func readonly(m *runtimeapi.Mount) { m.Readonly = true }

func propagation(p runtimeapi.MountPropagation) func(*runtimeapi.Mount) {
	return func(m *runtimeapi.Mount) { m.Propagation = p }
}

// folder makes a folder with one file in it.
func folder(t testing.TB, d *harness.Daemon, name string) string {
	t.Helper()
	dir := filepath.Join(d.Dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(filepath.Join(dir, "file"), name)
	return dir
}

func TestBindMounts(t *testing.T) {
	d := harness.Start(t)
	dir, file := folder(t, d, "volume"), filepath.Join(folder(t, d, "other"), "file")
	link := filepath.Join(d.Dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(d.Pod("mounts"))
	c := pod.Run(d.Sleeper("c", bind(dir, "/vol"), bind(dir, "/new/deep/er"), bind(file, "/etc/passwd"), bind(file, "/new/file", readonly),
		bind(link, "/through"), bind(dir, "/vol-ro", readonly), bind(file, "/dev/termination-log")))
	if got := c.Sh("cat /vol/file /new/deep/er/file /etc/passwd /new/file /through/file /dev/termination-log"); got != "volumevolumeotherothervolumeother" {
		t.Errorf("files = %q", got)
	}
	if r := c.Exec("sh", "-c", "echo x > /vol-ro/y"); r.Code == 0 || !strings.Contains(r.Stderr, "Read-only file system") {
		t.Errorf("write to a read-only mount: %+v", r)
	}
	if r := c.Exec("sh", "-c", "echo x > /new/file"); r.Code == 0 {
		t.Errorf("write to a read-only file: %+v", r)
	}
	c.Sh("echo written > /vol/new; echo bye > /dev/termination-log")
	if got := readFile(t, filepath.Join(dir, "new")); got != "written" {
		t.Errorf("written through the mount = %q", got)
	}
	if got := readFile(t, file); got != "bye" {
		t.Errorf("termination log = %q", got)
	}
	var paths []string
	for _, m := range c.Status().Mounts {
		paths = append(paths, m.HostPath+":"+m.ContainerPath)
	}
	if got := strings.Join(paths, " "); !strings.Contains(got, dir+":/vol ") || !strings.Contains(got, file+":/new/file") {
		t.Errorf("mounts in the status = %s", got)
	}
}

// TestMountsOverOwnFiles: what the kubelet mounts over the files that berth makes itself wins.
func TestMountsOverOwnFiles(t *testing.T) {
	d := harness.Start(t)
	dir := folder(t, d, "own")
	file := filepath.Join(dir, "file")
	if err := errors.Join(os.Chown(file, 1234, 4321), os.Chmod(file, 0o604), os.Chmod(dir, 0o1705)); err != nil {
		t.Fatal(err)
	}
	before := everything(t, dir)
	pods := []*harness.Pod{d.RunPod(d.Pod("own"))}
	if mapped := podOfUsers(t, d); mapped != nil {
		pods = append(pods, mapped)
	}
	for _, pod := range pods {
		c := pod.Run(d.Sleeper("c", likePod(pod), bind(file, "/etc/hosts"), bind(file, "/etc/resolv.conf"), bind(file, "/etc/hostname"), bind(dir, "/dev/shm")))
		if got := c.Sh("cat /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm/file"); got != "ownownownown" {
			t.Errorf("files = %q", got)
		}
		c.Remove()
		if diff := cmp.Diff(before, everything(t, dir)); diff != "" { // threat B3, CVE-2021-43816
			t.Errorf("the files of the request were changed (-before +after):\n%s", diff)
		}
	}
}

func TestHostileMountTargets(t *testing.T) {
	d := harness.Start(t)
	victim := folder(t, d, "victim")
	dir := folder(t, d, "volume")
	layer := registrytestLayer(t, func(b *builder) {
		b.Symlink("escape", victim).Symlink("up", "../../../../.."+victim).Symlink("etc/resolv.conf", victim+"/file").
			Symlink("etc/hosts", "/nowhere/hosts")
	})
	image := harness.PushImage(t, "test/hostile-targets", imageConfig(func(*ocispecConfig) {}), layer)
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("hostile"))
	want := "volumevolumevolumeresolv"
	c, err := pod.TryCreate(d.Sleeper("c", harness.Image(image.Ref), bind(dir, "/escape/made"), bind(dir, "/up/made/too"), bind(filepath.Join(dir, "file"), "/escape/filed")))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.TryStart(); err != nil {
		if harness.Handler != "crun" || !strings.Contains(err.Error(), "openat2 `escape`: No such file or directory") {
			t.Fatal(err)
		}
		want = "resolv" // crun 1.8 makes no folder where a link leads: what does not need one must start
		c = pod.Run(d.Sleeper("plain", harness.Image(image.Ref)))
	}
	if got := c.Sh("cat /escape/made/file /up/made/too/file /escape/filed 2>/dev/null; grep -c . /etc/resolv.conf >/dev/null && echo resolv"); got != want {
		t.Errorf("files = %q, want %q", got, want)
	}
	entries, err := os.ReadDir(victim)
	if err != nil || len(entries) != 1 || readFile(t, filepath.Join(victim, "file")) != "victim" {
		t.Errorf("the host's folder was reached: %v %v", entries, err)
	}
}

// shared makes a folder that is a shared mount of its own, since a host's root may be private.
func shared(t testing.TB, d *harness.Daemon, name string) string {
	t.Helper()
	dir := folder(t, d, name)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(filepath.Join(dir, "host"), unix.MNT_DETACH)
		unix.Unmount(filepath.Join(dir, "sub"), unix.MNT_DETACH)
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"host", "sub"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMountPropagation(t *testing.T) {
	for _, tc := range []struct {
		name             string
		mode             runtimeapi.MountPropagation
		toInside, toHost bool
	}{
		{"private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"host to container", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"bidirectional", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := harness.Start(t)
			dir := shared(t, d, "shared")
			pod := d.RunPod(d.Pod("propagation", harness.Privileged))
			c := pod.Run(d.Sleeper("c", bind(dir, "/vol", propagation(tc.mode)),
				harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })))
			if err := unix.Mount("tmpfs", filepath.Join(dir, "host"), "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			d.Write(filepath.Join(dir, "host/new"), "x")
			if r := c.Exec("test", "-e", "/vol/host/new"); (r.Code == 0) != tc.toInside {
				t.Errorf("a mount of the host's is seen inside: %t, want %t", r.Code == 0, tc.toInside)
			}
			c.Sh("mount -t tmpfs tmpfs /vol/sub && touch /vol/sub/inside")
			_, err := os.Stat(filepath.Join(dir, "sub/inside"))
			if (err == nil) != tc.toHost {
				t.Errorf("a mount made inside is seen on the host: %t, want %t", err == nil, tc.toHost)
			}
		})
	}
}

func TestPropagationNeedsASharedSource(t *testing.T) {
	d := harness.Start(t)
	dir := folder(t, d, "private")
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	pod := d.RunPod(d.Pod("private", harness.Privileged))
	c, err := pod.TryCreate(d.Sleeper("c", bind(dir, "/vol", propagation(runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL)),
		harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true })))
	if err == nil {
		err = c.TryStart()
	}
	if err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a private source for a bidirectional mount: %v, want an error that names it", err)
	}
}

func TestReadOnlyMountsBelow(t *testing.T) {
	d := harness.Start(t)
	dir := folder(t, d, "tree")
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(sub, unix.MNT_DETACH)
	pod := d.RunPod(d.Pod("readonly"))
	recursive := func(m *runtimeapi.Mount) {
		m.Readonly, m.RecursiveReadOnly, m.Propagation = true, true, runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	}
	c := pod.Run(d.Sleeper("c", bind(dir, "/plain", readonly), bind(dir, "/all", recursive)))
	for path, writable := range map[string]bool{"/plain": false, "/plain/sub": true, "/all": false, "/all/sub": false} {
		if r := c.Exec("touch", path+"/new"); (r.Code == 0) != writable {
			t.Errorf("%s is writable: %t, want %t (%s)", path, r.Code == 0, writable, r.Stderr)
		}
	}
	for name, change := range map[string]func(*runtimeapi.Mount){
		"not read-only":     func(m *runtimeapi.Mount) { m.RecursiveReadOnly = true },
		"host to container": func(m *runtimeapi.Mount) { recursive(m); m.Propagation = 1 },
		"bidirectional":     func(m *runtimeapi.Mount) { recursive(m); m.Propagation = 2 },
	} {
		_, err := pod.TryCreate(d.Sleeper("bad", bind(dir, "/all", change)))
		wantCode(t, "recursive read-only and "+name, err, codes.InvalidArgument)
	}
}

// TestDefaultMounts pins what every container sees.
func TestDefaultMounts(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("defaults"))
	c := pod.Run(d.Sleeper("c"))
	mounts := map[string]string{}
	for line := range strings.Lines(c.Host("mountinfo")) {
		f := strings.Fields(line)
		sep := 0
		for i, w := range f {
			if w == "-" {
				sep = i
			}
		}
		mounts[f[4]] = f[sep+1] + " " + f[5]
	}
	for path, want := range map[string][]string{
		"/":                   {"overlay", "rw"},
		"/proc":               {"proc", "nosuid", "nodev", "noexec"},
		"/dev":                {"tmpfs", "nosuid"},
		"/dev/pts":            {"devpts", "nosuid", "noexec"},
		"/dev/mqueue":         {"mqueue", "nosuid", "nodev", "noexec"},
		"/dev/shm":            {"tmpfs", "nosuid", "nodev", "noexec"},
		"/sys":                {"sysfs", "ro", "nosuid", "nodev", "noexec"},
		"/etc/hosts":          {},
		"/etc/hostname":       {},
		"/etc/resolv.conf":    {},
		"/proc/sys":           {"proc", "ro"},
		"/proc/kcore":         {},
		"/sys/firmware":       {"tmpfs", "ro"},
		"/proc/sysrq-trigger": {"proc", "ro"},
	} {
		got, ok := mounts[path]
		if _, err := os.Stat(path); err != nil && strings.HasPrefix(path, "/proc/") {
			continue // not in every kernel
		}
		if !ok {
			t.Errorf("nothing is mounted on %s", path)
			continue
		}
		for _, w := range want {
			if !strings.Contains(" "+strings.ReplaceAll(got, ",", " ")+" ", " "+w+" ") {
				t.Errorf("%s is %q, want %s", path, got, w)
			}
		}
	}
	for path, got := range mounts {
		if path == "/sys/fs/cgroup" && harness.Handler != "" {
			continue // on cgroup version 1 a folder of mounts: runc 1.1 now and then leaves it writable, which moves nobody
		}
		if strings.HasPrefix(path, "/sys/fs/cgroup") && !strings.Contains(" "+strings.ReplaceAll(got, ",", " ")+" ", " ro ") {
			t.Errorf("%s is %q: a container could move itself to other cgroups", path, got)
		}
	}
	for path, want := range map[string]string{"/dev/null": "1:3", "/dev/zero": "1:5", "/dev/full": "1:7", "/dev/random": "1:8", "/dev/urandom": "1:9", "/dev/tty": "5:0"} {
		if got := c.Sh("stat -c %t:%T " + path); got != want {
			t.Errorf("%s is device %s, want %s", path, got, want)
		}
	}
	for path, want := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/ptmx": "pts/ptmx", "/dev/core": "/proc/kcore"} {
		if _, err := os.Stat(want); err != nil && want == "/proc/kcore" && harness.Handler != "" {
			continue // runc makes no link to what the host does not have
		}
		if got := c.Sh("readlink " + path); got != want {
			t.Errorf("%s points at %q, want %q", path, got, want)
		}
	}
	for line := range strings.Lines(c.Host("mountinfo")) {
		if strings.Contains(line, d.Options().Root) && !strings.Contains(line, " - overlay ") {
			t.Errorf("a mount inside shows the host's folder: %s", line)
		}
	}
	if n := strings.Count(c.Host("mountinfo"), "shared:"); n > 0 {
		t.Errorf("%d mounts inside are shared with the host", n)
	}
}

func TestReadOnlyRootAndItsHoles(t *testing.T) {
	d := harness.Start(t)
	dir := folder(t, d, "hole")
	pod := d.RunPod(d.Pod("rootfs"))
	c := pod.Run(d.Sleeper("c", bind(dir, "/hole/in/it"), harness.Security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true })))
	for path, writable := range map[string]bool{"/": false, "/tmp": false, "/etc": false, "/hole/in/it": true, "/dev/shm": true, "/dev": true} {
		if r := c.Exec("touch", path+"/x"); (r.Code == 0) != writable {
			t.Errorf("%s is writable: %t, want %t", path, r.Code == 0, writable)
		}
	}
}

// TestVolumesMountedLater: the kubelet mounts volumes after the pod was started.
func TestVolumesMountedLater(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("later"))
	dir := folder(t, d, "volume")
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	d.Write(filepath.Join(dir, "late"), "late")
	c := pod.Run(d.Sleeper("c", bind(dir, "/vol")))
	if got := c.Sh("cat /vol/late"); got != "late" {
		t.Errorf("file = %q", got)
	}
	c.Remove()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("the volume is still held: %v", err)
	}
}

// TestImageVolumes: what an image declares as a volume is writable and private to the container.
func TestImageVolumes(t *testing.T) {
	d := harness.Start(t)
	victim := folder(t, d, "victim")
	layer := registrytestLayer(t, func(b *builder) { b.File("volume/from-image", "x", 0o644).Symlink("link", victim) })
	image := harness.PushImage(t, "test/volumes", imageConfig(func(c *ocispecConfig) {
		c.Volumes = map[string]struct{}{"/volume": {}, "/../../../.." + victim: {}, "/link/x": {}, "/made/here": {}}
	}), layer)
	d.Pull(image.Ref)
	pod := d.RunPod(d.Pod("volumes"))
	c := pod.Run(d.Sleeper("c", harness.Image(image.Ref)))
	if got := c.Sh("cat /volume/from-image; touch /volume/new && ls /volume"); got != "xfrom-image\nnew" {
		t.Errorf("volume = %q", got)
	}
	if got := c.Sh("touch /made/here/new && ls /made/here"); got != "new" {
		t.Errorf("volume that the image's files lack = %q", got)
	}
	if got := pod.Run(d.Sleeper("other", harness.Image(image.Ref))).Sh("ls /volume /made/here"); got != "/made/here:\n\n/volume:\nfrom-image" {
		t.Errorf("another container's volumes = %q", got)
	}
	if r := c.Exec("sh", "-c", fmt.Sprintf("cat %s/file", victim)); r.Code == 0 {
		t.Errorf("a volume of the image reaches the host: %q", r.Stdout)
	}
}
