package seccomp

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// reference decides a call by the rules of the package documentation, one after the other.
func reference(p *specs.LinuxSeccomp, c call) verdict {
	base, _ := parseAction(p.DefaultAction, p.DefaultErrnoRet)
	a := slices.IndexFunc(arches[:3], func(a arch) bool {
		return a.audit == c.arch && (a.goArc == "x32") == (c.arch == unix.AUDIT_ARCH_X86_64 && c.nr >= x32Bit)
	})
	if c.arch == unix.AUDIT_ARCH_X86_64 && c.nr == ^uint32(0) {
		return base
	}
	if a < 0 || a > 0 && !slices.Contains(p.Architectures, arches[a].name) {
		return killProcess
	}
	found, strictest, last := false, verdict(0), int64(-1)
	var always *verdict
	for _, s := range p.Syscalls {
		give, _ := parseAction(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			n := number(name, a)
			last = max(last, n)
			if n < 0 || give == base {
				continue
			}
			args := conditions(s.Args)
			m, multi := multiplexed[name]
			if multi && arches[a].goArc == "386" && int64(c.nr) == number(m.call, a) && (args == nil || give.denies()) {
				args = [][]compare{{{index: 0, op: specs.OpEqualTo, value: m.selector}}}
			} else if int64(c.nr) != n {
				continue
			}
			if args == nil {
				if always == nil {
					always = &give
				}
				continue
			}
			for _, all := range args {
				if !slices.ContainsFunc(all, func(k compare) bool { return !k.holds(c, arches[a].words) }) {
					if !found || give.severity() > strictest.severity() {
						strictest = give
					}
					found = true
				}
			}
		}
	}
	switch {
	case base.denies() && last >= 0 && int64(c.nr) > last:
		return noSys
	case always != nil:
		return *always
	case found:
		return strictest
	}
	return base
}

func (k compare) holds(c call, words int) bool {
	x, v, two := c.args[k.index], k.value, k.two
	if words == 1 {
		x, v, two = uint64(uint32(x)), uint64(uint32(v)), uint64(uint32(two))
	}
	switch k.op {
	case specs.OpNotEqual:
		return x != v
	case specs.OpLessThan:
		return x < v
	case specs.OpLessEqual:
		return x <= v
	case specs.OpEqualTo:
		return x == v
	case specs.OpGreaterEqual:
		return x >= v
	case specs.OpGreaterThan:
		return x > v
	}
	return x&v == two&v
}

func TestCompileDecidesAsTheRulesSay(t *testing.T) {
	var names []string
	for n := range numbers() {
		names = append(names, n)
	}
	slices.Sort(names)
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		p := randomProfile(r, names, wild)
		program := compiled(t, p)
		for _, c := range probes(p, r) {
			if got, want := run(t, program, c), reference(p, c); got != want {
				t.Fatalf("seed %d: call %#x of %#x with %#x gives %#x, want %#x", seed, c.nr, c.arch, c.args, got, want)
			}
		}
	}
}
