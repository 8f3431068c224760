package spec

import (
	"errors"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/seccomp"
)

const fieldSecurity = "config.linux.security_context."

// profile is a seccomp or AppArmor profile that a request asks for.
type profile struct {
	field string
	kind  runtimeapi.SecurityProfile_ProfileType
	name  string // of a Localhost profile: a path, or a name
	asked bool   // the request says so
}

// parseProfile reads a profile, or its deprecated form as one string where there is none.
func parseProfile(field string, p *runtimeapi.SecurityProfile, legacyField, legacy string) (profile, error) {
	if p == nil {
		return parseLegacyProfile(legacyField, legacy)
	}
	out := profile{field: field + ".localhost_ref", kind: p.GetProfileType(), name: strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"), asked: true}
	switch {
	case runtimeapi.SecurityProfile_ProfileType_name[int32(out.kind)] == "":
		return profile{}, invalid(field+".profile_type", itoa(int(out.kind)), "is not a profile type of the CRI")
	case out.kind == runtimeapi.SecurityProfile_Localhost && out.name == "":
		return profile{}, invalid(out.field, "", "must not be empty with type Localhost")
	case out.kind != runtimeapi.SecurityProfile_Localhost && out.name != "":
		return profile{}, invalid(out.field, out.name, "must be empty with type %s", out.kind)
	}
	return out, nil
}

func parseLegacyProfile(field, s string) (profile, error) {
	out := profile{field: field, asked: s != ""}
	name, local := strings.CutPrefix(s, "localhost/")
	switch {
	case s == "" || s == "unconfined":
		out.kind = runtimeapi.SecurityProfile_Unconfined
	case s == "runtime/default" || s == "docker/default":
		out.kind = runtimeapi.SecurityProfile_RuntimeDefault
	case local && name != "":
		out.kind, out.name = runtimeapi.SecurityProfile_Localhost, name
	default:
		return profile{}, invalid(field, s, "must be runtime/default, unconfined or localhost/ with a profile")
	}
	return out, nil
}

func seccompProfile(s *runtimeapi.LinuxContainerSecurityContext) (profile, error) {
	p, err := parseProfile(fieldSecurity+"seccomp", s.GetSeccomp(), fieldSecurity+"seccomp_profile_path", s.GetSeccompProfilePath()) //nolint:staticcheck // kubelets before 1.23
	if err != nil || p.kind != runtimeapi.SecurityProfile_Localhost {
		return p, err
	}
	if err := checkPath(p.field, p.name); err != nil {
		return p, err
	}
	if climbs(p.name) {
		return p, invalid(p.field, p.name, "must not contain ..")
	}
	return p, nil
}

// LocalhostSeccomp returns the path of the profile that the caller must read into Input.SeccompProfile, or "".
func LocalhostSeccomp(cfg *runtimeapi.ContainerConfig) (string, error) {
	s := cfg.GetLinux().GetSecurityContext()
	p, err := seccompProfile(s)
	if err != nil || s.GetPrivileged() || p.kind != runtimeapi.SecurityProfile_Localhost {
		return "", err
	}
	return p.name, nil
}

// seccomp sets the filter of system calls. A container that names none has none, as with containerd: the kubelet's
// seccompDefault decides that. A filter that was asked for and cannot be had is an error (CVE-2023-2431).
func (b *builder) seccomp() error {
	p, err := seccompProfile(b.security)
	if err != nil || b.privileged || p.kind == runtimeapi.SecurityProfile_Unconfined {
		return err
	}
	if !b.in.Host.Seccomp {
		return invalid(p.field, p.kind.String(), "is not supported: this kernel does not filter system calls")
	}
	target := seccomp.Target{Capabilities: b.spec.Process.Capabilities.Bounding, Arch: b.in.Host.Arch, Kernel: b.in.Host.Kernel}
	if p.kind == runtimeapi.SecurityProfile_RuntimeDefault {
		b.spec.Linux.Seccomp = seccomp.Default(target)
		return nil
	}
	filter, err := seccomp.Load(b.in.SeccompProfile, target)
	if bad := (*seccomp.ProfileError)(nil); errors.As(err, &bad) {
		return invalid(p.field, p.name, "%v", bad)
	} else if err != nil {
		return err
	}
	if unknown := seccomp.UnknownSyscalls(filter); len(unknown) > 0 {
		b.note(p.field, p.name, "names system calls that do not exist here: "+strings.Join(unknown[:min(len(unknown), 10)], " "))
	}
	b.spec.Linux.Seccomp = filter
	return nil
}

func appArmorProfile(s *runtimeapi.LinuxContainerSecurityContext) (profile, error) {
	legacy := s.GetApparmorProfile() //nolint:staticcheck // kubelets before 1.30
	if legacy == "runtime/default" {
		legacy = "" // the CRI makes no difference
	}
	p, err := parseProfile(fieldSecurity+"apparmor", s.GetApparmor(), fieldSecurity+"apparmor_profile", legacy)
	if err != nil {
		return p, err
	}
	if !p.asked {
		p.kind = runtimeapi.SecurityProfile_RuntimeDefault
	}
	return p, checkPrintable(p.field, p.name)
}

// DefaultAppArmor tells whether the container is to have the host's default AppArmor profile, if there is one.
func DefaultAppArmor(cfg *runtimeapi.ContainerConfig) bool {
	s := cfg.GetLinux().GetSecurityContext()
	p, err := appArmorProfile(s)
	return err == nil && !s.GetPrivileged() && p.kind == runtimeapi.SecurityProfile_RuntimeDefault
}

// appArmor sets the profile that the program is executed under. Privileged containers have none. The default one is for hosts
// that have AppArmor; a profile that is asked for by its name, and cannot be had, is an error (CVE-2023-2431).
func (b *builder) appArmor() error {
	p, err := appArmorProfile(b.security)
	if err != nil || b.privileged || p.kind == runtimeapi.SecurityProfile_Unconfined {
		return err
	}
	host := b.in.Host.AppArmor
	name := p.name
	if p.kind == runtimeapi.SecurityProfile_RuntimeDefault {
		name = host.Default
	}
	switch {
	case !host.Enabled && p.kind == runtimeapi.SecurityProfile_RuntimeDefault:
		return nil
	case !host.Enabled:
		return invalid(p.field, name, "is not supported: AppArmor is not enabled on this host")
	case p.kind == runtimeapi.SecurityProfile_Localhost && !slices.Contains(host.Loaded, name):
		return invalid(p.field, name, "is not a loaded AppArmor profile")
	case name == "" && p.asked:
		return invalid(p.field, p.kind.String(), "is not supported: %s", host.Missing)
	case name == "":
		b.note(p.field, p.kind.String(), "the container is not confined: "+host.Missing)
	}
	b.spec.Process.ApparmorProfile = name
	return nil
}
