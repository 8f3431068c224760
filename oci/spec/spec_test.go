package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const allowAll = `{"defaultAction":"SCMP_ACT_ALLOW"}`

func localhost(ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}
}

func mount(container, host string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: container, HostPath: host}
}

// usersOption asks for a user namespace that maps n IDs.
func usersOption(n uint32) *runtimeapi.NamespaceOption {
	ids := []*runtimeapi.IDMapping{{HostId: 65536, Length: n}}
	return &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids}}
}

func int64Value(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// wantInvalid checks that err is an InvalidError for a field with a rule.
func wantInvalid(t *testing.T, err error, field, rule string) {
	t.Helper()
	var bad *InvalidError
	if !errors.As(err, &bad) {
		t.Fatalf("error = %v, want an InvalidError for %s", err, field)
	}
	if bad.Field != field || !strings.Contains(bad.Rule, rule) {
		t.Errorf("error = %v\nwant field %s and a rule with %q", err, field, rule)
	}
}

func TestContainerRefuses(t *testing.T) {
	const sc = "config.linux.security_context."
	long := "/" + strings.Repeat("x", 64<<10)
	for _, tc := range []struct {
		name, field, rule string
		change            func(*Input, *runtimeapi.LinuxContainerSecurityContext)
	}{
		{"no metadata", "config.metadata", "must be set", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) { in.Container.Metadata = nil }},
		{"a name that climbs", "config.metadata.name", "path", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Metadata.Name = "../../etc"
		}},
		{"a name of 5000 bytes", "config.metadata.name", "at most", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Metadata.Name = strings.Repeat("a", 5000)
		}},
		{"a name that turns writing around", "config.metadata.name", "format", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Metadata.Name = "a\u202egnp"
		}},
		{"nothing to run", "config.command", "neither", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Image.Entrypoint, in.Image.Cmd = nil, nil
		}},
		{"an empty program", "config.command", "program", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Command = []string{""}
		}},
		{"NUL in an argument", "config.command[1]", "NUL", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Command = []string{"a", "b\x00c"}
		}},
		{"a relative folder", "config.working_dir", "absolute", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.WorkingDir = "srv"
		}},
		{"an open file as folder", "config.working_dir", "open file", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.WorkingDir = "/proc/self/fd/7/"
		}},
		{"an image's open file as folder", "image config WorkingDir", "open file", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Image.WorkingDir = "x/../proc/./thread-self/fd/7"
		}},
		{"a thread's open file as folder", "image config WorkingDir", "open file", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Image.WorkingDir = "/proc/1/task/1/fd/8"
		}},
		{"another process's root as folder", "image config WorkingDir", "open file", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Image.WorkingDir = "/proc/1/root/etc"
		}},
		{"a nameless variable", "config.envs[0]", "name", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Value: []byte("x")}}
		}},
		{"a variable with = in its name", "config.envs[0]", "without =", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A=B", Value: []byte("x")}}
		}},
		{"NUL in a variable", "config.envs[0]", "NUL", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("x\x00y")}}
		}},
		{"a line end in HOME", "config.envs[0]", "control", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "HOME", Value: []byte("/root\nx::0:0::/:/bin/sh")}}
		}},
		{"a line end in an image's HOME", "image config Env[0]", "control", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Image.Env = []string{"HOME=/root\rx"}
		}},
		{"NUL in an image's variable", "image config Env[1]", "NUL", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Image.Env = []string{"A=1", "A=b\x00c"}
		}},
		{"a mount on the root", "config.mounts[0].container_path", "root", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("/x/..", "/data")}
		}},
		{"a mount below /proc", "config.mounts[0].container_path", "/proc", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("/proc/self/attr", "/data")}
		}},
		{"a mount on /proc", "config.mounts[0].container_path", "/proc", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("//proc/", "/data")}
		}},
		{"a relative mount", "config.mounts[0].container_path", "absolute", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("data", "/data")}
		}},
		{"a mount of nothing", "config.mounts[0].host_path", "empty", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("/data", "")}
		}},
		{"a mount of a relative path", "config.mounts[1].host_path", "absolute", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("/data", "/x"), mount("/b", "../b")}
		}},
		{"a source of 64 KiB", "config.mounts[0].host_path", "at most", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{mount("/data", long)}
		}},
		{"a writable image volume", "config.mounts[0].readonly", "must be true", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}}}
		}},
		{"an image volume with a host path", "config.mounts[0].host_path", "must be empty", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, HostPath: "/x", Readonly: true}}
		}},
		{"an image volume that propagates", "config.mounts[0].propagation", "bidirectional", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, Readonly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		}},
		{"an image volume that nobody looked up", "config.mounts[0].image.image_ref", "ID of an image", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x"}, Readonly: true}}
		}},
		{"a part of an image that climbs", "config.mounts[0].image_sub_path", "without ..", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, Readonly: true, ImageSubPath: "a/../../b"}}
		}},
		{"a part of an image that is absolute", "config.mounts[0].image_sub_path", "relative", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, Readonly: true, ImageSubPath: "/etc"}}
		}},
		{"a part of an image with NUL", "config.mounts[0].image_sub_path", "NUL", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, Readonly: true, ImageSubPath: "a\x00"}}
		}},
		{"a part of no image", "config.mounts[0].image_sub_path", "without image", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/x", ImageSubPath: "etc"}}
		}},
		{"an image volume in /proc", "config.mounts[0].container_path", "/proc", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/proc/x", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, Readonly: true}}
		}},
		{"an image volume with other owners than the pod's", "config.mounts.uidMappings", "must be the pod", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Pod.Config.Linux.SecurityContext.NamespaceOptions = usersOption(100)
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", Image: &runtimeapi.ImageSpec{Image: "x", ImageRef: "sha256:x"}, Readonly: true,
				UidMappings: []*runtimeapi.IDMapping{{HostId: 7, Length: 1}}, GidMappings: []*runtimeapi.IDMapping{{HostId: 7, Length: 1}}}}
		}},
		{"an option that gives something", "config.mounts[0].mount_options", "noexec, nodev, nosuid", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/x", MountOptions: []string{"exec"}}}
		}},
		{"mapped owners", "config.mounts[0].uidMappings", "gidMappings", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", UidMappings: []*runtimeapi.IDMapping{{}}}}
		}},
		{"owners mapped to nobody", "config.mounts[0].uidMappings[0].length", "not be 0", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", UidMappings: []*runtimeapi.IDMapping{{}}, GidMappings: []*runtimeapi.IDMapping{{}}}}
		}},
		{"owners mapped in the host's user namespace", "config.mounts.uidMappings", "without a user namespace", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			ids := []*runtimeapi.IDMapping{{Length: 1}}
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", UidMappings: ids, GidMappings: ids}}
		}},
		{"a user namespace that the pod has not", sc + "namespace_options.userns_options", "the pod's", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = usersOption(100)
		}},
		{"a user that the user namespace has not", "user", "which has 100 users", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			in.Pod.Config.Linux.SecurityContext.NamespaceOptions = usersOption(100)
			s.RunAsUser = int64Value(100)
		}},
		{"a group that the user namespace has not", "group", "which has 100 groups", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			in.Pod.Config.Linux.SecurityContext.NamespaceOptions = usersOption(100)
			s.SupplementalGroups = []int64{100}
		}},
		{"mounts that go out of a user namespace", "config.mounts.propagation", "user namespace", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Pod.Config.Linux.SecurityContext.NamespaceOptions = usersOption(100)
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		}},
		{"an unknown propagation", "config.mounts[0].propagation", "not a propagation", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", Propagation: 7}}
		}},
		{"recursive read-only without read-only", "config.mounts[0].recursive_read_only", "readonly", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", RecursiveReadOnly: true}}
		}},
		{"recursive read-only that propagates", "config.mounts[0].recursive_read_only", "HOST_TO_CONTAINER", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", Readonly: true, RecursiveReadOnly: true,
				Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
		}},
		{"an option that undoes read-only", "config.mounts[0].mount_options", "must be one of", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", Readonly: true, MountOptions: []string{"rw"}}}
		}},
		{"an option that is many", "config.mounts[0].mount_options", "must be one of", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: "/data", MountOptions: []string{"nosuid,suid"}}}
		}},
		{"a device that is not there", "config.devices[0].host_path", "must be a device", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/gone"}}
		}},
		{"a device with other rights", "config.devices[0].permissions", "r, w and m", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", Permissions: "rwx"}}
		}},
		{"a device in /proc", "config.devices[0].container_path", "/proc", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/proc/x"}}
		}},
		{"a device in place of null", "config.devices[0].container_path", "every container", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/null"}}
			in.Devices = map[string][]specs.LinuxDevice{"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}}
		}},
		{"privileged in a plain pod", sc + "privileged", "not privileged", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }},
		{"an unknown capability", sc + "capabilities.add_capabilities", "not a capability", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_GOD"}}
		}},
		{"dropping an unknown capability", sc + "capabilities.drop_capabilities", "not a capability", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"NET_RAWW"}}
		}},
		{"a group without a user", sc + "run_as_group", "without", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = int64Value(5) }},
		{"two users", sc + "run_as_username", "beside", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = int64Value(5), "web"
		}},
		{"a negative user", sc + "run_as_user", "out of range", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(-1) }},
		{"a user that wraps to root", sc + "run_as_user", "out of range", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(1 << 32) }},
		{"a user above runc's", sc + "run_as_user", "out of range", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = int64Value(1 << 31) }},
		{"a group that wraps to root", sc + "supplemental_groups", "out of range", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.SupplementalGroups = []int64{5, 1 << 32}
		}},
		{"an unknown policy", sc + "supplemental_groups_policy", "Merge or Strict", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroupsPolicy = 9 }},
		{"a user that is not there", sc + "run_as_username", "not a user of the image", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody" }},
		{"an image's user that is not there", "image config User", "not a user of the image", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) { in.Image.User = "nobody" }},
		{"a user file of 11 MiB", "image user files", "at most", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) { in.Image.Passwd = make([]byte, 11<<20) }},
		{"a masked path that is relative", sc + "masked_paths", "absolute", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"bin/ls"} }},
		{"no target", sc + "namespace_options.target_id", "must be set", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET}
		}},
		{"a target that does not run", sc + "namespace_options.target_id", "running container", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "x"}
		}},
		{"a network of its own", sc + "namespace_options.network", "POD or NODE", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.NamespaceOptions = &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_CONTAINER}
		}},
		{"an empty seccomp reference", sc + "seccomp.localhost_ref", "must not be empty", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("") }},
		{"an empty legacy seccomp reference", sc + "seccomp_profile_path", "localhost/", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.SeccompProfilePath = "localhost/" }},
		{"a misspelt legacy seccomp profile", sc + "seccomp_profile_path", "unconfined", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.SeccompProfilePath = "Unconfined" }},
		{"a relative seccomp profile", sc + "seccomp.localhost_ref", "absolute", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("profile.json") }},
		{"a seccomp profile that climbs", sc + "seccomp.localhost_ref", "..", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("/var/../etc/x") }},
		{"a seccomp profile that was not read", sc + "seccomp.localhost_ref", "JSON", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.Seccomp = localhost("/x.json") }},
		{"a seccomp profile that is no JSON", sc + "seccomp.localhost_ref", "JSON", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp, in.SeccompProfile = localhost("/x.json"), []byte("no")
		}},
		{"a reference to the default", sc + "seccomp.localhost_ref", "must be empty", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{LocalhostRef: "/x"}
		}},
		{"an unknown kind of profile", sc + "seccomp.profile_type", "not a profile type", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: 9}
		}},
		{"seccomp on a kernel without", sc + "seccomp.localhost_ref", "does not filter", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp, in.Host.Seccomp = &runtimeapi.SecurityProfile{}, false
		}},
		{"AppArmor on a host without", sc + "apparmor.localhost_ref", "not enabled", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) { s.Apparmor = localhost("x") }},
		{"an AppArmor profile that is not loaded", sc + "apparmor_profile", "not a loaded", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			in.Host.AppArmor = AppArmor{Enabled: true, Default: "d", Loaded: []string{"y"}}
			s.ApparmorProfile = "localhost/x"
		}},
		{"the default AppArmor profile where none is", sc + "apparmor.localhost_ref", "no default", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			in.Host.AppArmor = AppArmor{Enabled: true, Missing: "no default profile"}
			s.Apparmor = &runtimeapi.SecurityProfile{}
		}},
		{"an empty AppArmor reference", sc + "apparmor.localhost_ref", "must not be empty", func(in *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			in.Host.AppArmor = AppArmor{Enabled: true, Default: "d"}
			s.Apparmor = localhost("localhost/")
		}},
		{"a SELinux type with a colon", sc + "selinux_options.type", "letters", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a:b"}
		}},
		{"a SELinux level of words", sc + "selinux_options.level", "level", func(_ *Input, s *runtimeapi.LinuxContainerSecurityContext) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "high"}
		}},
		{"unified limits of a controller that is not there", "config.linux.resources.unified", "memory, pids", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Host.Controllers = []string{"memory", "pids"}
			in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"cpuset.cpus": "0"}}
		}},
		{"unified limits on v1", "config.linux.resources.unified", "cgroup v1", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) {
			in.Host.CgroupV2 = false
			in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.high": "1"}}
		}},
		{"a cgroup that climbs", "cgroup path", "clean", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) { in.CgroupPath = "/a/../b" }},
		{"an unknown signal", "config.stop_signal", "not a signal", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) { in.Container.StopSignal = 99 }},
		{"a log that climbs", "config.log_path", "below", func(in *Input, _ *runtimeapi.LinuxContainerSecurityContext) { in.Container.LogPath = "a/../../b" }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput()
			tc.change(&in, in.securityContext())
			_, _, err := Container(in)
			wantInvalid(t, err, tc.field, tc.rule)
		})
	}
}

