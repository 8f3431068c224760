package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/harness"
	"github.com/berthd/berth/test/invariants"
)

// refused checks an error's code and that it names what it is about.
func refused(t testing.TB, what string, err error, code codes.Code, names ...string) {
	t.Helper()
	wantCode(t, what, err, code)
	for _, name := range names {
		if !contains(err, name) {
			t.Errorf("%s: %v does not name %q", what, err, name)
		}
	}
}

// unchanged checks that f leaves the host and the lists as they are.
func unchanged(d *harness.Daemon, f func()) {
	d.T.Helper()
	before := d.Take()
	f()
	invariants.AsBefore(d.T, d.Process.Daemon(), before)
}

func TestPullsThatCannotWork(t *testing.T) {
	d := harness.Start(t)
	reg := harness.Registry(t)
	layer := func(text string) registrytest.Layer {
		return registrytestLayer(t, func(b *builder) { b.File("file", strings.Repeat(text, 20000), 0o644) })
	}
	push := func(repo string, l registrytest.Layer) registrytest.Pushed {
		p, err := reg.Push(repo, "1", registrytest.Image{Layers: []registrytest.Layer{l}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	wrongDigest := push("test/wrong-digest", layer("a"))
	reg.PutBlobAs(wrongDigest.Layers[0].Digest, []byte("other bytes"))
	wrongDiff := layer("b")
	wrongDiff.DiffID = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	truncated := push("test/truncated", layer("c"))
	reg.AddFault(registrytest.Fault{Path: truncated.Layers[0].Digest.String(), Cut: registrytest.Truncate, At: truncated.Layers[0].Size / 2})
	notGzip := layer("d")
	notGzip.Blob = []byte("this is no gzip stream at all")
	const down = "127.0.0.1:1" // no test is given that port
	reg.AddFault(registrytest.Fault{Path: "test/secret/", Status: 401, Header: map[string][]string{"Www-Authenticate": {`Basic realm="x"`}}})
	for _, tc := range []struct {
		name, ref string
		code      codes.Code
		names     []string
	}{
		{"unknown image", reg.Host() + "/test/none:1", codes.NotFound, []string{"test/none"}},
		{"unknown tag", reg.Host() + "/test/base:nope", codes.NotFound, []string{"nope"}},
		{"unknown digest", reg.Host() + "/test/base@sha256:" + strings.Repeat("0", 64), codes.NotFound, nil},
		{"not a reference", reg.Host() + "/UPPER/case", codes.InvalidArgument, []string{"UPPER/case"}},
		{"empty", "", codes.InvalidArgument, nil},
		{"registry down", down + "/test/base:1", codes.Unknown, []string{"RegistryUnavailable", down}},
		{"layer with a wrong digest", wrongDigest.Ref, codes.DataLoss, []string{wrongDigest.Layers[0].Digest.String()}},
		{"layer with a wrong diffID", push("test/wrong-diff", wrongDiff).Ref, codes.DataLoss, nil},
		{"truncated layer", truncated.Ref, codes.Unknown, []string{truncated.Layers[0].Digest.String()}},
		{"layer that is no gzip", push("test/not-gzip", notGzip).Ref, codes.Internal, nil},
		{"no credentials", reg.Host() + "/test/secret/x:1", codes.Unauthenticated, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			unchanged(d, func() {
				_, err := d.TryPull(tc.ref)
				if tc.code == codes.Internal || tc.name == "truncated layer" {
					if err == nil {
						t.Error("the pull succeeds")
					}
				} else {
					refused(t, tc.name, err, tc.code, tc.names...)
				}
			})
			r, err := d.Images.ListImages(d.Context(), &runtimeapi.ListImagesRequest{})
			if err != nil || len(r.Images) != 0 {
				t.Errorf("images = %v, %v, want none", r, err)
			}
			wantFolders(t, d, "layers", 0)
		})
	}
	reg.ClearFaults()
	if _, err := d.TryPull(truncated.Ref); err != nil {
		t.Errorf("the pull of what was truncated, again: %v", err)
	}
}

// wantFolders counts the published layers, which a failed pull leaves as they were.
func wantFolders(t testing.TB, d *harness.Daemon, name string, want int) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(d.Options().Root, "images", name))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if len(entries) != want {
		t.Errorf("%d entries in images/%s, want %d", len(entries), name, want)
	}
}

