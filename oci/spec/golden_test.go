package spec

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "write the golden files")

// testInput is a plain container on a host with everything.
func testInput() Input {
	return Input{
		Pod: Pod{
			Config: &runtimeapi.PodSandboxConfig{
				Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "5a1e"},
				Hostname: "web-0",
				Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
			},
			HostsPath: "/state/pods/s/hosts", ResolvPath: "/state/pods/s/resolv.conf", HostnamePath: "/state/pods/s/hostname",
			ShmPath: "/state/pods/s/shm",
		},
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "server"},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
		},
		Image: Image{
			Entrypoint: []string{"/bin/server"}, Cmd: []string{"--listen", ":80"}, Env: []string{"PATH=/usr/bin:/bin", "LANG=C"},
			Passwd: []byte("root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001:web:/home/web:/bin/sh\n"),
			Group:  []byte("root:x:0:\nwww:x:1001:\nlogs:x:50:web,root\n"),
		},
		Host: Host{
			Capabilities: knownCapabilities, RlimitHard: map[string]uint64{"RLIMIT_NOFILE": 1048576}, Cgroups: Cgroups{CgroupV2: true, SwapLimit: true},
			Hostname: "node", Arch: "amd64", Kernel: [2]uint64{6, 18}, Seccomp: true,
			Devices: []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11}, {Path: "/dev/sda", Type: "b", Major: 8}},
		},
		ContainerID: strings.Repeat("c", 64),
		CgroupPath:  "/berth/pod/c",
	}
}

func (in *Input) securityContext() *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