func TestErrorsShowNoValueOfAVariable(t *testing.T) {
	const secret = "hunter2"
	for _, change := range []func(*Input){
		func(in *Input) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte(secret + "\x00")}}
		},
		func(in *Input) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "HOME", Value: []byte("/" + secret + "\n")}}
		},
		func(in *Input) { in.Image.Env = []string{"TOKEN=" + secret + "\x00"} },
		func(in *Input) { in.Image.Env = []string{"HOME=" + secret + "\x00"} },
		func(in *Input) { in.Container.Args = []string{"--token", secret + "\x00"} },
	} {
		in := testInput()
		change(&in)
		_, _, err := Container(in)
		if err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("error = %v", err)
		}
	}
}

// An image's entries that are no variables must not be looked up in the daemon's environment (CVE-2026-57231).
func TestEnvironment(t *testing.T) {
	t.Setenv("AWS_SECRET", "hunter2")
	in := testInput()
	in.Image.Env = []string{"AWS_SECRET", "X*", "=y", "HOME=", "A=1=2", "A=3", `B=a\nb:c`}
	in.Container.Envs = []*runtimeapi.KeyValue{{Key: "B", Value: []byte("new\nline")}, {Key: "PATH", Value: []byte("/p")}}
	s, _, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=/p", "HOSTNAME=web-0", "HOME=/root", "A=3", "B=new\nline"}
	if diff := cmp.Diff(want, s.Process.Env); diff != "" {
		t.Error(diff)
	}
	in.Image.Env = []string{`HOME=/a:b\n`} // odd, but one line and one field for whoever quotes it
	if s, _, err = Container(in); err != nil || !slices.Contains(s.Process.Env, `HOME=/a:b\n`) {
		t.Error(err, s)
	}
}

