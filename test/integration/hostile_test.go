package integration_test

import (
	"archive/tar"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
)

// canary is a folder of the host that nothing hostile may reach.
type canary struct {
	dir, up string // its path, and the same by way of ".."
	before  map[string]string
}

func plantCanary(t testing.TB, d *harness.Daemon) *canary {
	t.Helper()
	c := &canary{dir: filepath.Join(d.Dir, "victim")}
	c.up = strings.Repeat("../", 20) + c.dir[1:]
	if err := os.Mkdir(c.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "ptmx", "null", "console"} {
		path := d.Write(filepath.Join(c.dir, name), "untouched")
		if err := errors.Join(os.Chown(path, 1234, 4321), os.Chmod(path, 0o640)); err != nil {
			t.Fatal(err)
		}
	}
	program := d.Write(filepath.Join(c.dir, "program"), "#!/bin/sh\ntouch "+c.dir+"/ran\n")
	if err := errors.Join(os.Chmod(program, 0o755), os.Mkdir(filepath.Join(c.dir, "folder"), 0o700)); err != nil {
		t.Fatal(err)
	}
	c.before = everything(t, c.dir)
	return c
}

// everything describes all files of a tree: what they hold, and all that a write, a change of owner, mode or attributes, a link or a mount would change.
func everything(t testing.TB, folder string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		text := ""
		if e.Type().IsRegular() {
			text = readRaw(t, path)
		}
		files[path] = fmt.Sprintf("device %d inode %d mode %o owner %d:%d links %d modified %d.%d changed %d.%d %q",
			st.Dev, st.Ino, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// intact fails the test if the canary is not as it was.
func (c *canary) intact(t testing.TB, what string) {
	t.Helper()
	now := everything(t, c.dir)
	for path, was := range c.before {
		if now[path] != was {
			t.Errorf("%s: %s is %q, was %q", what, path, now[path], was)
		}
	}
	for path := range now {
		if c.before[path] == "" {
			t.Errorf("%s: %s is new: %s", what, path, now[path])
		}
	}
	c.before = now
}

// attack is an image, and a request for a container of it, that want to reach the host.
type attack struct {
	name   string
	plant  func(*builder)
	config func(*ocispecConfig)
	with   []harness.ContainerOption
	script string // run in the container, when it starts
	want   string // and what it says; "" when the container must not start
}

// may stands for a script whose container may start or not.
const may = "may"

// attacks are threats A7, A10, A11, A12, A15, A19, B4, B17, B18, B19 and B32, with a canary and a volume of the host.
func attacks(c *canary, volume, dev string) []attack {
	const hostname, alive = "cat /etc/hostname", "echo alive"
	links := func(b *builder) { b.Symlink("link", c.dir).Symlink("up", c.up) }
	file := filepath.Join(volume, "file")
	podFiles := []string{"hosts", "hostname", "resolv.conf"}
	all := []attack{
		{name: "etc is a link", plant: func(b *builder) { b.Symlink("etc", c.dir) }, script: hostname, want: "hostile"},
		{name: "etc is a link upwards", plant: func(b *builder) { b.Symlink("etc", c.up) }, script: hostname, want: "hostile"},
		{name: "the pod's files are links", plant: func(b *builder) {
			b.Symlink("etc/hosts", c.dir+"/ptmx").Symlink("etc/hostname", c.dir+"/new").Symlink("etc/resolv.conf", c.up+"/null")
		}, script: hostname, want: "hostile"},
		{name: "the pod's files are FIFOs", plant: func(b *builder) {
			for _, name := range podFiles {
				special(b, "etc/"+name, tar.TypeFifo)
			}
		}, script: hostname, want: "hostile"},
		{name: "the pod's files are folders", plant: func(b *builder) { b.Dir("etc/hosts", 0o755).Dir("etc/hostname", 0o755) }},
		{name: "the pod's files are loops", plant: func(b *builder) { b.Symlink("etc/hosts", "hosts") }},
		{name: "the pod's files are the kernel's", plant: func(b *builder) {
			b.Symlink("etc/hosts", "/proc/sys/kernel/core_pattern").Symlink("etc/hostname", "/proc/sysrq-trigger").Symlink("etc/resolv.conf", "/proc/1/attr/exec")
		}, script: alive, want: may},
		{name: "a volume on the kernel's files", plant: func(b *builder) { b.Symlink("attr", "/proc/self/attr").Symlink("sysctl", "/proc/sys") },
			with: []harness.ContainerOption{bind(volume, "/attr"), bind(volume, "/sysctl")}, script: alive, want: may},
		{name: "working folder below a link", plant: links, config: func(i *ocispecConfig) { i.WorkingDir = "/link/new/er" }, script: "pwd -P", want: c.dir + "/new/er"},
		{name: "working folder below a link upwards", plant: links, config: func(i *ocispecConfig) { i.WorkingDir = "/up/new/er" }, script: "pwd -P", want: c.dir + "/new/er"},
		{name: "working folder of the host", plant: func(b *builder) { b.Symlink("root", "/proc/1/root") },
			config: func(i *ocispecConfig) { i.WorkingDir = "/root" + c.dir + "/new" }},
		{name: "volumes below links", plant: links, config: func(i *ocispecConfig) {
			i.Volumes = map[string]struct{}{"/link/v": {}, "/up/w": {}, "/../../.." + c.dir + "/x": {}, "/a/../../b": {}, "link/y": {}}
		}, script: "ls " + c.dir + " | sort | tr '\\n' ' '", want: "v w x y "},
		{name: "what the kubelet mounts, below links", plant: func(b *builder) { b.Symlink("run", c.dir).Symlink("message", c.up) },
			with:   []harness.ContainerOption{bind(volume, "/run/secrets/kubernetes.io/serviceaccount"), bind(file, "/message/termination-log"), bind(volume, "/run/folder")},
			script: "cat /run/secrets/kubernetes.io/serviceaccount/file /message/termination-log /run/folder/file", want: "volumevolumevolume"},
		{name: "what a device of CDI mounts, below links", plant: links, with: []harness.ContainerOption{cdiDevices("test.vendor/hostile=one")},
			script: "cat /link/cdi/file /up/cdi-file", want: "volumevolume"},
		{name: "a device of CDI below a link", plant: links, with: []harness.ContainerOption{cdiDevices("test.vendor/hostile=two")}, script: alive, want: may},
		{name: "a volume on dev with links", plant: links, with: []harness.ContainerOption{bind(dev, "/dev")}, script: alive, want: may},
		{name: "a terminal on such a dev", plant: links, with: []harness.ContainerOption{bind(dev, "/dev"),
			func(c *runtimeapi.ContainerConfig) { c.Tty = true }}, script: alive, want: may},
		{name: "hidden and read-only paths below links", plant: links, with: []harness.ContainerOption{with(func(s *security) {
			s.MaskedPaths, s.ReadonlyPaths = append(s.MaskedPaths, "/link/f", "/up/folder"), append(s.ReadonlyPaths, "/link")
		})}, script: alive, want: "alive"},
		{name: "a program of the host", plant: links, config: func(i *ocispecConfig) { i.Entrypoint = []string{"/link/program"} },
			with: []harness.ContainerOption{func(c *runtimeapi.ContainerConfig) { c.Command = nil }}},
		{name: "a program of the host by PATH", config: func(i *ocispecConfig) { i.Env, i.Entrypoint = []string{"PATH=" + c.dir}, []string{"program"} },
			with: []harness.ContainerOption{func(c *runtimeapi.ContainerConfig) { c.Command = nil }}},
		{name: "programs and libraries for the host", plant: func(b *builder) {
			for _, name := range []string{"runc", "xz", "unpigz", "pigz", "mount", "nft", "iptables", "getent", "apparmor_parser", "berth-monitor"} {
				b.File("usr/sbin/"+name, "#!/bin/sh\ntouch "+c.dir+"/ran\n", 0o755)
			}
			b.Dir(c.dir[1:], 0o777) // where one that runs with this root says so
			b.Symlink("etc/ld.so.preload", c.dir+"/f").File("lib/libnss_files.so.2", "x", 0o755).Symlink("etc/nsswitch.conf", c.up+"/f")
		}, config: func(i *ocispecConfig) {
			i.Env = []string{"PATH=/bin", "LD_PRELOAD=/proc/self/cwd/x.so", "LD_LIBRARY_PATH=" + c.dir, "GODEBUG=x=y", "GOTRACEBACK=crash"}
		}, script: "echo alive $(ls " + c.dir + ")", want: "alive"},
	}
	for _, opened := range []string{"/proc/self/fd/3", "/dev/fd/7", "/proc/self/fd/8"} {
		all = append(all, attack{name: "working folder is a link to " + opened, plant: func(b *builder) { b.Symlink("opened", "a").Symlink("a", opened) },
			config: func(i *ocispecConfig) { i.WorkingDir = "/opened" }})
	}
	for name, target := range map[string]string{"proc": c.dir, "sys": "/elsewhere", "dev": c.dir, "dev/": c.up} {
		all = append(all, attack{name: name + " is a link", plant: func(b *builder) { b.Dir("elsewhere", 0o755).Symlink(strings.Trim(name, "/"), target) }})
	}
	return all
}

// special adds a file that is none.
func special(b *builder, name string, kind byte) {
	b.File(name, "", 0o666)
	files, _ := b.Files()
	files[len(files)-1].Type = kind
}

// TestHostileImages: wherever berth mounts or writes something, an image has a link to the host there, or something else that it should not. What it
// asks for happens in its own root, or it does not start.
func TestHostileImages(t *testing.T) {
	cdi, hooks := t.TempDir(), t.TempDir()
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[cdi]\nspec_dirs = [%q]\n[hooks]\ndirs = [%q]\n", cdi, hooks)))
	victim, volume, dev := plantCanary(t, d), folder(t, d, "volume"), filepath.Join(d.Dir, "dev")
	if err := os.Mkdir(dev, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"null", "console", "ptmx", "shm", "pts", "fd", "tty", "core", "mqueue", "stdin"} {
		if err := os.Symlink(filepath.Join(victim.dir, name), filepath.Join(dev, name)); err != nil {
			t.Fatal(err)
		}
	}
	d.Write(filepath.Join(cdi, "hostile.yaml"), fmt.Sprintf("cdiVersion: 0.6.0\nkind: test.vendor/hostile\ndevices:\n- name: one\n  containerEdits:\n"+
		"    mounts: [{hostPath: %q, containerPath: /link/cdi, options: [rbind, ro]}, {hostPath: %q, containerPath: /up/cdi-file, options: [rbind, ro]}]\n"+
		"- name: two\n  containerEdits: {deviceNodes: [{path: /link/null-device, hostPath: /dev/null}, {path: /up/null, hostPath: /dev/null}]}\n",
		volume, filepath.Join(volume, "file")))
	d.Write(filepath.Join(hooks, "true.json"), `{"version": "1.0.0", "hook": {"path": "/bin/true"}, "stages": ["createRuntime", "poststop"], "when": {"annotations": {"^hooked$": "yes"}}}`)

	pod := d.RunPod(d.Pod("hostile"))
	type variant struct {
		name string
		pod  *harness.Pod
		with harness.ContainerOption
	}
	variants := []variant{{"", pod, func(*runtimeapi.ContainerConfig) {}}}
	if harness.Handler == "" { // then hooks find the root elsewhere
		variants = append(variants, variant{"with hooks", pod, annotated})
	}
	if mapped := podOfUsers(t, d); mapped != nil {
		variants = append(variants, variant{"in a user namespace", mapped, likePod(mapped)})
	}
	core := readFile(t, "/proc/sys/kernel/core_pattern")
	for i, a := range attacks(victim, volume, dev) {
		ref := harness.PushImage(t, fmt.Sprintf("test/hostile-%d", i), imageConfig(a.image()), a.layers(t)...).Ref
		d.Pull(ref)
		for _, v := range variants {
			what := strings.TrimSpace(a.name + " " + v.name)
			a.try(v.pod, what, ref, victim, v.with)
			victim.intact(t, what)
		}
	}
	if got := readFile(t, "/proc/sys/kernel/core_pattern"); got != core {
		t.Errorf("core_pattern of the host is %q, was %q", got, core)
	}
	if list, err := os.ReadDir(dev); err != nil || len(list) != 10 {
		t.Errorf("the volume on dev holds %v, %v", list, err)
	}
	for who, pid := range map[string]int{"berthd": d.PID(), "the monitor": monitorPID(t, pod)} {
		for line := range strings.Lines(readRaw(t, fmt.Sprintf("/proc/%d/maps", pid))) {
			if strings.Contains(line, d.Options().Root) || strings.Contains(line, "/rootfs") {
				t.Errorf("%s has a file of a container mapped: %s", who, line)
			}
		}
	}
	// Everything still works.
	if got := pod.Run(d.Sleeper("good")).Sh("echo alive"); got != "alive" {
		t.Errorf("a container says %q", got)
	}
}

// podOfUsers runs a pod with a user namespace, where there are any.
func podOfUsers(t *testing.T, d *harness.Daemon) *harness.Pod {
	t.Helper()
	r, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range r.RuntimeHandlers {
		if h.Name == "" && h.Features.GetUserNamespaces() {
			return d.RunPod(d.Pod("hostile-users", users(300000), func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "hostile" }))
		}
	}
	return nil
}

func (a attack) image() func(*ocispecConfig) {
	if a.config == nil {
		return func(*ocispecConfig) {}
	}
	return a.config
}

func (a attack) layers(t testing.TB) []registrytest.Layer {
	t.Helper()
	if a.plant == nil {
		return nil
	}
	return []registrytest.Layer{registrytestLayer(t, a.plant)}
}

// try runs the attack's container. From none that starts a path leads to the canary.
func (a attack) try(pod *harness.Pod, what, ref string, victim *canary, option harness.ContainerOption) {
	pod.T.Helper()
	c, err := pod.TryCreate(pod.Sleeper("c", append(a.with, harness.Image(ref), option)...))
	if err == nil {
		defer c.Remove()
		err = c.TryStart()
	}
	switch {
	case a.want == may || harness.Handler != "" && (err != nil || a.want == ""): // what another runtime refuses is its to say
	case a.want == "" && err == nil:
		pod.T.Errorf("%s: the container starts", what)
	case a.want != "" && err != nil:
		pod.T.Errorf("%s: %v", what, err)
	}
	if err != nil {
		return
	}
	script := fmt.Sprintf("%s; cat %s/f %s/f 2>/dev/null", cmp.Or(a.script, "true"), victim.dir, victim.up)
	got := strings.TrimSuffix(c.Exec("sh", "-c", script).Stdout, "\n")
	if got != a.want && a.want != may && a.want != "" || strings.Contains(got, "untouched") {
		pod.T.Errorf("%s: %q says %q, want %q, and nothing of the host's files", what, a.script, got, a.want)
	}
}

// TestNoProgramsByTheirNames (threat B32): what unpacks an image, finds its users, and makes pods and containers is berth itself: no program of the
// host's PATH, whichever stands first there, is executed with what a stranger made.
func TestNoProgramsByTheirNames(t *testing.T) {
	dir := t.TempDir()
	ran := filepath.Join(dir, "ran")
	for _, name := range []string{
		"gzip", "gunzip", "pigz", "unpigz", "igzip", "zstd", "unzstd", "xz", "unxz", "bzip2", "tar", "bsdtar", "getent", "id", "mount", "umount", "mkfs.ext4",
		"nft", "iptables", "ip6tables", "iptables-restore", "ip", "bridge", "modprobe", "sysctl", "nsenter", "unshare", "newuidmap", "newgidmap", "du", "cp", "rm",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho $0 \"$@\" >> "+ran+"\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	d := harness.Start(t, harness.WithEnv("PATH="+dir+":"+os.Getenv("PATH")))
	pod := d.RunPod(d.Pod("path", harness.HostPort(runtimeapi.Protocol_TCP, harness.FreePort(t), 80, "")))
	for i, pack := range []registrytest.Compression{registrytest.Gzip, registrytest.Zstd, registrytest.Plain} {
		shell := harness.ShellLayer(t)
		shell.Compression = registrytest.Inherit
		users := registrytest.Layer{Files: []registrytest.File{{Name: "etc/passwd", Body: []byte("stranger:x:4321:4321::/:/bin/sh\n")}}}
		p, err := harness.Registry(t).Push(fmt.Sprintf("test/path-%d", i), "1", registrytest.Image{Compression: pack, Layers: []registrytest.Layer{shell, users},
			Config: ocispecConfig{User: "stranger", Env: []string{"PATH=/bin"}}})
		if err != nil {
			t.Fatal(err)
		}
		d.Pull(p.Ref)
		c := pod.Run(d.Sleeper(fmt.Sprintf("c%d", i), harness.Image(p.Ref)))
		if got := c.Sh("id -u"); got != "4321" {
			t.Errorf("the user is %q, want 4321", got)
		}
		c.Stop(0)
		c.Remove()
	}
	pod.Stop()
	pod.Remove()
	if raw, err := os.ReadFile(ran); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("executed %q, %v", raw, err)
	}
}

// TestHostileStopSignals: what an image says of a signal is one, or is refused with its words.
func TestHostileStopSignals(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("signals"))
	for i, signal := range []string{"0", "-9", "65", "99999999999999999999", "SIGKILL; touch /x", "RTMAX+1", "RTMIN+31", "SIGRTMIN-1", "9\n", "SIG", "\x00"} {
		ref := harness.PushImage(t, fmt.Sprintf("test/signal-%d", i), imageConfig(func(c *ocispecConfig) { c.StopSignal = signal })).Ref
		d.Pull(ref)
		_, err := pod.TryCreate(d.Sleeper("c", harness.Image(ref)))
		refused(t, fmt.Sprintf("signal %q", signal), err, codes.InvalidArgument, "StopSignal")
	}
}

