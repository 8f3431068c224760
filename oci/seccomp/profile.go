package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	moby "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// MaxProfileSize is the largest profile in bytes that Load takes.
const MaxProfileSize = 1 << 20

// ProfileError tells what is wrong with a profile.
type ProfileError struct {
	Field string // as in the JSON, such as syscalls[3].action
	Value string // may be empty
	Rule  string
}

func (e *ProfileError) Error() string {
	if e.Value == "" {
		return fmt.Sprintf("seccomp profile: %s %s", e.Field, e.Rule)
	}
	return fmt.Sprintf("seccomp profile: %s %.100q %s", e.Field, e.Value, e.Rule)
}

// Target is what rules may depend on.
type Target struct {
	// Capabilities is the container's bounding set, as CAP_ names.
	Capabilities []string
	// Arch is the host's, as in GOARCH.
	Arch string
	// Kernel is the host's version: major and minor.
	Kernel [2]uint64
}

// ParseKernel reads the major and minor number of uname(2)'s release, such as 6.18.44-generic.
func ParseKernel(release string) ([2]uint64, error) {
	major, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	m, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return [2]uint64{}, fmt.Errorf("parse kernel release %q: %w", release, err)
	}
	n, err := strconv.ParseUint(rest[:end], 10, 32)
	if err != nil {
		return [2]uint64{}, fmt.Errorf("parse kernel release %q: %w", release, err)
	}
	return [2]uint64{m, n}, nil
}

// Default returns the runtime's own profile: moby's, which containerd and CRI-O share, with one change. Moby's rules for
// socket(2) compare 64 bits, but the kernel reads 32, so that socket(1<<32|AF_ALG) passes them; here the high half
// does not count.
func Default(t Target) *specs.LinuxSeccomp {
	p := moby.DefaultProfile()
	p.Syscalls = slices.DeleteFunc(p.Syscalls, func(s *moby.Syscall) bool { return slices.Equal(s.Names, []string{"socket"}) })
	for _, r := range socketFamilies() {
		p.Syscalls = append(p.Syscalls, &moby.Syscall{LinuxSyscall: specs.LinuxSyscall{
			Names:  []string{"socket"},
			Action: specs.ActAllow,
			Args:   []specs.LinuxSeccompArg{r},
		}})
	}
	return expand(p, t)
}

// socketFamilies are conditions that together hold for the families below 64, the next power of two above AF_MAX,
// but for AF_ALG and AF_VSOCK: both reach the host's kernel or hypervisor past all namespaces (CVE-2026-31431).
func socketFamilies() []specs.LinuxSeccompArg {
	const end = 64
	var out []specs.LinuxSeccompArg
	for first := uint64(0); first < end; {
		size := uint64(1) // of the largest aligned block at first without a refused family
		for first%(2*size) == 0 && first+2*size <= end && !within(first, 2*size, unix.AF_ALG) && !within(first, 2*size, unix.AF_VSOCK) {
			size *= 2
		}
		if first != unix.AF_ALG && first != unix.AF_VSOCK {
			out = append(out, specs.LinuxSeccompArg{Index: 0, Op: specs.OpMaskedEqual, Value: 0xffffffff &^ (size - 1), ValueTwo: first})
		}
		first += size
	}
	return out
}

func within(first, size, n uint64) bool { return n >= first && n < first+size }

// Load reads a profile in JSON: that of the runtime specification, or Docker's, whose rules may depend on t. It returns a
// *ProfileError for whatever the runtime could not enforce: a profile is applied whole or not at all.
func Load(b []byte, t Target) (*specs.LinuxSeccomp, error) {
	if len(b) > MaxProfileSize {
		return nil, &ProfileError{Field: "size", Value: strconv.Itoa(len(b)), Rule: fmt.Sprintf("must be at most %d bytes", MaxProfileSize)}
	}
	var p moby.Seccomp
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&p); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, &ProfileError{Field: "JSON", Rule: "must not be empty"}
		}
		return nil, &ProfileError{Field: "JSON", Rule: "is invalid: " + err.Error()}
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, &ProfileError{Field: "JSON", Rule: "must be one object with nothing after it"}
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, &ProfileError{Field: "archMap", Rule: "must not stand beside architectures"}
	}
	for i, s := range p.Syscalls {
		if s == nil {
			return nil, &ProfileError{Field: fmt.Sprintf("syscalls[%d]", i), Rule: "must not be null"}
		}
		if s.Name != "" && len(s.Names) > 0 {
			return nil, &ProfileError{Field: fmt.Sprintf("syscalls[%d].name", i), Value: s.Name, Rule: "must not stand beside names"}
		}
	}
	all := p.LinuxSeccomp
	for _, a := range p.ArchMap {
		all.Architectures = append(append(all.Architectures, a.Arch), a.SubArches...)
	}
	for _, s := range p.Syscalls { // conditional rules are checked even where they do not apply
		all.Syscalls = append(all.Syscalls, oci(s))
	}
	if err := validate(&all); err != nil {
		return nil, err
	}
	return expand(&p, t), nil
}

