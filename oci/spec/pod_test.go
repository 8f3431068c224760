package spec

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func testPod() *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "kube-system", Uid: "8a3f-77"},
		Hostname: "web-0", LogDirectory: "/var/log/pods/kube-system_web-0_8a3f-77/",
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10", "fe80::1%eth0"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}, {ContainerPort: 443}},
		Labels:       map[string]string{"a": "b\n"}, Annotations: map[string]string{"../x": "y\x00"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/burstable/pod8a3f-77", Sysctls: map[string]string{"net.core.somaxconn": "512"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}}},
		},
	}
}

func TestValidatePod(t *testing.T) {
	if err := ValidatePod(testPod()); err != nil {
		t.Fatal(err)
	}
	const sc = "config.linux.security_context."
	mapping := func(container uint32) []*runtimeapi.IDMapping {
		return []*runtimeapi.IDMapping{{ContainerId: container, HostId: 1000, Length: 100}}
	}
	userns := func(u *runtimeapi.UserNamespace) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		}
	}
	for _, tc := range []struct {
		name, field, rule string
		change            func(*runtimeapi.PodSandboxConfig)
	}{
		{"no metadata", "config.metadata", "must be set", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }},
		{"no name", "config.metadata.name", "empty", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }},
		{"a uid that climbs", "config.metadata.uid", "path", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "../../.." }},
		{"a uid that is ..", "config.metadata.uid", "path", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = ".." }},
		{"a namespace with a line end", "config.metadata.namespace", "control", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "a\nb" }},
		{"a name with NUL", "config.metadata.name", "control", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\x00b" }},
		{"a name that is no UTF-8", "config.metadata.name", "UTF-8", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "a\xff" }},
		{"a hostname with a blank", "config.hostname", "letters", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a b" }},
		{"a hostname with a line end", "config.hostname", "letters", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "a\n" }},
		{"a hostname of 65 bytes", "config.hostname", "at most 64", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }},
		{"a log directory that climbs", "config.log_directory", "..", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var/log/../../etc" }},
		{"a relative log directory", "config.log_directory", "absolute", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }},
		{"a log directory with a line end", "config.log_directory", "control", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/a\nb" }},
		{"a cgroup that climbs", "config.linux.cgroup_parent", "..", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/../../x" }},
		{"a relative cgroup", "config.linux.cgroup_parent", "absolute", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "kubepods" }},
		{"the root cgroup", "config.linux.cgroup_parent", "below the root", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/" }},
		{"a cgroup with a final slash", "config.linux.cgroup_parent", "clean", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a/" }},
		{"runc's form of a slice", "config.linux.cgroup_parent", "absolute", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "a.slice:b:c" }},
		{"a control file", "config.linux.cgroup_parent", "control file", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods/cgroup.procs" }},
		{"tasks", "config.linux.cgroup_parent", "control file", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/tasks" }},
		{"below a control file", "config.linux.cgroup_parent", "control file", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/memory.max/x" }},
		{"a long cgroup", "config.linux.cgroup_parent", "255", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.CgroupParent = "/" + strings.Repeat("a", 256)
		}},
		{"a group without a user", sc + "run_as_group", "without", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.RunAsGroup = int64Value(1) }},
		{"a target", sc + "namespace_options.pid", "for a pod", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		}},
		{"a user namespace of two mappings", sc + "namespace_options.userns_options.uids", "one", userns(&runtimeapi.UserNamespace{Uids: append(mapping(0), mapping(0)...), Gids: mapping(0)})},
		{"a user namespace without groups", sc + "namespace_options.userns_options.gids", "one", userns(&runtimeapi.UserNamespace{Uids: mapping(0)})},
		{"a user namespace without mappings", sc + "namespace_options.userns_options.uids", "one", userns(&runtimeapi.UserNamespace{})},
		{"a user namespace without root", sc + "namespace_options.userns_options.uids[0].container_id", "0", userns(&runtimeapi.UserNamespace{Uids: mapping(1), Gids: mapping(0)})},
		{"a user namespace of the host's root", sc + "namespace_options.userns_options.gids[0].host_id", "the host's", userns(&runtimeapi.UserNamespace{Uids: mapping(0), Gids: []*runtimeapi.IDMapping{{Length: 1}}})},
		{"a user namespace of more users than groups", sc + "namespace_options.userns_options.gids[0].length", "uids, 1", userns(&runtimeapi.UserNamespace{Uids: mapping(0), Gids: []*runtimeapi.IDMapping{{HostId: 1, Length: 2}}})},
		{"a user namespace of nobody", sc + "namespace_options.userns_options.uids[0].length", "not be 0", userns(&runtimeapi.UserNamespace{Uids: []*runtimeapi.IDMapping{{HostId: 1}}, Gids: mapping(0)})},
		{"a user namespace beyond all IDs", sc + "namespace_options.userns_options.gids[0].length", "4294967295", userns(&runtimeapi.UserNamespace{Uids: mapping(0), Gids: []*runtimeapi.IDMapping{{HostId: 1 << 31, Length: 1 << 31}}})},
		{"mappings of the host's user namespace", sc + "namespace_options.userns_options.mode", "mappings", userns(&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE, Uids: mapping(0), Gids: mapping(0)})},
		{"a user namespace and the host's pids", sc + "namespace_options.pid", "user namespace", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_NODE,
				UsernsOptions: &runtimeapi.UserNamespace{Uids: mapping(0), Gids: mapping(0)}}
		}},
		{"a user namespace of the container", sc + "namespace_options.userns_options.mode", "POD or NODE", userns(&runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER})},
		{"a name server by name", "config.dns_config.servers", "IP address", func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Servers = []string{"dns"} }},
		{"a search with a line end", "config.dns_config.searches", "one word", func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a\nnameserver 1.2.3.4"} }},
		{"two options in one", "config.dns_config.options", "one word", func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Options = []string{"a b"} }},
		{"a port above all", "config.port_mappings[0].host_port", "65535", func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].HostPort = 65536 }},
		{"a host port to nowhere", "config.port_mappings[0].container_port", "1 to", func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].ContainerPort = 0 }},
		{"an unknown protocol", "config.port_mappings[0].protocol", "SCTP", func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].Protocol = 9 }},
		{"a host name for an address", "config.port_mappings[0].host_ip", "IP address", func(c *runtimeapi.PodSandboxConfig) { c.PortMappings[0].HostIp = "localhost" }},
		{"a negative limit", "config.linux.resources.cpu_shares", "0 to", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: -1}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := testPod()
			tc.change(c)
			wantInvalid(t, ValidatePod(c), tc.field, tc.rule)
		})
	}
}