// TestLabelsOfAnImageAreText (threat B15, CVE-2026-53488): what is somebody's control key is a text like any other in an image's labels, and stays in the
// image.
func TestLabelsOfAnImageAreText(t *testing.T) {
	cdi, hooks := t.TempDir(), t.TempDir()
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[cdi]\nspec_dirs = [%q]\n[hooks]\ndirs = [%q]\n", cdi, hooks)))
	ran := filepath.Join(hooks, "ran")
	hook := d.Write(filepath.Join(hooks, "hook.sh"), "#!/bin/sh\ntouch "+ran+"\n")
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(filepath.Join(hooks, "hook.json"), fmt.Sprintf(
		`{"version": "1.0.0", "hook": {"path": %q}, "stages": ["createRuntime"], "when": {"annotations": {"^hooked$": "yes"}}}`, hook))
	d.Write(filepath.Join(cdi, "gpu.yaml"), "cdiVersion: 0.6.0\nkind: test.vendor/gpu\ndevices:\n- name: one\n  containerEdits: {env: [GPU=one]}\n")
	labels := map[string]string{
		"hooked": "yes", "cdi.k8s.io/plugin_1": "test.vendor/gpu=one", "io.kubernetes.pod.name": "other", "io.kubernetes.container.name": "other",
		"containerd.io/restart.status": "running", "containerd.io/restart.loguri": "binary://" + hook, "io.kubernetes.cri.container-type": "sandbox",
		"io.kubernetes.cri-o.Volumes": "[]", "org.systemd.property.CollectMode": "'inactive'", "run.oci.keep_original_groups": "1", "org.criu.config": "/etc/shadow",
		"blockio.resources.beta.kubernetes.io/pod": "x", "rdt.resources.beta.kubernetes.io/pod": "x", "io.container.manager": "x", "berth.restart": "x",
	}
	ref := harness.PushImage(t, "test/labels", imageConfig(func(c *ocispecConfig) { c.Labels = labels })).Ref
	d.Pull(ref)
	pod := d.RunPod(d.Pod("labels"))
	c := pod.Run(d.Sleeper("c", harness.Image(ref)))
	if s := c.Status(); fmt.Sprint(s.Labels) != fmt.Sprint(c.Config.Labels) || fmt.Sprint(s.Annotations) != fmt.Sprint(c.Config.Annotations) {
		t.Errorf("the container has labels %v, annotations %v", s.Labels, s.Annotations)
	}
	for key, value := range labels {
		r, err := d.Runtime.ListContainers(d.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{key: value}}})
		if err != nil || len(r.Containers) != 0 {
			t.Errorf("containers with the label %s: %v, %v", key, r.GetContainers(), err)
		}
	}
	if got := c.Sh("echo GPU=$GPU"); got != "GPU=" {
		t.Errorf("a device of the image's labels: %s", got)
	}
	if _, err := os.Stat(ran); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a hook of the image's labels ran: %v", err)
	}
	// Nothing that berth keeps of the pod, or hands to another runtime, has them.
	for _, folder := range []string{filepath.Join(d.Options().Root, "pods", pod.ID), filepath.Join(d.Options().State, "pods", pod.ID)} {
		err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() && e.Name() == "rootfs" {
				return errors.Join(err, fs.SkipDir)
			}
			if !e.Type().IsRegular() {
				return nil
			}
			text := readRaw(t, path)
			for key := range labels {
				if key != "hooked" && strings.Contains(text, key) {
					t.Errorf("%s has the image's label %s", path, key)
				}
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.SkipDir) {
			t.Error(err)
		}
	}
}

