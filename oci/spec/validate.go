package spec

import (
	"net/netip"
	"path"
	"regexp"
	"strings"
	"unicode"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ValidatePod checks all of a pod's configuration that can be checked without the host. The errors are *InvalidError.
func ValidatePod(cfg *runtimeapi.PodSandboxConfig) error {
	if cfg.GetMetadata() == nil {
		return invalid("config.metadata", "", "must be set")
	}
	for _, f := range []struct{ field, value string }{
		{"name", cfg.GetMetadata().GetName()}, {"namespace", cfg.GetMetadata().GetNamespace()}, {"uid", cfg.GetMetadata().GetUid()},
	} {
		if err := checkName("config.metadata."+f.field, f.value); err != nil {
			return err
		}
	}
	if err := checkHostname(cfg.GetHostname()); err != nil {
		return err
	}
	if _, err := logDirectory(cfg); err != nil {
		return err
	}
	if _, err := CgroupParent(cfg); err != nil {
		return err
	}
	if _, err := Sysctls(cfg); err != nil {
		return err
	}
	if err := checkDNS(cfg.GetDnsConfig()); err != nil {
		return err
	}
	for i, p := range cfg.GetPortMappings() {
		if err := checkPort("config.port_mappings["+itoa(i)+"].", p); err != nil {
			return err
		}
	}
	return checkPodSecurity(cfg.GetLinux())
}

func checkPodSecurity(linux *runtimeapi.LinuxPodSandboxConfig) error {
	s := linux.GetSecurityContext()
	if s.GetRunAsGroup() != nil && s.GetRunAsUser() == nil {
		return invalid(fieldSecurity+"run_as_group", i64toa(s.GetRunAsGroup().GetValue()), "must not be set without run_as_user")
	}
	if s.GetNamespaceOptions().GetPid() == runtimeapi.NamespaceMode_TARGET {
		return invalid(fieldSecurity+"namespace_options.pid", "TARGET", "must be POD, CONTAINER or NODE for a pod")
	}
	if err := checkNamespaces(fieldSecurity+"namespace_options.", s.GetNamespaceOptions()); err != nil {
		return err
	}
	if err := checkSELinux(fieldSecurity+"selinux_options.", s.GetSelinuxOptions()); err != nil {
		return err
	}
	for _, r := range []*runtimeapi.LinuxContainerResources{linux.GetOverhead(), linux.GetResources()} {
		if err := checkResources(r); err != nil {
			return err
		}
	}
	return nil
}

// ValidateContainer checks all of a container's configuration that can be checked without its pod, its image and the host.
// The errors are *InvalidError.
func ValidateContainer(cfg *runtimeapi.ContainerConfig) error {
	if cfg.GetMetadata() == nil {
		return invalid("config.metadata", "", "must be set")
	}
	if err := checkName("config.metadata.name", cfg.GetMetadata().GetName()); err != nil {
		return err
	}
	if err := checkLogPath(cfg.GetLogPath()); err != nil {
		return err
	}
	for i, v := range cfg.GetEnvs() {
		if err := checkVariable("config.envs["+itoa(i)+"]", v.GetKey(), string(v.GetValue())); err != nil {
			return err
		}
	}
	for i, m := range cfg.GetMounts() {
		if err := checkMount("config.mounts["+itoa(i)+"].", m); err != nil {
			return err
		}
	}
	for i, d := range cfg.GetDevices() {
		if err := checkDevice("config.devices["+itoa(i)+"].", d); err != nil {
			return err
		}
	}
	if _, err := StopSignal(cfg, Image{}); err != nil {
		return err
	}
	if err := checkResources(cfg.GetLinux().GetResources()); err != nil {
		return err
	}
	return checkSecurity(cfg.GetLinux().GetSecurityContext())
}

func checkSecurity(s *runtimeapi.LinuxContainerSecurityContext) error {
	if err := checkRunAs(s); err != nil {
		return err
	}
	if err := checkCapabilities(s.GetCapabilities()); err != nil {
		return err
	}
	if err := checkNamespaces(fieldSecurity+"namespace_options.", s.GetNamespaceOptions()); err != nil {
		return err
	}
	if _, err := seccompProfile(s); err != nil {
		return err
	}
	if _, err := appArmorProfile(s); err != nil {
		return err
	}
	for _, list := range []struct {
		field string
		paths []string
	}{{"masked_paths", s.GetMaskedPaths()}, {"readonly_paths", s.GetReadonlyPaths()}} {
		for _, p := range list.paths {
			if err := checkPath(fieldSecurity+list.field, p); err != nil {
				return err
			}
		}
	}
	return checkSELinux(fieldSecurity+"selinux_options.", s.GetSelinuxOptions())
}

var hostname = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9._]*[A-Za-z0-9])?$`)

// checkHostname takes what the kernel takes, and what /etc/hosts can carry.
func checkHostname(s string) error {
	const kernelLimit = 64 // __NEW_UTS_LEN
	if s != "" && (len(s) > kernelLimit || !hostname.MatchString(s)) {
		return invalid("config.hostname", s, "must be at most %d letters, digits, dots and hyphens", kernelLimit)
	}
	return nil
}

// logDirectory returns the pod's folder for logs, clean, or "".
func logDirectory(cfg *runtimeapi.PodSandboxConfig) (string, error) {
	const field = "config.log_directory"
	d := cfg.GetLogDirectory()
	if d == "" {
		return "", nil
	}
	if err := checkPath(field, d); err != nil {
		return "", err
	}
	if climbs(d) {
		return "", invalid(field, d, "must not contain ..")
	}
	return path.Clean(d), checkPrintable(field, d)
}

func checkLogPath(p string) error {
	const field = "config.log_path"
	switch {
	case p == "":
		return nil
	case len(p) > maxPath:
		return invalid(field, p, "must have at most %d bytes", maxPath)
	case p[0] == '/' || climbs(p):
		return invalid(field, p, "must be below the pod's log_directory")
	case path.Clean(p) == "." || strings.HasSuffix(p, "/"):
		return invalid(field, p, "must be a file")
	}
	return checkPrintable(field, p)
}

// LogPath returns where the container's output goes, clean and absolute, or "" when the request names no log.
func LogPath(pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (string, error) {
	dir, err := logDirectory(pod)
	if err != nil {
		return "", err
	}
	if err := checkLogPath(cfg.GetLogPath()); err != nil {
		return "", err
	}
	if dir == "" || cfg.GetLogPath() == "" {
		return "", nil
	}
	full := path.Join(dir, cfg.GetLogPath())
	if len(full) > maxPath {
		return "", invalid("config.log_path", cfg.GetLogPath(), "must have at most %d bytes with log_directory", maxPath)
	}
	return full, nil
}

// controlFile is how the kernel names files in a cgroup; a folder of that name cannot be made, or would be taken for one.
var controlFile = regexp.MustCompile(`^(cgroup|cpu|cpuacct|cpuset|memory|io|blkio|pids|hugetlb|rdma|misc|devices|freezer|net_cls|net_prio|perf_event)\..|^(tasks|notify_on_release|release_agent)$`)

// CgroupParent returns the cgroup below which the pod's are made, absolute and clean, or a systemd slice, which may be a bare name; "" when the request names
// none. Which of the two it must be, and the rules for a slice's name, are the cgroup driver's.
func CgroupParent(cfg *runtimeapi.PodSandboxConfig) (string, error) {
	p := cfg.GetLinux().GetCgroupParent()
	if p == "" {
		return "", nil
	}
	if !strings.Contains(p, "/") && strings.HasSuffix(p, ".slice") {
		return p, checkCgroupPath(fieldPod+"cgroup_parent", "/"+p)
	}
	return p, checkCgroupPath(fieldPod+"cgroup_parent", p)
}

// checkCgroupPath checks a path below a hierarchy's root.
func checkCgroupPath(field, p string) error {
	if err := checkPath(field, p); err != nil {
		return err
	}
	if p == "/" || path.Clean(p) != p {
		return invalid(field, p, "must be clean, below the root and without ..")
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		if len(part) > 255 {
			return invalid(field, p, "must have parts of at most 255 bytes")
		}
		if controlFile.MatchString(part) {
			return invalid(field, p, "must not name a control file")
		}
	}
	return checkPrintable(field, p)
}

// checkDNS takes what fits into the lines of resolv.conf(5).
func checkDNS(d *runtimeapi.DNSConfig) error {
	for _, l := range []struct {
		field  string
		values []string
	}{{"servers", d.GetServers()}, {"searches", d.GetSearches()}, {"options", d.GetOptions()}} {
		for _, v := range l.values {
			field := "config.dns_config." + l.field
			if v == "" || len(v) > 1024 || strings.ContainsFunc(v, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
				return invalid(field, v, "must be one word")
			}
			if _, err := netip.ParseAddr(v); err != nil && l.field == "servers" {
				return invalid(field, v, "must be an IP address")
			}
		}
	}
	return nil
}

func checkPort(field string, p *runtimeapi.PortMapping) error {
	switch {
	case runtimeapi.Protocol_name[int32(p.GetProtocol())] == "":
		return invalid(field+"protocol", itoa(int(p.GetProtocol())), "must be TCP, UDP or SCTP")
	case p.GetHostPort() < 0 || p.GetHostPort() > 65535:
		return invalid(field+"host_port", itoa(int(p.GetHostPort())), "must be 0 to 65535")
	case p.GetContainerPort() < 0 || p.GetContainerPort() > 65535 || p.GetContainerPort() == 0 && p.GetHostPort() > 0:
		return invalid(field+"container_port", itoa(int(p.GetContainerPort())), "must be 1 to 65535")
	}
	if ip := p.GetHostIp(); ip != "" {
		if a, err := netip.ParseAddr(ip); err != nil || a.Zone() != "" {
			return invalid(field+"host_ip", ip, "must be an IP address")
		}
	}
	return nil
}
