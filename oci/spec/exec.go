package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Exec is a command that is run beside a container's first process.
type Exec struct {
	Args     []string
	Terminal bool
}

// ExecProcess returns the process for a command in the container that s specifies: same user, capabilities, folder,
// environment and limits, as the CRI has no others to ask for. The error is *InvalidError.
func ExecProcess(s *specs.Spec, e Exec) (*specs.Process, error) {
	if err := checkArgs("cmd", e.Args); err != nil {
		return nil, err
	}
	p := *s.Process
	p.Args = slices.Clone(e.Args)
	p.Terminal = e.Terminal
	p.ConsoleSize = nil
	p.Env = slices.Clone(p.Env)
	if e.Terminal && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	p.User.AdditionalGids = slices.Clone(p.User.AdditionalGids)
	p.Rlimits = slices.Clone(p.Rlimits)
	p.OOMScoreAdj = clone(p.OOMScoreAdj)
	if c := p.Capabilities; c != nil {
		p.Capabilities = &specs.LinuxCapabilities{
			Bounding: slices.Clone(c.Bounding), Effective: slices.Clone(c.Effective), Permitted: slices.Clone(c.Permitted),
			Inheritable: slices.Clone(c.Inheritable), Ambient: slices.Clone(c.Ambient),
		}
	}
	return &p, nil
}
