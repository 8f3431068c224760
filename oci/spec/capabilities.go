package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// knownCapabilities are in the kernel's order: the index is the number (include/uapi/linux/capability.h).
var knownCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
	"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
	"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are what a container gets that asks for nothing: containerd's fourteen.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// CapabilityNames returns the names of the bits in a mask such as CapEff of /proc/self/status.
func CapabilityNames(mask uint64) []string {
	var out []string
	for i, name := range knownCapabilities {
		if mask&(1<<i) != 0 {
			out = append(out, name)
		}
	}
	return out
}

// parseCapability takes a name with or without CAP_, in any case.
func parseCapability(s string) (string, bool) {
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "CAP_") {
		name = "CAP_" + name
	}
	return name, slices.Contains(knownCapabilities, name)
}

func isAll(s string) bool { return strings.EqualFold(s, "ALL") }

// capabilities applies ALL first, then what is added, then what is dropped. The inheritable set stays empty unless ambient
// capabilities are asked for, which need it: files in the image must not gain what the container has (CVE-2022-24769).
func (b *builder) capabilities() error {
	if b.privileged {
		all := b.inOrder(b.grantable())
		b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: slices.Clone(all), Permitted: slices.Clone(all)}
		return nil
	}
	c := b.security.GetCapabilities()
	want := slices.Clone(defaultCapabilities)
	if slices.ContainsFunc(c.GetAddCapabilities(), isAll) {
		want = slices.Clone(b.grantable())
	}
	if slices.ContainsFunc(c.GetDropCapabilities(), isAll) {
		want = nil
	}
	add := func(names []string) (added []string) {
		for _, s := range names {
			if name, ok := parseCapability(s); ok && !isAll(s) {
				want = append(want, name)
				added = append(added, name)
			}
		}
		return added
	}
	add(c.GetAddCapabilities())
	ambient := add(c.GetAddAmbientCapabilities())
	if slices.ContainsFunc(c.GetAddAmbientCapabilities(), isAll) {
		ambient = slices.Clone(b.grantable())
		want = append(want, ambient...)
	}
	dropped := func(name string) bool {
		return slices.ContainsFunc(c.GetDropCapabilities(), func(s string) bool { n, _ := parseCapability(s); return n == name })
	}
	want = slices.DeleteFunc(want, dropped)
	const mknod = "CAP_MKNOD"
	if b.in.Host.NoDeviceRules {
		if slices.ContainsFunc(c.GetAddCapabilities(), func(s string) bool { n, _ := parseCapability(s); return n == mknod }) {
			b.note(fieldSecurity+"capabilities", mknod, "withheld: this host has no rules for devices")
		}
		want = slices.DeleteFunc(want, func(name string) bool { return name == mknod })
		ambient = slices.DeleteFunc(ambient, func(name string) bool { return name == mknod })
	}
	ambient = slices.DeleteFunc(ambient, dropped)
	grantable := func(name string) bool { return slices.Contains(b.grantable(), name) }
	withheld := slices.DeleteFunc(b.inOrder(want), grantable)
	if len(withheld) > 0 {
		b.note(fieldSecurity+"capabilities", strings.Join(withheld, " "), "withheld: the daemon does not hold them")
	}
	lacks := func(name string) bool { return !grantable(name) }
	granted := slices.DeleteFunc(b.inOrder(want), lacks)
	ambient = slices.DeleteFunc(b.inOrder(ambient), lacks)
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: granted, Effective: slices.Clone(granted), Permitted: slices.Clone(granted),
		Inheritable: ambient, Ambient: slices.Clone(ambient),
	}
	return nil
}

// inOrder returns the capabilities once each, in the kernel's order.
func (b *builder) inOrder(names []string) []string {
	out := make([]string, 0, len(names))
	for _, k := range knownCapabilities {
		if slices.Contains(names, k) {
			out = append(out, k)
		}
	}
	return out
}

func checkCapabilities(c *runtimeapi.Capability) error {
	for _, l := range []struct {
		field string
		names []string
	}{
		{"add_capabilities", c.GetAddCapabilities()}, {"drop_capabilities", c.GetDropCapabilities()},
		{"add_ambient_capabilities", c.GetAddAmbientCapabilities()},
	} {
		for _, name := range l.names {
			if _, ok := parseCapability(name); !ok && !isAll(name) {
				return invalid(fieldSecurity+"capabilities."+l.field, name, "is not a capability of Linux")
			}
		}
	}
	return nil
}