// TestHostileNames (threat B20, CVE-2025-0750): a name that is a path, or none that can be shown, is refused; what is only text comes back as it was. Nothing
// of either leads to the host's files and mounts.
func TestHostileNames(t *testing.T) {
	d := harness.Start(t)
	victim := plantCanary(t, d)
	mount := filepath.Join(victim.dir, "folder")
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(mount, unix.MNT_DETACH) })
	victim.before = everything(t, victim.dir)
	names := []string{victim.up, victim.dir, mount, "..", ".", "a/b", strings.Repeat("a", 5000), "a\nb", "a\x00b", "a\u202eb", ""}
	for _, name := range names {
		for field, set := range map[string]func(*runtimeapi.PodSandboxConfig){
			"config.metadata.name":      func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = name },
			"config.metadata.namespace": func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = name },
			"config.metadata.uid":       func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = name },
		} {
			config := d.Pod("bad")
			set(config)
			_, err := d.TryRunPod(config)
			refused(t, fmt.Sprintf("%s %.40q", field, name), err, codes.InvalidArgument, field)
		}
	}
	for _, folder := range []string{"../logs", d.Dir + "/logs/../victim/folder", d.Dir + "/a\nb", d.Dir + "/a\x00b", "/" + strings.Repeat("a/", 3000)} {
		config := d.Pod("bad")
		config.LogDirectory = folder
		_, err := d.TryRunPod(config)
		refused(t, fmt.Sprintf("log_directory %.40q", folder), err, codes.InvalidArgument, "config.log_directory")
	}
	texts := map[string]string{"test/x": "y"}
	for i, name := range names {
		texts[fmt.Sprintf("test/%d", i)] = name
	}
	pod := d.RunPod(d.Pod("text", func(c *runtimeapi.PodSandboxConfig) { c.Annotations, c.Labels = texts, texts }))
	for _, name := range names {
		config := d.Sleeper("bad")
		config.Metadata.Name = name
		_, err := pod.TryCreate(config)
		refused(t, fmt.Sprintf("container name %.40q", name), err, codes.InvalidArgument, "config.metadata.name")
	}
	for _, path := range []string{victim.up + "/f", victim.dir + "/f", "../x.log", "..", ".", "a/../../x", "x/", "a\nb", "a\x00b", "a\u202eb", strings.Repeat("a", 5000)} {
		config := d.Sleeper("bad")
		config.LogPath = path
		_, err := pod.TryCreate(config)
		refused(t, fmt.Sprintf("log_path %.40q", path), err, codes.InvalidArgument, "config.log_path")
	}
	c := pod.Run(d.Sleeper("c", func(c *runtimeapi.ContainerConfig) { c.Annotations, c.Labels = texts, texts }))
	d.Restart()
	for what, got := range map[string]map[string]string{"the pod's annotations": pod.Status().Annotations, "the pod's labels": pod.Status().Labels,
		"the container's annotations": c.Status().Annotations, "the container's labels": c.Status().Labels} {
		if fmt.Sprint(got) != fmt.Sprint(texts) {
			t.Errorf("%s = %q", what, got)
		}
	}
	for _, id := range names[:len(names)-1] {
		for call, f := range map[string]func() error{
			"StopPodSandbox": func() error {
				_, err := d.Runtime.StopPodSandbox(d.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
				return err
			},
			"RemovePodSandbox": func() error {
				_, err := d.Runtime.RemovePodSandbox(d.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
				return err
			},
			"RemoveContainer": func() error {
				_, err := d.Runtime.RemoveContainer(d.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id})
				return err
			},
			"RemoveImage": func() error {
				_, err := d.Images.RemoveImage(d.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: id}})
				return err
			},
		} {
			_ = f() // what is not there is removed, and what cannot be an ID is refused
			if _, err := os.Stat(victim.dir); err != nil {
				t.Fatalf("%s(%.40q): %v", call, id, err)
			}
		}
	}
	pod.Stop()
	pod.Remove()
	victim.intact(t, "names")
	if !strings.Contains(readRaw(t, "/proc/self/mountinfo"), " "+mount+" ") {
		t.Error("a mount of the host is gone")
	}
}