func TestErrorIsBoundedAndQuoted(t *testing.T) {
	err := invalid("f", strings.Repeat("x\n", 5000), "must be short")
	if s := err.Error(); len(s) > 1200 || strings.Contains(s, "\n") {
		t.Errorf("error of %d bytes: %.80s", len(s), s)
	}
}

func TestCapabilities(t *testing.T) {
	all := knownCapabilities
	without := func(list []string, names ...string) []string {
		return slices.DeleteFunc(slices.Clone(list), func(c string) bool { return slices.Contains(names, c) })
	}
	var defaults []string
	for _, c := range all {
		if slices.Contains(defaultCapabilities, c) {
			defaults = append(defaults, c)
		}
	}
	for _, tc := range []struct {
		name               string
		add, drop, ambient []string
		want, wantAmbient  []string
	}{
		{name: "nothing asked", want: defaults},
		{name: "one added", add: []string{"net_admin"}, want: without(all, without(all, append(slices.Clone(defaults), "CAP_NET_ADMIN")...)...)},
		{name: "one dropped", drop: []string{"NET_RAW"}, want: without(defaults, "CAP_NET_RAW")},
		{name: "with the prefix", drop: []string{"CAP_NET_RAW"}, want: without(defaults, "CAP_NET_RAW")},
		{name: "all added", add: []string{"ALL"}, want: all},
		{name: "all added but one", add: []string{"all"}, drop: []string{"SYS_ADMIN"}, want: without(all, "CAP_SYS_ADMIN")},
		{name: "all dropped", drop: []string{"ALL"}, want: []string{}},
		{name: "all dropped but one", add: []string{"CHOWN"}, drop: []string{"ALL"}, want: []string{"CAP_CHOWN"}},
		{name: "added and dropped", add: []string{"SYS_TIME"}, drop: []string{"SYS_TIME"}, want: defaults},
		{name: "ambient only", drop: []string{"ALL"}, ambient: []string{"CHOWN"}, want: []string{"CAP_CHOWN"}, wantAmbient: []string{"CAP_CHOWN"}},
		{name: "ambient and dropped", drop: []string{"CHOWN"}, ambient: []string{"CHOWN"}, want: without(defaults, "CAP_CHOWN")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput()
			in.securityContext().Capabilities = &runtimeapi.Capability{AddCapabilities: tc.add, DropCapabilities: tc.drop, AddAmbientCapabilities: tc.ambient}
			s, notes, err := Container(in)
			if err != nil || len(notes) > 0 {
				t.Fatal(err, notes)
			}
			c := s.Process.Capabilities
			for set, got := range map[string][]string{"bounding": c.Bounding, "effective": c.Effective, "permitted": c.Permitted} {
				if !slices.Equal(got, tc.want) {
					t.Errorf("%s = %v, want %v", set, got, tc.want)
				}
			}
			for set, got := range map[string][]string{"ambient": c.Ambient, "inheritable": c.Inheritable} {
				if !slices.Equal(got, tc.wantAmbient) {
					t.Errorf("%s = %v, want %v", set, got, tc.wantAmbient)
				}
			}
		})
	}
}