func oci(s *moby.Syscall) specs.LinuxSyscall {
	rule := s.LinuxSyscall
	if s.Name != "" {
		rule.Names = []string{s.Name}
	}
	return rule
}

// archNames are Docker's names for architectures, where they are not Go's.
var archNames = map[string]string{"386": "x86", "loong64": "loongarch64"}

// expand picks the rules that apply to t.
func expand(p *moby.Seccomp, t Target) *specs.LinuxSeccomp {
	out := p.LinuxSeccomp
	name := t.Arch
	if n, ok := archNames[name]; ok {
		name = n
	}
	if native := nativeArch(t.Arch); native >= 0 {
		for _, a := range p.ArchMap {
			if a.Arch == arches[native].name {
				out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
				break
			}
		}
	}
	holds := func(c string) bool { return slices.Contains(t.Capabilities, c) }
	newer := func(v *moby.KernelVersion) bool {
		return t.Kernel[0] > v.Kernel || t.Kernel[0] == v.Kernel && t.Kernel[1] >= v.Major
	}
	for _, s := range p.Syscalls {
		if x := s.Excludes; x != nil && (slices.Contains(x.Arches, name) || slices.ContainsFunc(x.Caps, holds) ||
			x.MinKernel != nil && newer(x.MinKernel)) {
			continue
		}
		if n := s.Includes; n != nil && (len(n.Arches) > 0 && !slices.Contains(n.Arches, name) ||
			slices.ContainsFunc(n.Caps, func(c string) bool { return !holds(c) }) ||
			n.MinKernel != nil && !newer(n.MinKernel)) {
			continue
		}
		out.Syscalls = append(out.Syscalls, oci(s))
	}
	return &out
}

// architectures are the names that libseccomp knows; those without a table never occur on a host that berth runs on.
var architectures = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
	specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
	specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64,
	specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

var operators = []specs.LinuxSeccompOperator{
	specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan,
	specs.OpMaskedEqual,
}

// validate checks what Compile takes for granted.
func validate(p *specs.LinuxSeccomp) error {
	if _, err := parseAction(p.DefaultAction, p.DefaultErrnoRet); err != nil {
		return &ProfileError{Field: "defaultAction", Value: string(p.DefaultAction), Rule: err.Error()}
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return &ProfileError{Field: "listenerPath", Value: p.ListenerPath, Rule: "must be empty: notification agents are not supported"}
	}
	for _, a := range p.Architectures {
		if !slices.Contains(architectures, a) {
			return &ProfileError{Field: "architectures", Value: string(a), Rule: "is not an architecture of the runtime specification"}
		}
	}
	if _, err := Flags(p); err != nil {
		return err
	}
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		field := fmt.Sprintf("syscalls[%d].", i)
		if len(s.Names) == 0 || slices.Contains(s.Names, "") {
			return &ProfileError{Field: field + "names", Rule: "must name system calls"}
		}
		if _, err := parseAction(s.Action, s.ErrnoRet); err != nil {
			return &ProfileError{Field: field + "action", Value: string(s.Action), Rule: err.Error()}
		}
		for _, a := range s.Args {
			if a.Index > 5 {
				return &ProfileError{Field: field + "args.index", Value: strconv.Itoa(int(a.Index)), Rule: "must be 0 to 5"}
			}
			if !slices.Contains(operators, a.Op) {
				return &ProfileError{Field: field + "args.op", Value: string(a.Op), Rule: "is not an operator of the runtime specification"}
			}
		}
	}
	return nil
}

// UnknownSyscalls returns the names in the profile that no architecture has: misspelt, or newer than the table. Their
// rules have no effect.
func UnknownSyscalls(p *specs.LinuxSeccomp) []string {
	var out []string
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if _, ok := numbers()[name]; !ok && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}