func TestSysctls(t *testing.T) {
	node, pod := runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_POD
	for _, tc := range []struct {
		key, value string
		net, ipc   runtimeapi.NamespaceMode
		rule       string
	}{
		{"kernel.shm_rmid_forced", "1", node, pod, ""},
		{"fs.mqueue.msg_max", "100", node, pod, ""},
		{"net.ipv4.ping_group_range", "1 0", pod, node, ""},
		{"net.ipv4.ip_local_reserved_ports", "1-3,5", pod, pod, ""},
		{"net.ipv6.conf.all.stable_secret", "fd00::1", pod, pod, ""},
		{"net.ipv4.tcp_rmem", "4096\t131072\t6291456", pod, pod, ""},
		{"kernel.domainname", "example.org", pod, pod, ""},
		{"net.ipv4.ip_forward", "", pod, pod, ""},
		{"kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x", pod, pod, "one line"},
		{"net.ipv4.x", "1\nkernel.core_pattern", pod, pod, "one line"},
		{"net.ipv4.x", "1\x00", pod, pod, "one line"},
		{"net.ipv4.x", strings.Repeat("1", 5000), pod, pod, "one line"},
		{"net.ipv4.x=1\nkernel", "1", pod, pod, "name of parts"},
		{"net..ipv4", "1", pod, pod, "name of parts"},
		{"net/../kernel/core_pattern", "1", pod, pod, "name of parts"},
		{"net.ipv4.conf.eth0/1.rp_filter", "1", pod, pod, "name of parts"},
		{"net", "1", pod, pod, "name of parts"},
		{"net.ipv4.x\x00", "1", pod, pod, "name of parts"},
		{"", "1", pod, pod, "name of parts"},
		{"kernel.core_pattern", "1", pod, pod, "has for itself"},
		{"kernel.shm", "1", pod, pod, "has for itself"},
		{"kernel.hostname", "x", pod, pod, "has for itself"},
		{"vm.swappiness", "1", pod, pod, "has for itself"},
		{"network.x", "1", pod, pod, "has for itself"},
		{"net.core.somaxconn", "1", node, pod, "host's network"},
		{"kernel.domainname", "x", node, pod, "host's network"},
		{"kernel.shmmax", "1", pod, node, "host's ipc"},
		{"fs.mqueue.msg_max", "1", pod, node, "host's ipc"},
	} {
		c := testPod()
		c.Linux.Sysctls = map[string]string{tc.key: tc.value}
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: tc.net, Ipc: tc.ipc}
		got, err := Sysctls(c)
		if tc.rule == "" {
			var want [][2]string
			for _, s := range ownNetwork {
				if tc.net == pod && tc.key != s[0] {
					want = append(want, s)
				}
			}
			if diff := cmp.Diff(append(want, [2]string{tc.key, tc.value}), got); err != nil || diff != "" {
				t.Errorf("%q: %v %s", tc.key, err, diff)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), tc.rule) {
			t.Errorf("%q=%.40q on %s and %s: %v, want %q", tc.key, tc.value, tc.net, tc.ipc, err, tc.rule)
		}
		if ValidatePod(c) == nil {
			t.Errorf("ValidatePod takes %q", tc.key)
		}
	}
}