// TestMountSources (threat B26): a source that is a link is followed once, when it is mounted, also a link to what a process has open.
func TestMountSources(t *testing.T) {
	d := harness.Start(t)
	good, other := folder(t, d, "good"), folder(t, d, "other")
	parent := filepath.Join(d.Dir, "hidden")
	path := filepath.Join(folder(t, d, "hidden/volume"), "file")
	opened, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	link := filepath.Join(d.Dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	// What the descriptor's link says is another file now.
	folder(t, d, "above/volume")
	if err := unix.Mount(filepath.Join(d.Dir, "above"), parent, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(parent, unix.MNT_DETACH) })
	pod := d.RunPod(d.Pod("sources"))
	descriptor := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), opened.Fd())
	want := "goodhidden/volume"
	if harness.Handler != "" {
		descriptor, want = path, "goodabove/volume" // runc opens it in a mount namespace of its own, from where the kernel binds no mount of another one
	}
	c := pod.Run(d.Sleeper("c", bind(link, "/link"), bind(descriptor, "/fd")))
	if err := errors.Join(os.Remove(link), os.Symlink(other, link)); err != nil {
		t.Fatal(err)
	}
	if got := c.Sh("cat /link/file /fd"); got != want {
		t.Errorf("files = %q, want %q", got, want)
	}
}

