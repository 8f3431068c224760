package seccomp

import (
	"fmt"
	"maps"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// compare is one condition on an argument.
type compare struct {
	index      uint
	op         specs.LinuxSeccompOperator
	value, two uint64
}

// clause is a rule with arguments: when all compares hold, the verdict is given.
type clause struct {
	all  []compare
	give verdict
}

// decision is what happens to one call.
type decision struct {
	always  bool // give holds whatever the arguments
	words   int  // of arguments that the clauses compare
	give    verdict
	clauses []clause
}

// outcome is a stretch of call numbers, from first to the next outcome's first, with the same decision.
type outcome struct {
	first uint32
	decision
}

// branch is all that a program does for one value of seccomp_data.arch.
type branch struct {
	audit    uint32
	outcomes []outcome // sorted by first; the first is 0
}

// Compile returns the program for the profile as struct sock_filter in the host's byte order. The slice is the caller's own.
// The results of the last few profiles are kept, by content.
func Compile(p *specs.LinuxSeccomp) ([]byte, error) {
	return programs.get(p, func() ([]byte, error) { return compileFor(p, runtime.GOARCH) })
}

// compileFor compiles for a host whose kernel is of the given GOARCH.
func compileFor(p *specs.LinuxSeccomp, goarch string) ([]byte, error) {
	native := nativeArch(goarch)
	if native < 0 {
		return nil, fmt.Errorf("compile seccomp profile: no system call table for %s", goarch)
	}
	if err := validate(p); err != nil {
		return nil, err
	}
	base, err := parseAction(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	var branches []branch
	for _, i := range servedArches(p, native) {
		outcomes, err := archOutcomes(p, i, base)
		if err != nil {
			return nil, err
		}
		k := slices.IndexFunc(branches, func(b branch) bool { return b.audit == arches[i].audit })
		if k < 0 {
			branches = append(branches, branch{audit: arches[i].audit, outcomes: outcomes})
		} else {
			branches[k].outcomes = joinX32(branches[k].outcomes, outcomes, base)
		}
	}
	for i := range branches {
		if b := &branches[i]; goarch == "amd64" && b.audit == arches[native].audit && !hasX32(b.outcomes) {
			refused := []outcome{{0, decision{always: true, give: killProcess}}}
			b.outcomes = joinX32(b.outcomes, refused, base)
		}
	}
	return assemble(branches, base)
}

// servedArches returns the host's own architecture and those of the profile that its kernel can also run. Others never
// occur in seccomp_data.arch; were they to, the program kills the process.
func servedArches(p *specs.LinuxSeccomp, native int) []int {
	served := []int{native}
	family := map[string][]string{"amd64": {"386", "x32"}, "arm64": {"arm"}}[arches[native].goArc]
	for _, name := range p.Architectures {
		for i := range arches {
			if arches[i].name == name && slices.Contains(family, arches[i].goArc) && !slices.Contains(served, i) {
				served = append(served, i)
			}
		}
	}
	slices.Sort(served) // 64 bits before x32, which is joined to it
	return served
}

// archOutcomes decides every call number of one architecture.
func archOutcomes(p *specs.LinuxSeccomp, a int, base verdict) ([]outcome, error) {
	calls := map[uint32]*decision{}
	end := uint32(0)
	for i := range p.Syscalls {
		rule := &p.Syscalls[i]
		give, err := parseAction(rule.Action, rule.ErrnoRet)
		if err != nil {
			return nil, err
		}
		alternatives := conditions(rule.Args)
		for _, name := range rule.Names {
			n := number(name, a)
			if n < 0 {
				continue
			}
			if base.denies() && n&^x32Bit < armPrivate {
				end = max(end, uint32(n)+1)
			}
			if give == base {
				continue
			}
			add(calls, uint32(n), give, alternatives)
			if m, ok := multiplexed[name]; ok && arches[a].goArc == "386" && (len(rule.Args) == 0 || give.denies()) {
				add(calls, uint32(number(m.call, a)), give, [][]compare{{{index: 0, op: specs.OpEqualTo, value: m.selector}}})
			}
		}
	}
	for _, d := range calls {
		d.words = arches[a].words
	}
	return sortOutcomes(calls, end, base), nil
}

func number(name string, a int) int64 {
	if row, ok := numbers()[name]; ok {
		return row[a]
	}
	return -1
}

// conditions splits a rule's arguments into alternatives of conditions that must all hold. Conditions on one argument
// twice make each condition an alternative of its own, as runc does: libseccomp has no other way to take them.
func conditions(args []specs.LinuxSeccompArg) [][]compare {
	if len(args) == 0 {
		return nil
	}
	var all []compare
	var seen [6]bool
	twice := false
	for _, a := range args {
		all = append(all, compare{a.Index, a.Op, a.Value, a.ValueTwo})
		if a.Index < 6 {
			twice = twice || seen[a.Index]
			seen[a.Index] = true
		}
	}
	if !twice {
		return [][]compare{all}
	}
	alternatives := make([][]compare, len(all))
	for i := range all {
		alternatives[i] = all[i : i+1]
	}
	return alternatives
}

// add puts a rule into the call's decision: a rule without conditions beats those with, and the first of such stays.
func add(calls map[uint32]*decision, n uint32, give verdict, alternatives [][]compare) {
	d := calls[n]
	if d == nil {
		d = &decision{}
		calls[n] = d
	}
	switch {
	case d.always:
	case alternatives == nil:
		*d = decision{always: true, give: give}
	default:
		for _, all := range alternatives {
			d.clauses = append(d.clauses, clause{all, give})
		}
	}
}

// sortOutcomes lays the decisions out over all call numbers. Those from end on, above all that the profile names, get
// ENOSYS; end 0 means that none do. ARM's private calls, far above, stay out of that.
func sortOutcomes(calls map[uint32]*decision, end uint32, base verdict) []outcome {
	fallback := decision{always: true, give: base}
	var out []outcome
	put := func(first uint32, d decision) {
		k := len(out) - 1
		if k >= 0 && out[k].first == first {
			out = out[:k]
			k--
		}
		if k >= 0 && out[k].always && d.always && out[k].give == d.give {
			return // the stretch goes on
		}
		out = append(out, outcome{first, d})
	}
	put(0, fallback)
	for _, n := range slices.Sorted(maps.Keys(calls)) {
		d := calls[n]
		slices.SortStableFunc(d.clauses, func(x, y clause) int { return y.give.severity() - x.give.severity() })
		if end > 0 && n >= end {
			put(end, decision{always: true, give: noSys})
			put(armPrivate, fallback)
			end = 0
		}
		put(n, *d)
		put(n+1, fallback)
	}
	if end > 0 {
		put(end, decision{always: true, give: noSys})
	}
	return out
}

func hasX32(outcomes []outcome) bool { return outcomes[len(outcomes)-1].first >= x32Bit }

// joinX32 puts the decisions for x32 above those for 64 bits: one architecture to the kernel, told apart by a bit of the
// number. The number -1, by which a tracer skips a call, stays with the default action.
func joinX32(wide, x32 []outcome, base verdict) []outcome {
	out := slices.Clone(wide)
	for _, o := range x32 {
		o.first = max(o.first, x32Bit)
		if k := len(out) - 1; out[k].first == o.first {
			out[k] = o
		} else {
			out = append(out, o)
		}
	}
	return append(out, outcome{^uint32(0), decision{always: true, give: base}})
}
