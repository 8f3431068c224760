package cgroup

import (
	"fmt"
	"math"
	"runtime"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// instruction is struct bpf_insn (linux/bpf.h).
type instruction struct {
	code      uint8
	registers uint8 // destination, and source shifted left by 4
	offset    int16 // of jumps, in instructions, from the next one
	immediate int32
}

// program is an eBPF program of the type BPF_PROG_TYPE_CGROUP_DEVICE. It gets struct bpf_cgroup_dev_ctx in register 1, and returns 1 to allow.
type program []instruction

// The operations in use (Documentation/bpf/standardization/instruction-set.rst), and what the program keeps in which register.
const (
	opLoad     = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMove     = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opMoveReg  = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	opAnd      = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	opShift    = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	opUnequal  = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	opEqual    = unix.BPF_JMP32 | unix.BPF_JEQ | unix.BPF_K
	opExit     = unix.BPF_JMP | unix.BPF_EXIT
	regResult  = 0
	regContext = 1
	regType    = 2
	regAccess  = 3
	regMajor   = 4
	regMinor   = 5
	regScratch = 6
)

const allAccess = unix.BPF_DEVCG_ACC_READ | unix.BPF_DEVCG_ACC_WRITE | unix.BPF_DEVCG_ACC_MKNOD

// deviceProgram compiles the rules, of which the last that matches decides, as in version 1; what none matches is denied. A rule that allows matches
// a request that asks for nothing more than it gives; one that denies, a request for anything that it takes. (The compiler in containerd/cgroups 3.1.3
// lets a rule that allows reading pass an open for reading and writing.)
func deviceProgram(rules []specs.LinuxDeviceCgroup) (program, error) {
	p := program{
		{opLoad, regType | regContext<<4, 0, 0}, // access_type: type in the lower half, access in the upper one
		{opMoveReg, regAccess | regType<<4, 0, 0},
		{opAnd, regType, 0, 0xffff},
		{opShift, regAccess, 0, 16},
		{opLoad, regMajor | regContext<<4, 4, 0},
		{opLoad, regMinor | regContext<<4, 8, 0},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		block, err := deviceBlock(rules[i])
		if err != nil {
			return nil, err
		}
		p = append(p, block...)
		if len(block) == 2 { // it matches everything
			return p, nil
		}
	}
	return append(p, deny...), nil
}

// The ends of a program.
var (
	allow = program{{opMove, regResult, 0, 1}, {opExit, 0, 0, 0}}
	deny  = program{{opMove, regResult, 0, 0}, {opExit, 0, 0, 0}}
)

// deviceBlock tests one rule: it returns the verdict, or goes on behind itself.
func deviceBlock(rule specs.LinuxDeviceCgroup) (program, error) {
	var tests program
	switch rule.Type {
	case "", "a":
	case "c", "u":
		tests = append(tests, instruction{opUnequal, regType, 0, unix.BPF_DEVCG_DEV_CHAR})
	case "b":
		tests = append(tests, instruction{opUnequal, regType, 0, unix.BPF_DEVCG_DEV_BLOCK})
	default:
		return nil, fmt.Errorf("device rule of type %q: %w", rule.Type, unix.EINVAL)
	}
	for _, n := range []struct {
		register uint8
		number   *int64
	}{{regMajor, rule.Major}, {regMinor, rule.Minor}} {
		switch {
		case n.number == nil || *n.number < 0:
		case *n.number > math.MaxUint32:
			return nil, fmt.Errorf("device rule with number %d: %w", *n.number, unix.EINVAL)
		default:
			tests = append(tests, instruction{opUnequal, n.register, 0, int32(uint32(*n.number))})
		}
	}
	access, err := accessBits(rule.Access)
	if err != nil {
		return nil, err
	}
	if access != allAccess {
		tests = append(tests, instruction{opMoveReg, regScratch | regAccess<<4, 0, 0})
		if rule.Allow {
			tests = append(tests, instruction{opAnd, regScratch, 0, allAccess &^ access}, instruction{opUnequal, regScratch, 0, 0})
		} else {
			tests = append(tests, instruction{opAnd, regScratch, 0, access}, instruction{opEqual, regScratch, 0, 0})
		}
	}
	end := deny
	if rule.Allow {
		end = allow
	}
	for i := range tests {
		if tests[i].code == opUnequal || tests[i].code == opEqual {
			tests[i].offset = int16(len(tests) + len(end) - i - 1)
		}
	}
	return append(tests, end...), nil
}

func accessBits(access string) (int32, error) {
	if access == "" {
		return allAccess, nil
	}
	var bits int32
	for _, letter := range access {
		switch letter {
		case 'r':
			bits |= unix.BPF_DEVCG_ACC_READ
		case 'w':
			bits |= unix.BPF_DEVCG_ACC_WRITE
		case 'm':
			bits |= unix.BPF_DEVCG_ACC_MKNOD
		default:
			return 0, fmt.Errorf("device rule with access %q: %w", access, unix.EINVAL)
		}
	}
	return bits, nil
}

// load hands the program to the kernel. The caller closes it.
func (p program) load() (int, error) {
	license := []byte("Apache-2.0\x00")
	load := struct { // union bpf_attr, BPF_PROG_LOAD
		kind, count       uint32
		code, license     uint64
		logLevel, logSize uint32
		log               uint64
		kernel, flags     uint32
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(p)), code: uint64(uintptr(unsafe.Pointer(&p[0]))),
		license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	var fd uintptr
	var errno unix.Errno
	err := withoutSignals(func() {
		fd, _, errno = unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	})
	if err != nil {
		return -1, err
	}
	runtime.KeepAlive(p)
	runtime.KeepAlive(license)
	if errno != 0 {
		return -1, fmt.Errorf("load program: %w", errno)
	}
	return int(fd), nil
}

// withoutSignals does what the kernel gives up, with EAGAIN, when the thread has a signal: its verifier does. Go sends them to preempt, and more of
// them when the machine is busy.
func withoutSignals(do func()) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i]-- // every bit
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return fmt.Errorf("block signals: %w", err)
	}
	do()
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil); err != nil {
		return fmt.Errorf("unblock signals: %w", err)
	}
	return nil
}

// attach loads the program and attaches it to a cgroup, beside what may be attached already: all must allow. The kernel drops it with the cgroup.
func (p program) attach(cgroup int) error {
	fd, err := p.load()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attach := struct { // union bpf_attr, BPF_PROG_ATTACH
		target, program, kind, flags uint32
	}{target: uint32(cgroup), program: uint32(fd), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return fmt.Errorf("attach program: %w", errno)
	}
	return nil
}
