package runtime

import (
	"fmt"
	"path"
	"reflect"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berthd/berth/oci/runtime/engine"
)

// Check tells what the engine lacks of what a specification asks for by fields that no request leads to, but devices and plugins of the node.
func Check(s *specs.Spec) error {
	p, l := s.Process, s.Linux
	for _, f := range []struct {
		field string
		there bool
	}{
		{"domainname", s.Domainname != ""},
		{"process.execCPUAffinity", p.ExecCPUAffinity != nil},
		{"linux.netDevices", len(l.NetDevices) > 0},
		{"linux.personality", l.Personality != nil},
		{"linux.timeOffsets", len(l.TimeOffsets) > 0},
		{"linux.memoryPolicy", l.MemoryPolicy != nil},
		{"linux.intelRdt with more than closID", l.IntelRdt != nil && !onlyClass(l.IntelRdt)},
		{"hooks.createContainer in a pod with a user namespace", s.Hooks != nil && len(s.Hooks.CreateContainer) > 0 && len(l.UIDMappings) > 0},
	} {
		if f.there {
			return &UnsupportedError{Field: f.field}
		}
	}
	if _, err := compileScheduling(p); err != nil {
		return err
	}
	return compileNamespaces(&engine.Plan{}, l)
}

// CheckHooks tells what is wrong with hooks, whoever made them (runtime-spec config.md#posix-platform-hooks). A path that is not absolute would lead
// to programs of the container, whose root is below the folder that hooks are executed in.
func CheckHooks(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	for _, stage := range []struct {
		name  string
		hooks []specs.Hook
	}{
		{"prestart", h.Prestart}, //nolint:staticcheck // deprecated, and in use
		{"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer}, {"startContainer", h.StartContainer},
		{"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for _, hook := range stage.hooks {
			if !path.IsAbs(hook.Path) {
				return fmt.Errorf("hooks.%s: the path %q is not absolute", stage.name, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("hooks.%s: the timeout of %s, %d, is not above 0", stage.name, hook.Path, *hook.Timeout)
			}
		}
	}
	return nil
}

// onlyClass tells whether r names a class of service, and asks for nothing else.
func onlyClass(r *specs.LinuxIntelRdt) bool {
	return r.ClosID != "" && reflect.DeepEqual(*r, specs.LinuxIntelRdt{ClosID: r.ClosID})
}

// mapOwners gives a mount that is to be mapped, and has no mappings of its own, those of the container's user namespace (runtime-spec
// config.md#linux-mount-options, idmap).
func mapOwners(m specs.Mount, l *specs.Linux) specs.Mount {
	own := slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "idmap" || o == "ridmap" })
	if len(own) < len(m.Options) {
		m.Options = own
		if len(m.UIDMappings) == 0 {
			m.UIDMappings, m.GIDMappings = l.UIDMappings, l.GIDMappings
		}
	}
	return m
}