// TestNobodyLooksIntoBerth (threats B30, B31): neither the daemon nor a monitor shows what it has to who is root and may not trace processes of root, with every
// other right that they have themselves; nor do their files to a container that sees all processes of the host.
func TestNobodyLooksIntoBerth(t *testing.T) {
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("spy", harness.Namespaces(modePod, modeNode, modePod)))
	spy := pod.Run(d.Sleeper("spy", likePod(pod)))
	for who, pid := range map[string]int{"berthd": d.PID(), "the monitor": monitorPID(t, pod)} {
		if err := takeDescriptor(pid); err != unix.EPERM {
			t.Errorf("descriptor 0 of %s: %v, want EPERM", who, err)
		}
		for _, name := range []string{"exe", "cwd", "root", "fd/0", "ns/mnt"} {
			if r := spy.Exec("readlink", fmt.Sprintf("/proc/%d/%s", pid, name)); r.Code == 0 {
				t.Errorf("%s of %s is %s", name, who, r.Stdout)
			}
		}
		for _, name := range []string{"environ", "maps", "mem", "fd/0", "root/etc/passwd"} {
			if r := spy.Exec("head", "-c", "1", fmt.Sprintf("/proc/%d/%s", pid, name)); r.Code == 0 {
				t.Errorf("%s of %s can be read: %q", name, who, r.Stdout)
			}
		}
		if r := spy.Exec("kill", "-0", fmt.Sprint(pid)); r.Code != 0 {
			t.Errorf("the container does not see %s: %+v", who, r)
		}
	}
	for line := range strings.Lines(spy.Host("mountinfo")) {
		if f := strings.Fields(line); strings.Contains(f[3], d.Options().State) && f[4] != "/etc/hosts" && f[4] != "/etc/hostname" && f[4] != "/etc/resolv.conf" {
			t.Errorf("the container has what is the daemon's: %s", line)
		}
	}
}