func TestLogPath(t *testing.T) {
	for _, tc := range []struct{ dir, path, want, rule string }{
		{"/var/log/pods/x/", "c/0.log", "/var/log/pods/x/c/0.log", ""},
		{"/var/log", "a..b/./c", "/var/log/a..b/c", ""},
		{"", "c/0.log", "", ""},
		{"/var/log", "", "", ""},
		{"/var/log", "../x", "", "below"},
		{"/var/log", "a/../../x", "", "below"},
		{"/var/log", "/etc/passwd", "", "below"},
		{"/var/log", "a/", "", "file"},
		{"/var/log", "./", "", "file"},
		{"/var/log", "a\nb", "", "control"},
		{"/var/log", "a\x00b", "", "control"},
		{"/var/log", "a\u202eb", "", "format"},
		{"/" + strings.Repeat("a", 3000), strings.Repeat("b", 3000), "", "at most"},
	} {
		got, err := LogPath(&runtimeapi.PodSandboxConfig{LogDirectory: tc.dir}, &runtimeapi.ContainerConfig{LogPath: tc.path})
		if tc.rule != "" {
			wantInvalid(t, err, "config.log_path", tc.rule)
		} else if err != nil || got != tc.want {
			t.Errorf("LogPath(%q, %q) = %q, %v", tc.dir, tc.path, got, err)
		}
	}
}

func TestCgroupParent(t *testing.T) {
	for _, p := range []string{"", "/kubepods/besteffort/pod1", "/a.slice/b", "/kubepods/pod_1.2", "kubepods-pod7.slice", "/kubepods.slice/kubepods-pod7.slice"} {
		got, err := CgroupParent(&runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: p}})
		if err != nil || got != p {
			t.Errorf("CgroupParent(%q) = %q, %v", p, got, err)
		}
	}
}