func TestSeccompProfiles(t *testing.T) {
	for _, tc := range []struct {
		name    string
		profile *runtimeapi.SecurityProfile
		legacy  string
		filter  string // "", default or file
	}{
		{"none", nil, "", ""},
		{"unconfined", &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, "runtime/default", ""},
		{"default", &runtimeapi.SecurityProfile{}, "unconfined", "default"},
		{"file", localhost("/p.json"), "", "file"},
		{"legacy default", nil, "runtime/default", "default"},
		{"legacy docker default", nil, "docker/default", "default"},
		{"legacy unconfined", nil, "unconfined", ""},
		{"legacy file", nil, "localhost//p.json", "file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput()
			in.securityContext().Seccomp, in.securityContext().SeccompProfilePath = tc.profile, tc.legacy
			path, err := LocalhostSeccomp(in.Container)
			if err != nil {
				t.Fatal(err)
			}
			if (path == "/p.json") != (tc.filter == "file") {
				t.Errorf("LocalhostSeccomp = %q", path)
			}
			if path != "" {
				in.SeccompProfile = []byte(allowAll)
			}
			s, _, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			switch f := s.Linux.Seccomp; {
			case f == nil:
			case f.DefaultAction == specs.ActErrno && len(f.Syscalls) > 10:
				got = "default"
			default:
				got = "file"
			}
			if got != tc.filter {
				t.Errorf("filter %q, want %q", got, tc.filter)
			}
		})
	}
	t.Run("depends on capabilities", func(t *testing.T) {
		in := testInput()
		in.securityContext().Seccomp = &runtimeapi.SecurityProfile{}
		rules := func() (n int) {
			s, _, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			return len(s.Linux.Seccomp.Syscalls)
		}
		plain := rules()
		in.securityContext().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_BOOT"}}
		if rules() <= plain {
			t.Error("CAP_SYS_BOOT adds no rule")
		}
	})
	t.Run("unknown calls are noted", func(t *testing.T) {
		in := testInput()
		in.securityContext().Seccomp = localhost("/p.json")
		in.SeccompProfile = []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmodd"],"action":"SCMP_ACT_ERRNO"}]}`)
		_, notes, err := Container(in)
		if err != nil || len(notes) != 1 || !strings.Contains(notes[0].String(), "chmodd") {
			t.Error(err, notes)
		}
	})
	t.Run("privileged reads no file", func(t *testing.T) {
		in := testInput()
		in.securityContext().Seccomp, in.securityContext().Privileged = localhost("/p.json"), true
		if path, err := LocalhostSeccomp(in.Container); path != "" || err != nil {
			t.Errorf("LocalhostSeccomp = %q, %v", path, err)
		}
	})
}

