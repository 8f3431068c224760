package runtime

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/oci/runtime/engine/codec"
)

func minimal() *specs.Spec {
	return &specs.Spec{
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/work"},
		Linux:   &specs.Linux{CgroupsPath: "/a/b"},
	}
}

var overlay = []Mount{{Type: "overlay", Options: []string{"lowerdir+=/l", "upperdir=/u", "workdir=/w"}}}

func TestCompileMount(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   specs.Mount
		want engine.Mount
	}{
		{"bind", specs.Mount{Destination: "/d/", Type: "bind", Source: "/s", Options: []string{"rbind", "rprivate", "ro"}},
			engine.Mount{Type: "bind", Source: "/s", Target: "/d", Recursive: true, Propagation: unix.MS_PRIVATE, Set: unix.MOUNT_ATTR_RDONLY}},
		{"recursive read-only", specs.Mount{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"rbind", "rro"}},
			engine.Mount{Type: "bind", Source: "/s", Target: "/d", Recursive: true, RecursiveAttributes: true, Set: unix.MOUNT_ATTR_RDONLY}},
		{"later wins", specs.Mount{Destination: "/d", Type: "bind", Source: "/s", Options: []string{"bind", "ro", "rw"}},
			engine.Mount{Type: "bind", Source: "/s", Target: "/d", Clear: unix.MOUNT_ATTR_RDONLY}},
		{"dev", specs.Mount{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755"}},
			engine.Mount{Type: "tmpfs", Source: "tmpfs", Target: "/dev", Options: []string{"mode=755"}, NoSymlinks: true,
				Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_STRICTATIME, Clear: unix.MOUNT_ATTR__ATIME}},
		{"proc", specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"},
			engine.Mount{Type: "proc", Source: "proc", Target: "/proc", NoSymlinks: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := compileMount(tc.in)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("compileMount (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCompileRefusesWhatTheEngineLacks(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*specs.Spec)
	}{
		{"user namespace without mappings", func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace}} }},
		{"mappings without a user namespace", func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }},
		{"another pod's user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UserNamespace, Path: "/proc/1/ns/user"}}
		}},
		{"idmapped mount", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/d", Type: "bind", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}}
		}},
		{"an image that is not there", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/d", Type: TypeImage, Source: "sha256:none", Options: []string{"ro"}}}
		}},
		{"an image to write", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/d", Type: TypeImage, Source: "sha256:i"}}
		}},
		{"an option of an image", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/d", Type: TypeImage, Source: "sha256:i", Options: []string{"ro", "upperdir=/x"}}}
		}},
		{"mount option", func(s *specs.Spec) {
			s.Mounts = []specs.Mount{{Destination: "/d", Type: "bind", Options: []string{"uid=0"}}}
		}},
		{"capability", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_FLY"}}
		}},
		{"rlimit", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_LUCK"}} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := minimal()
			tc.change(s)
			var unsupported *UnsupportedError
			if _, err := Compile(s, withImage); !errors.As(err, &unsupported) {
				t.Errorf("Compile = %v, want an UnsupportedError", err)
			}
		})
	}
}

// withImage has one image beside the root.
var withImage = Trees{Root: overlay, Images: map[string][]Mount{"sha256:i": {{Type: "overlay", Options: []string{"lowerdir+=/a", "lowerdir+=/b"}}}}}

func TestPlanSurvivesTheCodec(t *testing.T) {
	s := minimal()
	s.Mounts = []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}}
	ids := []specs.LinuxIDMapping{{HostID: 1000, Size: 10}, {ContainerID: 20, HostID: 5000, Size: 1}}
	s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.UserNamespace}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids[:1]
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/d", Type: "bind", Source: "/s", UIDMappings: ids[1:], GIDMappings: ids})
	s.Process.User = specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3, 4}}
	s.Process.Env = []string{"A=b", "C="}
	s.Process.ApparmorProfile = "a profile"
	score := -5
	s.Process.OOMScoreAdj = &score
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: ^uint64(0)}}
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/i", Type: TypeImage, Source: "sha256:i/etc/x", Options: []string{"ro", "nodev"}})
	plan, err := Compile(s, withImage)
	if err != nil {
		t.Fatal(err)
	}
	image := plan.Mounts[len(plan.Mounts)-1]
	if image.SubPath != "etc/x" || len(image.Options) != 2 || image.Set != unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV {
		t.Errorf("mount of an image: %+v", image)
	}
	plan.HostRoot, plan.Pauses, plan.Process.Path, plan.Process.SELinux = "/b/rootfs", engine.Created|engine.Starting, "/bin/x", "u:r:t:s0"
	c := codec.Encoder()
	plan.Code(c)
	var got engine.Plan
	d := codec.Decoder(c.Bytes())
	got.Code(d)
	if err := d.Err(); err != nil {
		t.Fatal(err)
	}
	if u := plan.Users; u == nil || len(u.UIDs) != 2 || len(u.GIDs) != 1 || len(plan.Devices) == 0 || plan.Devices[0].UID != 1000 {
		t.Errorf("user namespace %+v, devices %+v", u, plan.Devices)
	}
	if diff := cmp.Diff(*plan, got); diff != "" {
		t.Errorf("after the codec (-want +got):\n%s", diff)
	}
	for n := range c.Bytes() {
		var p engine.Plan
		p.Code(codec.Decoder(c.Bytes()[:n])) // must not panic
	}
}