var goldens = []struct {
	name   string
	change func(*Input)
}{
	{"plain", func(*Input) {}},
	{"cgroup-v1", func(in *Input) { in.Host.CgroupV2 = false; in.Host.SwapLimit = false }},
	{"privileged", func(in *Input) {
		in.Pod.Config.Linux.SecurityContext.Privileged = true
		s := in.securityContext()
		s.Privileged = true
		s.MaskedPaths, s.ReadonlyPaths = []string{"/proc/acpi"}, []string{"/proc/sys"}
		s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}}
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "strict"}
		in.Host.AppArmor = AppArmor{Enabled: true, Default: "berth-default"}
	}},
	{"host-namespaces", func(in *Input) {
		o := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE}
		in.Pod.Config.Hostname = ""
		in.Pod.Config.Linux.SecurityContext.NamespaceOptions = o
		in.securityContext().NamespaceOptions = o
	}},
	{"shared-pid", func(in *Input) {
		in.Pod.PIDPath = "/proc/77/ns/pid"
		in.Pod.Config.Linux.SecurityContext.NamespaceOptions = nil
		in.securityContext().NamespaceOptions = nil
	}},
	{"request", func(in *Input) {
		c := in.Container
		c.Command, c.Args, c.WorkingDir, c.Tty = []string{"/bin/sh", "-c"}, []string{"exec top"}, "/srv/../data", true
		c.Envs = []*runtimeapi.KeyValue{{Key: "LANG", Value: []byte("de_DE")}, {Key: "TERM", Value: []byte("vt100")}, {Key: "EMPTY"}}
		c.Annotations = map[string]string{"run.oci.keep_original_groups": "1"}
		in.Pod.Config.Annotations = map[string]string{"org.systemd.property.ExecStart": "x", "io.kubernetes.cri-o.userns-mode": "auto"}
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/var/log/deep/app", HostPath: "/data/log", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
			{ContainerPath: "/data", HostPath: "/data/../x", Readonly: true},
			{ContainerPath: "/etc/hosts", HostPath: "/pods/hosts"},
			{ContainerPath: "/mnt/rro/", HostPath: "/mnt", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec", "nosuid"}},
			{ContainerPath: "/dev/termination-log", HostPath: "/pods/termination"},
			{ContainerPath: "/shared", HostPath: "/shared", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
			{ContainerPath: "/models", Image: &runtimeapi.ImageSpec{Image: "r/models:1", ImageRef: "sha256:a1"}, Readonly: true},
			{ContainerPath: "/srv/conf", Image: &runtimeapi.ImageSpec{Image: "r/conf", ImageRef: "sha256:b2"}, ImageSubPath: "etc//x/.", Readonly: true, MountOptions: []string{"noexec"}},
		}
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", Permissions: "rw"}, {HostPath: "/dev/snd", ContainerPath: "/dev/sound", Permissions: "mrw"}}
		in.Devices = map[string][]specs.LinuxDevice{
			"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
			"/dev/snd":  {{Path: "/dev/snd/seq", Type: "c", Major: 116, Minor: 1}, {Path: "/dev/snd/timer", Type: "c", Major: 116, Minor: 33}},
		}
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 985,
			CpusetCpus: "0-1,3", CpusetMems: "0", HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}},
			Unified: map[string]string{"memory.high": "60000000", "pids.max": "100"},
		}
		s := in.securityContext()
		s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}
		s.SupplementalGroups = []int64{3000}
		s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "cap_sys_time"}, DropCapabilities: []string{"MKNOD"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
		s.NoNewPrivs, s.ReadonlyRootfs = true, true
		s.MaskedPaths, s.ReadonlyPaths = []string{"/bin/ls"}, []string{"/tmp"}
		in.Host.AppArmor = AppArmor{Enabled: true, Default: "berth-default", Loaded: []string{"strict"}}
		s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "strict"}
		in.Host.SELinux.Enabled = true
		s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
	}},
	{"selinux", func(in *Input) { // the pod's own level, and a type of the container's
		in.Host.SELinux.Enabled = true
		in.Pod.Level = "s0:c17,c803"
		in.Pod.Config.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{User: "pod_u", Type: "pod_t"}
		in.securityContext().SelinuxOptions = &runtimeapi.SELinuxOption{Type: "web_t"}
	}},
	{"selinux-policy", func(in *Input) { // the pod's options, and a policy with labels of its own
		in.Host.SELinux = SELinux{Enabled: true, Process: "other_u:other_r:svirt_lxc_net_t:s0", File: "other_u:object_r:svirt_lxc_file_t:s0"}
		in.Pod.Config.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{User: "pod_u", Level: "s0:c5,c6"}
	}},
	{"device-policy", func(in *Input) { // of the operator: the user's devices, one for all, and none for being privileged
		in.Host.DevicePolicy = DevicePolicy{NoHostDevices: true, OwnedByUser: true, ForAll: []*runtimeapi.Device{{HostPath: "/dev/kvm", ContainerPath: "/dev/kvm", Permissions: "rw"}}}
		in.Pod.Config.Linux.SecurityContext.Privileged = true
		s := in.securityContext()
		s.Privileged = true
		s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}
		in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", Permissions: "rw"}}
		in.Devices = map[string][]specs.LinuxDevice{
			"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
			"/dev/kvm":  {{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}},
		}
	}},
	{"user-namespace", func(in *Input) {
		ids := []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}
		o := in.Pod.Config.Linux.SecurityContext.NamespaceOptions
		o.UsernsOptions = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}
		in.securityContext().NamespaceOptions = o
		in.Host.Capabilities = []string{"CAP_CHOWN"} // a user namespace has all
		in.securityContext().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_ADMIN"}}
		in.Container.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/mapped", HostPath: "/data/mapped", UidMappings: ids, GidMappings: ids},
			{ContainerPath: "/unmapped", HostPath: "/data/unmapped"},
		}
	}},
	{"user-namespace-host-network", func(in *Input) {
		ids := []*runtimeapi.IDMapping{{HostId: 131072, Length: 65536}}
		o := in.Pod.Config.Linux.SecurityContext.NamespaceOptions
		o.UsernsOptions, o.Network = &runtimeapi.UserNamespace{Uids: ids, Gids: ids}, runtimeapi.NamespaceMode_NODE
		in.securityContext().NamespaceOptions = o
		in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/image", Readonly: true, Image: &runtimeapi.ImageSpec{Image: "i", ImageRef: "sha256:i"},
			UidMappings: ids, GidMappings: ids}}
	}},
	{"weak-daemon", func(in *Input) {
		in.Host.Capabilities = strings.Fields(strings.ReplaceAll(strings.ReplaceAll(strings.Join(knownCapabilities, " "), "CAP_SYS_RESOURCE", ""), "CAP_AUDIT_WRITE", ""))
		in.Host.OOMScoreAdj = -100
		in.Host.RlimitHard = map[string]uint64{"RLIMIT_NOFILE": 20000, "RLIMIT_NPROC": 100}
		in.Host.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NPROC", Soft: 500, Hard: 1000}}
		in.Host.PidsLimit = 4096
		in.Host.Controllers = []string{"memory"}
		in.securityContext().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"SYS_RESOURCE"}}
		in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: -997, CpuShares: 2, MemoryLimitInBytes: 4 << 20,
			HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}}
	}},
}

// The golden files tell what each kind of container is. A change to one is a change to what berth promises.
func TestContainerGolden(t *testing.T) {
	for _, tc := range goldens {
		t.Run(tc.name, func(t *testing.T) {
			in := testInput()
			tc.change(&in)
			pod, container := proto.Clone(in.Pod.Config), proto.Clone(in.Container)
			s, notes, err := Container(in)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(pod, in.Pod.Config) || !proto.Equal(container, in.Container) {
				t.Error("Container changed its input")
			}
			var got bytes.Buffer
			e := json.NewEncoder(&got)
			e.SetIndent("", "\t")
			e.SetEscapeHTML(false)
			if err := e.Encode(struct {
				Notes []Note
				Spec  *specs.Spec
			}{notes, s}); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tc.name+".json")
			if *update {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("not as in %s (-want +got):\n%s", file, diff)
			}
			again, _, _ := Container(in)
			if diff := cmp.Diff(s, again); diff != "" {
				t.Errorf("a second run gives something else:\n%s", diff)
			}
		})
	}
}