func TestAppArmorProfiles(t *testing.T) {
	for _, tc := range []struct {
		name    string
		profile *runtimeapi.SecurityProfile
		legacy  string
		host    AppArmor
		want    string
		note    string
	}{
		{name: "none on a host without"},
		{name: "unconfined on a host without", profile: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}},
		{name: "legacy default on a host without", legacy: "runtime/default"},
		{name: "none", host: AppArmor{Enabled: true, Default: "d"}, want: "d"},
		{name: "default", profile: &runtimeapi.SecurityProfile{}, host: AppArmor{Enabled: true, Default: "d"}, want: "d"},
		{name: "unconfined", profile: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, host: AppArmor{Enabled: true, Default: "d"}},
		{name: "a loaded one", profile: localhost("x y"), host: AppArmor{Enabled: true, Loaded: []string{"x y"}}, want: "x y"},
		{name: "a loaded one by its prefix", profile: localhost("localhost/x"), host: AppArmor{Enabled: true, Loaded: []string{"x"}}, want: "x"},
		{name: "no default loaded", host: AppArmor{Enabled: true}, note: "not confined"},
		{name: "default on a host without", profile: &runtimeapi.SecurityProfile{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput()
			in.Host.AppArmor = tc.host
			in.securityContext().Apparmor, in.securityContext().ApparmorProfile = tc.profile, tc.legacy
			s, notes, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			if s.Process.ApparmorProfile != tc.want {
				t.Errorf("profile %q, want %q", s.Process.ApparmorProfile, tc.want)
			}
			if (len(notes) > 0) != (tc.note != "") || tc.note != "" && !strings.Contains(notes[0].String(), tc.note) {
				t.Errorf("notes %v, want %q", notes, tc.note)
			}
		})
	}
}