func FuzzPlanDecoder(f *testing.F) {
	plan, err := Compile(minimal(), Trees{Root: overlay})
	if err != nil {
		f.Fatal(err)
	}
	c := codec.Encoder()
	plan.Code(c)
	f.Add(c.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		var p engine.Plan
		p.Code(codec.Decoder(b))
	})
}

// Where there is SELinux, what a container mounts of images is labelled as its root is.
func TestImagesHaveTheMountLabel(t *testing.T) {
	s := minimal()
	s.Linux.MountLabel = "system_u:object_r:container_file_t:s0:c1,c2"
	s.Mounts = []specs.Mount{{Destination: "/i", Type: TypeImage, Source: "sha256:i", Options: []string{"ro"}}}
	plan, err := Compile(s, withImage)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []engine.Mount{plan.Rootfs, plan.Mounts[0]} {
		if !slices.Contains(m.Options, "context="+s.Linux.MountLabel) {
			t.Errorf("options of %s = %q", m.Target, m.Options)
		}
	}
	if len(withImage.Images["sha256:i"][0].Options) != 2 {
		t.Error("the image's layers were changed")
	}
}

// What a container mounts anew has its label; volumes and the kernel's own file systems keep theirs.
func TestCompileLabels(t *testing.T) {
	s := &specs.Spec{Root: &specs.Root{}, Process: &specs.Process{Args: []string{"x"}, SelinuxLabel: "u:r:t:s0"},
		Linux: &specs.Linux{MountLabel: "u:object_r:f:s0:c1,c2"},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}, {Destination: "/dev", Type: "tmpfs", Options: []string{"mode=755"}}, {Destination: "/dev/pts", Type: "devpts"},
			{Destination: "/dev/mqueue", Type: "mqueue"}, {Destination: "/v", Type: "bind", Source: "/v", Options: []string{"rbind"}}}}
	p, err := Compile(s, Trees{Root: []Mount{{Type: "overlay", Options: []string{"lowerdir+=/l"}}}})
	if err != nil {
		t.Fatal(err)
	}
	const option = "context=u:object_r:f:s0:c1,c2"
	got := map[string][]string{"": p.Rootfs.Options}
	for _, m := range p.Mounts {
		got[m.Type] = m.Options
	}
	want := map[string][]string{"": {"lowerdir+=/l", option}, "proc": nil, "tmpfs": {"mode=755", option}, "devpts": {option}, "mqueue": nil, "bind": nil}
	if diff := cmp.Diff(want, got); diff != "" || p.Process.SELinux != "u:r:t:s0" {
		t.Errorf("label %q, options (-want +got):\n%s", p.Process.SELinux, diff)
	}
}

// What nothing but an adjuster asks for, and the engine does not have, is refused by its name.
func TestCheck(t *testing.T) {
	for field, change := range map[string]func(*specs.Spec){
		"linux.netDevices":  func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth7": {}} },
		"linux.timeOffsets": func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}} },
		"linux.intelRdt": func(s *specs.Spec) {
			s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "gold", Schemata: []string{"MB:0=70"}}
		},
		"hooks.createContainer": func(s *specs.Spec) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/x"}}}
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1, Size: 1}}
		},
	} {
		s := &specs.Spec{Root: &specs.Root{}, Process: &specs.Process{}, Linux: &specs.Linux{}}
		change(s)
		var unsupported *UnsupportedError
		if err := Check(s); !errors.As(err, &unsupported) || !strings.HasPrefix(unsupported.Field, field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	class := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{IntelRdt: &specs.LinuxIntelRdt{ClosID: "gold"}}}
	if err := Check(class); err != nil {
		t.Errorf("a class of service: %v", err)
	}
}