// TestFullDiskDuringAPull: the error says so, what was written is freed, and pods run on.
func TestFullDiskDuringAPull(t *testing.T) {
	disk := t.TempDir()
	if os.Geteuid() == 0 {
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=128m"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	}
	d := harness.Start(t, harness.WithRoot(filepath.Join(disk, "r")))
	c := d.RunPod(d.Pod("bystander")).Run(d.Sleeper("c"))
	big := registrytestLayer(t, func(b *builder) { b.File("big", strings.Repeat("0123456789abcdef", 4<<20), 0o644) })
	ref := harness.PushImage(t, "test/big", imageConfig(func(*ocispecConfig) {}), big).Ref
	free := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bfree * uint64(st.Bsize)
	}
	before := free()
	_, err := d.TryPull(ref)
	refused(t, "pull on a full disk", err, codes.ResourceExhausted)
	d.Eventually(5*time.Second, "what was written is freed", func() bool { return free()+1<<20 > before })
	if got := c.Sh("echo alive"); got != "alive" {
		t.Errorf("exec = %q", got)
	}
	layer := registrytestLayer(t, func(b *builder) { b.File("small", "x", 0o644) })
	d.Pull(harness.PushImage(t, "test/small", imageConfig(func(*ocispecConfig) {}), layer).Ref)
	c.Pod.Remove()
}

func TestPodsThatCannotRun(t *testing.T) {
	d := harness.Start(t)
	for _, tc := range []struct {
		name   string
		change func(*runtimeapi.PodSandboxConfig)
		code   codes.Code
		names  []string
	}{
		{"no metadata", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, codes.InvalidArgument, []string{"metadata"}},
		{"no name", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }, codes.InvalidArgument, []string{"name"}},
		{"hostname too long", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("h", 65) }, codes.InvalidArgument, []string{"hostname"}},
		{"hostname with a newline", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a\nb" }, codes.InvalidArgument, []string{"hostname"}},
		{"cgroup parent above the root", harness.CgroupParent("/x/../../etc"), codes.InvalidArgument, []string{"/x/../../etc"}},
		{"cgroup parent is a file", harness.CgroupParent("/cgroup.procs"), codes.InvalidArgument, []string{"/cgroup.procs"}},
		{"port out of range", harness.HostPort(runtimeapi.Protocol_TCP, 70000, 80, ""), codes.InvalidArgument, []string{"70000"}},
		{"negative port", harness.HostPort(runtimeapi.Protocol_TCP, -1, 80, ""), codes.InvalidArgument, nil},
		{"address of a port", harness.HostPort(runtimeapi.Protocol_TCP, 8080, 80, "no address"), codes.InvalidArgument, []string{"no address"}},
		{"name server with a newline", func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.1\nnameserver 6.6.6.6"}}
		}, codes.InvalidArgument, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			config := d.Pod("bad")
			tc.change(config)
			unchanged(d, func() {
				_, err := d.TryRunPod(config)
				refused(t, tc.name, err, tc.code, tc.names...)
			})
		})
	}
	_, err := d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: d.Pod("bad"), RuntimeHandler: "gvisor"})
	refused(t, "unknown handler", err, codes.InvalidArgument, "gvisor")
}