// Where no cgroup rules for devices can be had, no node may be made, and nothing is claimed to be limited.
func TestNoDeviceRules(t *testing.T) {
	in := testInput()
	in.Host.NoDeviceRules = true
	in.securityContext().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"MKNOD"}, AddAmbientCapabilities: []string{"MKNOD", "CHOWN"}}
	s, notes, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if c := s.Process.Capabilities; slices.Contains(c.Bounding, "CAP_MKNOD") || len(c.Ambient) != 1 || s.Linux.Resources.Devices != nil {
		t.Errorf("capabilities %+v, device rules %v", c, s.Linux.Resources.Devices)
	}
	if len(notes) != 1 || !strings.Contains(notes[0].Rule, "no rules for devices") {
		t.Errorf("notes %v", notes)
	}
	in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "r"}}
	in.Devices = map[string][]specs.LinuxDevice{"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}}
	_, _, err = Container(in)
	wantInvalid(t, err, "config.devices[0].permissions", "must be rwm")
}

func TestPIDNamespaces(t *testing.T) {
	const pod, target = "/proc/7/ns/pid", "/proc/8/ns/pid"
	const own, host = "own", "host"
	for _, tc := range []struct {
		podMode, mode runtimeapi.NamespaceMode
		want          string
		noted         int
	}{
		{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_CONTAINER, own, 0},
		{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD, own, 1},
		{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_NODE, own, 2},
		{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET, target, 0},
		{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_POD, pod, 0},
		{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_CONTAINER, own, 0},
		{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE, pod, 1},
		{runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE, host, 0},
		{runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD, host, 0},
		{runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, own, 0},
	} {
		t.Run(fmt.Sprintf("pod %s container %s", tc.podMode, tc.mode), func(t *testing.T) {
			in := testInput()
			in.TargetPIDNS = target
			if tc.podMode == runtimeapi.NamespaceMode_POD {
				in.Pod.PIDPath = pod
			}
			in.Pod.Config.Linux.SecurityContext.NamespaceOptions.Pid = tc.podMode
			in.securityContext().NamespaceOptions = &runtimeapi.NamespaceOption{Pid: tc.mode, TargetId: "x"}
			s, notes, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			got := host
			for _, n := range s.Linux.Namespaces {
				if n.Type == specs.PIDNamespace {
					got = n.Path
					if got == "" {
						got = own
					}
				}
			}
			if got != tc.want || len(notes) != tc.noted {
				t.Errorf("namespace %s with %d notes, want %s with %d", got, len(notes), tc.want, tc.noted)
			}
		})
	}
}