// takeDescriptor tries to have a descriptor of a process, as a thread without CAP_SYS_PTRACE that may have every capability: only what a process says of
// itself keeps that one out (PR_SET_DUMPABLE; ptrace(2), "Ptrace access mode checking").
func takeDescriptor(pid int) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this function
		done <- func() error {
			header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var sets [2]unix.CapUserData
			if err := unix.Capget(&header, &sets[0]); err != nil {
				return err
			}
			sets[0].Effective, sets[1].Effective = 0, 0
			if err := unix.Capset(&header, &sets[0]); err != nil {
				return err
			}
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return err
			}
			defer unix.Close(pidfd)
			fd, err := unix.PidfdGetfd(pidfd, 0, 0)
			if err == nil {
				unix.Close(fd)
			}
			return err
		}()
	}()
	return <-done
}

// TestSharedMemoryEndsWithThePod (threat B25, CVE-2024-3056): what a container has put into the pod's /dev/shm stays there when it is killed for want of
// memory, as memory of the pod, and is free once the pod is stopped.
func TestSharedMemoryEndsWithThePod(t *testing.T) {
	parent := fmt.Sprintf("/berth-shm-%d", os.Getpid())
	d := harness.Start(t, harness.WithCgroupParent(parent))
	usage := func() int {
		var n int
		fmt.Sscan(readFile(t, cgroupFile(t, parent, "memory", "memory.usage_in_bytes", "memory.current")), &n)
		return n >> 20
	}
	pod := d.RunPod(d.Pod("shm", harness.CgroupParent(parent)))
	limit := harness.Resources(&resources{MemoryLimitInBytes: 96 << 20, MemorySwapLimitInBytes: 96 << 20})
	c := pod.Run(d.Shell("c", "probe bytes 50000000 x >/dev/shm/f; exec probe eat 200", limit))
	if s := c.Wait(harness.Timeout); s.Reason != "OOMKilled" {
		t.Fatalf("the container has ended by %q, code %d", s.Reason, s.ExitCode)
	}
	if got := usage(); got < 47 {
		t.Errorf("the pod has %d MiB, of which 47 are in /dev/shm", got)
	}
	c.Remove()
	if got := usage(); got < 47 {
		t.Errorf("without the container the pod has %d MiB, of which 47 are in /dev/shm", got)
	}
	if got := pod.Run(d.Sleeper("other")).Sh("stat -c %s /dev/shm/f"); got != "50000000" {
		t.Errorf("the file has %s bytes", got)
	}
	pod.Stop()
	d.Eventually(harness.Timeout, "the memory is free", func() bool { return usage() < 30 }) // what was read of the image may stay
}