func TestContainersThatCannotRun(t *testing.T) {
	d := harness.Start(t)
	folderAsProgram := registrytestLayer(t, func(b *builder) {
		b.Dir("opt", 0o755).File("opt/no-exec", "x", 0o644).File("opt/no-format", "not a program", 0o755)
	})
	image := harness.PushImage(t, "test/programs", imageConfig(func(*ocispecConfig) {}), folderAsProgram)
	d.Pull(image.Ref)
	bare, err := harness.Registry(t).Push("test/no-command", "1", registrytest.Image{Layers: []registrytest.Layer{folderAsProgram}})
	if err != nil {
		t.Fatal(err)
	}
	d.Pull(bare.Ref)
	pod := d.RunPod(d.Pod("pod"))
	for _, tc := range []struct {
		name   string
		change harness.ContainerOption
		code   codes.Code
		names  []string
	}{
		{"no metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, []string{"metadata"}},
		{"image not pulled", harness.Image("127.0.0.1:1/none:1"), codes.NotFound, []string{"127.0.0.1:1/none:1"}},
		{"no command anywhere", func(c *runtimeapi.ContainerConfig) {
			c.Image, c.Command = &runtimeapi.ImageSpec{Image: bare.Ref}, nil
		}, codes.InvalidArgument, []string{"command"}},
		{"unknown user", harness.Security(func(s *security) { s.RunAsUsername = "nobody-here" }), codes.InvalidArgument, []string{"nobody-here"}},
		{"mount source is missing", bind("/no/such/source", "/x"), codes.Unknown, []string{"/no/such/source"}},
		{"mount target is relative", bind("/tmp", "x"), codes.InvalidArgument, []string{"x"}},
		{"mount without a target", bind("/tmp", ""), codes.InvalidArgument, nil},
		{"environment with a zero byte", func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("b\x00c")}}
		}, codes.InvalidArgument, []string{"A"}},
		{"command with a zero byte", func(c *runtimeapi.ContainerConfig) { c.Args = []string{"a\x00b"} }, codes.InvalidArgument, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			unchanged(d, func() {
				c, err := pod.TryCreate(d.Sleeper("bad", tc.change))
				if err == nil && tc.code == codes.Unknown {
					err = c.TryStart()
					defer c.Remove()
				}
				if tc.code == codes.Unknown && err != nil {
					tc.code = status.Code(err)
				}
				refused(t, tc.name, err, tc.code, tc.names...)
			})
		})
	}
	// What only the kernel can tell is told by StartContainer, and the container has exited with the shell's code for it.
	for _, tc := range []struct {
		name, program string
		code          int32
	}{
		{"missing", "/no/such/program", 127},
		{"missing in PATH", "no-such-program", 127},
		{"not executable", "/opt/no-exec", 126},
		{"a folder", "/opt", 126},
		{"no format", "/opt/no-format", 126},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.name == "no format" {
				harness.Native(t, "runc has answered before it executes the program")
			}
			c := pod.Create(d.Container("bad", []string{tc.program}, harness.Image(image.Ref)))
			err := c.TryStart()
			if err == nil || !strings.Contains(err.Error(), tc.program) {
				t.Errorf("StartContainer = %v, want an error that names %s", err, tc.program)
			}
			s := c.Status()
			if s.State != exited || s.ExitCode != tc.code && s.ExitCode != 128 || s.Reason == "" || !strings.Contains(s.Message, tc.program) {
				t.Errorf("status = %s, code %d, reason %q, message %q, want exited with %d", s.State, s.ExitCode, s.Reason, s.Message, tc.code)
			}
			d.Check()
			c.Remove()
		})
	}
	t.Run("log directory is missing", func(t *testing.T) {
		config := d.Pod("unlogged")
		pod := d.RunPod(config)
		if err := os.RemoveAll(config.LogDirectory); err != nil {
			t.Fatal(err)
		}
		d.Write(config.LogDirectory, "a file")
		c, err := pod.TryCreate(d.Sleeper("c"))
		if err == nil {
			err = c.TryStart()
		}
		if err == nil || !strings.Contains(err.Error(), config.LogDirectory) {
			t.Errorf("error = %v, want one that names %s", err, config.LogDirectory)
		}
	})
}

func TestNoSecretInErrors(t *testing.T) {
	d := harness.Start(t)
	reg, err := registrytest.Start(registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Basic, Username: "u", Password: "right"}})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	_, err = d.Images.PullImage(d.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: reg.Host() + "/a/b:1"},
		Auth: &runtimeapi.AuthConfig{Username: "u", Password: "swordfish"}})
	refused(t, "wrong password", err, codes.Unauthenticated)
	log := readRaw(t, d.Log)
	if contains(err, "swordfish") || strings.Contains(log, "swordfish") || strings.Contains(fmt.Sprint(err), "right") {
		t.Errorf("the password is in the error or in the log: %v", err)
	}
}
