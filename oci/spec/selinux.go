package spec

import (
	"cmp"
	"regexp"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A SELinux label's parts.
var (
	seLinuxPart  = regexp.MustCompile(`^[A-Za-z0-9_]{1,64}$`)
	seLinuxLevel = regexp.MustCompile(`^s[0-9]+([-:.,cs0-9]*)$`)
)

// The labels of containers in the policies that have any.
const (
	seLinuxProcess = "system_u:system_r:container_t:s0"
	seLinuxFile    = "system_u:object_r:container_file_t:s0"
)

// seLinux sets the labels of the process and of files: the container's options, else the pod's, and where they leave something out the policy's.
// Privileged containers have none, and where SELinux is off the options mean nothing.
func (b *builder) seLinux() error {
	o := b.security.GetSelinuxOptions()
	if o == nil {
		o = b.in.Pod.Config.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	if err := checkSELinux(fieldSecurity+"selinux_options.", o); err != nil {
		return err
	}
	if !b.in.Host.SELinux.Enabled || b.privileged {
		return nil
	}
	level := cmp.Or(o.GetLevel(), b.in.Pod.Config.GetLinux().GetSecurityContext().GetSelinuxOptions().GetLevel(), b.in.Pod.Level)
	b.spec.Process.SelinuxLabel = label(cmp.Or(b.in.Host.SELinux.Process, seLinuxProcess), o.GetUser(), o.GetRole(), o.GetType(), level)
	b.spec.Linux.MountLabel = label(cmp.Or(b.in.Host.SELinux.File, seLinuxFile), o.GetUser(), "", "", level)
	return nil
}

// label is a policy's label with what is not empty in the place of its parts.
func label(policy string, parts ...string) string {
	have := strings.SplitN(policy, ":", 4)
	for len(have) < 4 {
		have = append(have, "s0")
	}
	for i, p := range parts {
		if p != "" {
			have[i] = p
		}
	}
	return strings.Join(have, ":")
}

// PodMountLabel is the label of the files that the containers of a pod share; empty when they have none.
func PodMountLabel(p Pod, h SELinux) string {
	s := p.Config.GetLinux().GetSecurityContext()
	if !h.Enabled || s.GetPrivileged() {
		return ""
	}
	o := s.GetSelinuxOptions()
	return label(cmp.Or(h.File, seLinuxFile), o.GetUser(), "", "", cmp.Or(o.GetLevel(), p.Level))
}

// NeedsLevel tells whether a pod's containers are to have a SELinux level that no other pod has.
func NeedsLevel(config *runtimeapi.PodSandboxConfig, h SELinux) bool {
	return h.Enabled && config.GetLinux().GetSecurityContext().GetSelinuxOptions().GetLevel() == ""
}

// Relabels are the paths of the host that get the container's mount label before they are mounted: those of volumes whose request says so. The
// kubelet leaves that out where it has mounted a volume with the label already.
func Relabels(cfg *runtimeapi.ContainerConfig, s *specs.Spec) []string {
	if s.Linux.MountLabel == "" {
		return nil
	}
	var paths []string
	for _, m := range cfg.GetMounts() {
		if m.GetSelinuxRelabel() && m.GetImage().GetImage() == "" {
			paths = append(paths, m.GetHostPath())
		}
	}
	return paths
}

func checkSELinux(field string, o *runtimeapi.SELinuxOption) error {
	for _, p := range []struct{ field, value string }{{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}} {
		if p.value != "" && !seLinuxPart.MatchString(p.value) {
			return invalid(field+p.field, p.value, "must be letters, digits and underscores")
		}
	}
	if l := o.GetLevel(); l != "" && !seLinuxLevel.MatchString(l) {
		return invalid(field+"level", l, "must be a level such as s0:c1,c2")
	}
	return nil
}