func TestMountsInOrder(t *testing.T) {
	destinations := func(mounts ...*runtimeapi.Mount) []string {
		in := testInput()
		in.Container.Mounts = mounts
		s, _, err := Container(in)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, m := range s.Mounts {
			out = append(out, m.Destination+" "+m.Source)
		}
		return out
	}
	pod := func(f string) string { return "/etc/" + f + " /state/pods/s/" + f }
	for _, tc := range []struct {
		name   string
		mounts []*runtimeapi.Mount
		want   []string
	}{
		{"a folder above the pod's files", []*runtimeapi.Mount{mount("/etc", "/e")}, []string{"/proc proc", "/dev tmpfs", "/dev/pts devpts",
			"/dev/mqueue mqueue", "/sys sysfs", "/sys/fs/cgroup cgroup", "/etc /e", "/dev/shm /state/pods/s/shm", pod("hosts"), pod("hostname"), pod("resolv.conf")}},
		{"/dev of the host", []*runtimeapi.Mount{mount("/dev/", "/dev")}, []string{"/proc proc", "/sys sysfs", "/sys/fs/cgroup cgroup", "/dev /dev",
			"/dev/shm /state/pods/s/shm", pod("hosts"), pod("hostname"), pod("resolv.conf")}},
		{"/sys, /proc and the pod's files of its own", []*runtimeapi.Mount{mount("/sys", "/sys"), mount("/proc", "/proc"), mount("/etc/hosts", "/h"),
			mount("/etc//hostname", "/n"), mount("/etc/resolv.conf", "/r"), mount("/dev/shm", "/s"), mount("/proc/cpuinfo", "/c")},
			[]string{"/dev tmpfs", "/dev/pts devpts", "/dev/mqueue mqueue", "/sys /sys", "/proc /proc", "/etc/hosts /h", "/etc/hostname /n",
				"/etc/resolv.conf /r", "/dev/shm /s", "/proc/cpuinfo /c"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, destinations(tc.mounts...)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPodWithoutFilesMountsNone(t *testing.T) {
	in := testInput()
	in.Pod.HostsPath, in.Pod.HostnamePath, in.Pod.ResolvPath, in.Pod.ShmPath = "", "", "", ""
	s, _, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "bind" }) {
		t.Errorf("mounts of nothing: %v", s.Mounts)
	}
}

func TestResources(t *testing.T) {
	v2 := Host{Cgroups: Cgroups{CgroupV2: true, SwapLimit: true}}
	for _, tc := range []struct {
		name string
		req  *runtimeapi.LinuxContainerResources
		host Host
		want string // JSON
	}{
		{"nothing", nil, v2, `{}`},
		{"memory limits swap too", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5}, v2, `{"memory":{"limit":5,"swap":5}}`},
		{"no swap limit on the host", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 9}, Host{}, `{"memory":{"limit":5}}`},
		{"swap", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 9}, v2, `{"memory":{"limit":5,"swap":9}}`},
		{"unlimited", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1, CpuQuota: -1}, v2, `{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1}}`},
		{"the host's pids limit", nil, Host{PidsLimit: 7}, `{"pids":{"limit":7}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Resources(tc.req, tc.host)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := json.Marshal(got.Spec)
			if string(b) != tc.want {
				t.Errorf("resources %s, want %s", b, tc.want)
			}
		})
	}
	if got, err := Resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 9}, Host{}); err != nil || len(got.Notes) != 1 || got.Notes[0].Value != "9" {
		t.Errorf("swap that cannot be limited: notes %v, %v", got.Notes, err)
	}
	_, err := Resources(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 9}, v2)
	wantInvalid(t, err, "config.linux.resources.memory_swap_limit_in_bytes", "without memory_limit_in_bytes")
	for field, req := range map[string]*runtimeapi.LinuxContainerResources{
		"cpu_period": {CpuPeriod: 999}, "cpu_quota": {CpuQuota: -2}, "cpu_shares": {CpuShares: -1}, "memory_limit_in_bytes": {MemoryLimitInBytes: -2},
		"memory_swap_limit_in_bytes": {MemoryLimitInBytes: 10, MemorySwapLimitInBytes: 9}, "oom_score_adj": {OomScoreAdj: -1001},
		"cpuset_cpus": {CpusetCpus: "0-"}, "cpuset_mems": {CpusetMems: "1\n2"}, "hugepage_limits.page_size": {HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "../2MB"}}},
		"unified": {Unified: map[string]string{"cgroup.procs": "1"}}, "unified.memory.max": {Unified: map[string]string{"memory.max": "1\n2"}},
	} {
		_, err := Resources(req, v2)
		wantInvalid(t, err, "config.linux.resources."+field, "must")
	}
	for _, bad := range []string{"2-1", "a", "1,,2", ",", "1-2-3", "999999", " 1"} {
		if isCPUList(bad) {
			t.Errorf("%q is a list of CPUs", bad)
		}
	}
	for _, key := range []string{"../memory.max", "memory/max", "cgroup.kill", "memory", "Memory.max", "memory.max\n"} {
		_, err := Resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{key: "1"}}, v2)
		wantInvalid(t, err, "config.linux.resources.unified", "controller's file")
	}
}

func TestMakeDirs(t *testing.T) {
	got, err := MakeDirs(Image{Volumes: []string{"/data", "data/", "/../../../../tmp/victim", "/a/../../b", "/", ".", "", "/proc", "/proc/x", "/sys", "/dev/shm", "/process"}})
	if want := []string{"/b", "/data", "/process", "/tmp/victim"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("MakeDirs = %v, %v, want %v", got, err, want)
	}
	for _, v := range []string{"/a\x00b", "/" + strings.Repeat("x", 5000)} {
		_, err := MakeDirs(Image{Volumes: []string{v}})
		wantInvalid(t, err, "image config Volumes", "NUL")
	}
}

func TestStopSignal(t *testing.T) {
	for _, tc := range []struct {
		request runtimeapi.Signal
		image   string
		want    unix.Signal
	}{
		{0, "", unix.SIGTERM}, {0, "SIGQUIT", unix.SIGQUIT}, {0, "int", unix.SIGINT}, {0, "9", unix.SIGKILL}, {0, "37", 37}, {0, "64", 64},
		{0, "SIGRTMIN+3", 37}, {0, "RTMIN", 34}, {0, "SIGRTMAX-14", 50}, {0, "SIGCLD", unix.SIGCHLD}, {0, "SIGIOT", unix.SIGABRT},
		{runtimeapi.Signal_SIGNAL_SIGUSR1, "SIGQUIT", unix.SIGUSR1}, {runtimeapi.Signal_SIGNAL_SIGRTMIN, "", 34},
		{runtimeapi.Signal_SIGNAL_SIGRTMINPLUS15, "", 49}, {runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS14, "", 50}, {runtimeapi.Signal_SIGNAL_SIGRTMAX, "", 64},
		{runtimeapi.Signal_SIGNAL_SIGPOLL, "", unix.SIGIO},
	} {
		got, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: tc.request}, Image{StopSignal: tc.image})
		if err != nil || got != tc.want {
			t.Errorf("StopSignal(%v, %q) = %v, %v, want %v", tc.request, tc.image, got, err, tc.want)
		}
	}
	for n, name := range runtimeapi.Signal_name { // the CRI has none that this host has not
		if _, err := StopSignal(&runtimeapi.ContainerConfig{StopSignal: runtimeapi.Signal(n)}, Image{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"0", "65", "-1", "+9", "TERM ", "SIGRTMIN+31", "SIGRTMIN-1", "SIGRTMAX+1", "SIGRTMIN+", "SIGRTMIN+-1", "99999999999999999999", "SIG", "\x00"} {
		_, err := StopSignal(&runtimeapi.ContainerConfig{}, Image{StopSignal: bad})
		wantInvalid(t, err, "image config StopSignal", "signal")
	}
}

func TestExecProcess(t *testing.T) {
	in := testInput()
	in.securityContext().RunAsUser = int64Value(1000)
	s, _, err := Container(in)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ExecProcess(s, Exec{Args: []string{"id", "-G"}, Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s.Process.User, p.User); diff != "" {
		t.Error(diff)
	}
	if !p.Terminal || s.Process.Terminal || !slices.Contains(p.Env, "TERM=xterm") || slices.Contains(s.Process.Env, "TERM=xterm") {
		t.Errorf("terminal %v, env %v", p.Terminal, p.Env)
	}
	p.Env[0], p.Capabilities.Bounding[0], p.User.AdditionalGids[0], *p.OOMScoreAdj = "x", "x", 9, 9
	again, _, _ := Container(in)
	if diff := cmp.Diff(again, s); diff != "" {
		t.Errorf("the process shares memory with the specification:\n%s", diff)
	}
	for _, args := range [][]string{nil, {""}, {"a\x00"}} {
		if _, err := ExecProcess(s, Exec{Args: args}); err == nil {
			t.Errorf("ExecProcess(%q) passes", args)
		}
	}
}

// Two containers of one image must not write into each other's specification (CVE-2021-21334).
func TestContainersOfOneImageShareNoMemory(t *testing.T) {
	img := testInput().Image
	img.Env = append(make([]string, 0, 64), img.Env...) // room for an append to write into
	img.Cmd = append(make([]string, 0, 64), img.Cmd...)
	img.Entrypoint = append(make([]string, 0, 64), img.Entrypoint...)
	host := testInput().Host
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			in := testInput()
			in.Image, in.Host = img, host
			mine := fmt.Sprint(i)
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "N", Value: []byte(mine)}, {Key: "LANG", Value: []byte(mine)}}
			if i%2 == 0 {
				in.Container.Args = []string{mine}
			}
			s, _, err := Container(in)
			if err != nil {
				t.Error(err)
				return
			}
			runtime.Gosched()
			s.Process.Args[0] += mine
			if !slices.Contains(s.Process.Env, "N="+mine) || !slices.Contains(s.Process.Env, "LANG="+mine) || s.Process.Args[0] != "/bin/server"+mine {
				t.Errorf("%s has %v %v", mine, s.Process.Args, s.Process.Env)
			}
		})
	}
	wg.Wait()
}

func BenchmarkContainer(b *testing.B) {
	in := testInput()
	in.securityContext().Seccomp = &runtimeapi.SecurityProfile{}
	for b.Loop() {
		if _, _, err := Container(in); err != nil {
			b.Fatal(err)
		}
	}
}
