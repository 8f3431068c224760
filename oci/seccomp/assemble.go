package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offsetNr   = 0
	offsetArch = 4
	offsetArgs = 16
)

// place is an instruction's distance from the end of the program: 0 is the last one. Jumps only go forward, so a program
// is written from its end, and every target is known when a jump to it is made.
type place int

// writer holds a program, last instruction first.
type writer struct {
	code    []unix.SockFilter
	returns map[verdict]place // the latest return of each verdict
}

// assemble makes the program of the branches. It only uses instructions that the kernel's cache of constant verdicts
// understands on the way to a return (kernel/seccomp.c, seccomp_is_const_allow), so that calls that are always allowed
// cost one look into a bitmap.
func assemble(branches []branch, base verdict) ([]byte, error) {
	w := &writer{returns: map[verdict]place{}}
	next := w.ret(killProcess)
	for _, b := range slices.Backward(branches) {
		if root := w.tree(b.outcomes, base); root != w.here() {
			w.put(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(w.code) - int(root) - 1)})
		}
		w.load(offsetNr)
		next = w.jump(unix.BPF_JEQ, b.audit, w.here(), next)
	}
	w.load(offsetArch)
	if len(w.code) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("compile seccomp profile: it takes %d instructions; the kernel takes %d", len(w.code), unix.BPF_MAXINSNS)
	}
	out := make([]byte, 0, len(w.code)*unix.SizeofSockFilter)
	for _, in := range slices.Backward(w.code) {
		out = binary.NativeEndian.AppendUint16(out, in.Code)
		out = append(out, in.Jt, in.Jf)
		out = binary.NativeEndian.AppendUint32(out, in.K)
	}
	return out, nil
}

func (w *writer) here() place { return place(len(w.code) - 1) }

func (w *writer) put(in unix.SockFilter) place {
	w.code = append(w.code, in)
	return w.here()
}

// load reads a word of seccomp_data and goes on with what was written last.
func (w *writer) load(offset uint32) {
	w.put(unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

// ret returns a place that gives v, near enough for any jump made next.
func (w *writer) ret(v verdict) place {
	if p, ok := w.returns[v]; ok && len(w.code)-int(p) < 200 {
		return p
	}
	p := w.put(unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(v)})
	w.returns[v] = p
	return p
}

// jump writes a conditional jump. Targets that are out of its reach, 255 instructions, get a long jump behind it.
func (w *writer) jump(op uint16, k uint32, yes, no place) place {
	const reach = 255
	// Each long jump moves the conditional one further from the other target by one.
	near := func(target place) place {
		if len(w.code)-int(target)-1 <= reach-1 {
			return target
		}
		return w.put(unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(w.code) - int(target) - 1)})
	}
	yes = near(yes)
	no = near(no)
	n := len(w.code)
	return w.put(unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(n - int(yes) - 1), Jf: uint8(n - int(no) - 1), K: k})
}

// tree writes a binary search over the outcomes, with the call's number loaded, and returns where it begins.
func (w *writer) tree(outcomes []outcome, base verdict) place {
	if len(outcomes) == 1 {
		if o := &outcomes[0]; o.always {
			return w.ret(o.give)
		}
		return w.clauses(&outcomes[0].decision, base)
	}
	middle := len(outcomes) / 2
	above := w.tree(outcomes[middle:], base)
	below := w.tree(outcomes[:middle], base)
	return w.jump(unix.BPF_JGE, outcomes[middle].first, above, below)
}

// clauses writes the conditions of one call, the first clause first.
func (w *writer) clauses(d *decision, base verdict) place {
	next := w.ret(base)
	for _, c := range slices.Backward(d.clauses) {
		hit := w.ret(c.give)
		for _, cmp := range slices.Backward(c.all) {
			hit = w.compare(cmp, d.words, hit, next)
		}
		next = hit
	}
	return next
}

// compare writes one condition on an argument, on both words of it or on the low one only.
func (w *writer) compare(c compare, words int, yes, no place) place {
	low, high := uint32(offsetArgs+8*c.index), uint32(offsetArgs+8*c.index)
	if binary.NativeEndian.Uint16([]byte{1, 0}) == 1 {
		high += 4
	} else {
		low += 4
	}
	if c.op == specs.OpMaskedEqual {
		p := w.masked(low, uint32(c.value), uint32(c.two), yes, no)
		if mask := uint32(c.value >> 32); words == 2 && mask != 0 {
			p = w.masked(high, mask, uint32(c.two>>32), p, no)
		}
		return p
	}
	op, yes, no := operator(c.op, yes, no)
	w.jump(op, uint32(c.value), yes, no)
	w.load(low)
	lowWord := w.here()
	if words == 1 {
		return lowWord
	}
	w.jump(unix.BPF_JEQ, uint32(c.value>>32), lowWord, no)
	if op != unix.BPF_JEQ { // a larger high word decides alone
		w.jump(unix.BPF_JGT, uint32(c.value>>32), yes, w.here())
	}
	w.load(high)
	return w.here()
}

// operator expresses an operator by those that BPF has: the negated ones swap the targets.
func operator(op specs.LinuxSeccompOperator, yes, no place) (uint16, place, place) {
	switch op {
	case specs.OpNotEqual:
		return unix.BPF_JEQ, no, yes
	case specs.OpGreaterThan:
		return unix.BPF_JGT, yes, no
	case specs.OpGreaterEqual:
		return unix.BPF_JGE, yes, no
	case specs.OpLessThan:
		return unix.BPF_JGE, no, yes
	case specs.OpLessEqual:
		return unix.BPF_JGT, no, yes
	}
	return unix.BPF_JEQ, yes, no
}

func (w *writer) masked(offset, mask, value uint32, yes, no place) place {
	w.jump(unix.BPF_JEQ, value&mask, yes, no)
	w.put(unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
	w.load(offset)
	return w.here()
}
