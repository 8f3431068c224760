package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var amd64 = Target{Capabilities: []string{"CAP_CHOWN"}, Arch: "amd64", Kernel: [2]uint64{6, 1}}

func TestLoadRefuses(t *testing.T) {
	for _, tc := range []struct{ name, json, field, rule string }{
		{"nothing", ``, "JSON", "empty"},
		{"no JSON", `profile`, "JSON", "invalid"},
		{"two objects", `{"defaultAction":"SCMP_ACT_ALLOW"}{}`, "JSON", "nothing after"},
		{"a list", `[]`, "JSON", "invalid"},
		{"null", `null`, "defaultAction", "missing"},
		{"an empty object, which would confine nothing", `{}`, "defaultAction", "missing"},
		{"an unknown default", `{"defaultAction":"ALLOW"}`, "defaultAction", "not an action"},
		{"an errno that does not fit the action", `{"defaultAction":"SCMP_ACT_ALLOW","defaultErrnoRet":1}`, "defaultAction", "no errno"},
		{"a large errno", `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":4096}`, "defaultAction", "4095"},
		{"an unknown action", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"x"}]}`, "syscalls[0].action", "not an action"},
		{"notify", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_NOTIFY"}]}`, "syscalls[0].action", "not supported"},
		{"a listener", `{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/x"}`, "listenerPath", "not supported"},
		{"no names", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`, "syscalls[0].names", "must name"},
		{"a null rule", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`, "syscalls[0]", "null"},
		{"name and names", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"read","names":["write"],"action":"SCMP_ACT_ERRNO"}]}`, "syscalls[0].name", "beside"},
		{"a seventh argument", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}`, "syscalls[0].args.index", "0 to 5"},
		{"an unknown operator", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"=="}]}]}`, "syscalls[0].args.op", "not an operator"},
		{"an unknown architecture", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["x86_64"]}`, "architectures", "not an architecture"},
		{"two lists of architectures", `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86_64"}]}`, "archMap", "beside"},
		{"an unknown flag", `{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_NEW_LISTENER"]}`, "flags", "must be"},
		{"a bad kernel version", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","includes":{"minKernel":"x"}}]}`, "JSON", "kernel version"},
		{"a bad rule that would not apply", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"x","includes":{"caps":["CAP_SYS_ADMIN"]}}]}`, "syscalls[0].action", "not an action"},
		{"a large file", strings.Repeat(" ", MaxProfileSize+1), "size", "at most"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Load([]byte(tc.json), amd64)
			var bad *ProfileError
			if !errors.As(err, &bad) {
				t.Fatalf("Load = %v, %v, want a ProfileError", p, err)
			}
			if bad.Field != tc.field || !strings.Contains(bad.Rule, tc.rule) {
				t.Errorf("Load = %v, want field %s and a rule with %q", err, tc.field, tc.rule)
			}
		})
	}
}

func TestLoadPicksConditionalRules(t *testing.T) {
	const profile = `{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
		"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}, {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
		"syscalls": [
			{"name": "read", "action": "SCMP_ACT_ALLOW", "comment": "old form"},
			{"names": ["write"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}},
			{"names": ["open"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN", "CAP_KILL"]}},
			{"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64", "s390x"]}},
			{"names": ["stat"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["arm64"]}},
			{"names": ["poll"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
			{"names": ["dup"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "6.2"}}
		]}`
	for _, tc := range []struct {
		name string
		t    Target
		want string
	}{
		{"plain", Target{Arch: "amd64", Kernel: [2]uint64{6, 1}}, "read open stat dup"},
		{"one capability of two", Target{Arch: "amd64", Kernel: [2]uint64{6, 1}, Capabilities: []string{"CAP_CHOWN"}}, "read stat dup"},
		{"both capabilities", Target{Arch: "amd64", Kernel: [2]uint64{7, 0}, Capabilities: []string{"CAP_CHOWN", "CAP_KILL"}}, "read write stat poll"},
		{"arm64", Target{Arch: "arm64", Kernel: [2]uint64{6, 2}}, "read open close poll"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p, err := Load([]byte(profile), tc.t)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range p.Syscalls {
				got = append(got, s.Names...)
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("rules for %v, want %s", got, tc.want)
			}
			want := map[string][]specs.Arch{"amd64": {specs.ArchX86_64, specs.ArchX86}, "arm64": {specs.ArchAARCH64, specs.ArchARM}}[tc.t.Arch]
			if !slices.Equal(p.Architectures, want) {
				t.Errorf("architectures %v, want %v", p.Architectures, want)
			}
			if _, err := compileFor(p, tc.t.Arch); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoadTakesNonASCIIAndDuplicates(t *testing.T) {
	p, err := Load([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","chmod","fchmodät","s390_pci_mmio_read"],"action":"SCMP_ACT_ERRNO"}]}`), amd64)
	if err != nil {
		t.Fatal(err)
	}
	if got := UnknownSyscalls(p); !slices.Equal(got, []string{"fchmodät"}) {
		t.Errorf("UnknownSyscalls = %v", got)
	}
	b := compiled(t, p)
	if got := run(t, b, call{nr: 90, arch: unix.AUDIT_ARCH_X86_64}); got != unix.SECCOMP_RET_ERRNO|1 {
		t.Errorf("chmod gives %#x", got)
	}
	if got := run(t, b, call{nr: 91, arch: unix.AUDIT_ARCH_X86_64}); got != unix.SECCOMP_RET_ALLOW {
		t.Errorf("fchmod gives %#x", got)
	}
}

// The rule for AF_ALG must hold whatever the high half of the register says: the kernel reads an int.
func TestDefaultAllowsEveryFamilyButTwo(t *testing.T) {
	b := compiled(t, Default(amd64))
	for _, c := range []struct{ nr, arch uint32 }{{41, unix.AUDIT_ARCH_X86_64}, {359, unix.AUDIT_ARCH_I386}, {x32Bit | 41, unix.AUDIT_ARCH_X86_64}} {
		for family := range uint64(64) {
			for _, high := range []uint64{0, 1 << 32, 0xffffffff << 32} {
				want := verdict(unix.SECCOMP_RET_ALLOW)
				if family == unix.AF_ALG || family == unix.AF_VSOCK {
					want = unix.SECCOMP_RET_ERRNO | 1
				}
				if got := run(t, b, call{c.nr, c.arch, [6]uint64{family | high}}); got != want {
					t.Errorf("socket(%d) by %#x gives %#x, want %#x", family|high, c.nr, got, want)
				}
			}
		}
	}
}

func TestDefaultFollowsCapabilities(t *testing.T) {
	admin := compiled(t, Default(Target{Capabilities: []string{"CAP_SYS_ADMIN"}, Arch: "amd64", Kernel: [2]uint64{6, 1}}))
	plain := compiled(t, Default(amd64))
	for name, want := range map[string]verdict{"mount": unix.SECCOMP_RET_ERRNO | 1, "clone3": noSys, "reboot": unix.SECCOMP_RET_ERRNO | 1} {
		c := call{nr: uint32(number(name, 0)), arch: unix.AUDIT_ARCH_X86_64}
		if got := run(t, plain, c); got != want {
			t.Errorf("%s gives %#x, want %#x", name, got, want)
		}
		if got := run(t, admin, c); name != "reboot" && got != unix.SECCOMP_RET_ALLOW {
			t.Errorf("%s with CAP_SYS_ADMIN gives %#x", name, got)
		}
	}
}

func TestCompileOtherArchitectures(t *testing.T) {
	for _, goarch := range []string{"386", "arm64", "arm", "riscv64", "loong64"} {
		p := Default(Target{Arch: goarch, Kernel: [2]uint64{6, 1}})
		b, err := compileFor(p, goarch)
		if err != nil {
			t.Fatal(err)
		}
		a := nativeArch(goarch)
		if got := run(t, b, call{nr: uint32(number("read", a)), arch: arches[a].audit}); got != unix.SECCOMP_RET_ALLOW {
			t.Errorf("%s: read gives %#x", goarch, got)
		}
		if got := run(t, b, call{nr: uint32(number("keyctl", a)), arch: arches[a].audit}); got != unix.SECCOMP_RET_ERRNO|1 {
			t.Errorf("%s: keyctl gives %#x", goarch, got)
		}
		if got := run(t, b, call{arch: unix.AUDIT_ARCH_S390X}); got != killProcess {
			t.Errorf("%s: a foreign call gives %#x", goarch, got)
		}
	}
	b, err := compileFor(Default(Target{Arch: "arm64", Kernel: [2]uint64{6, 1}}), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	for nr, want := range map[uint32]verdict{0xf0005: unix.SECCOMP_RET_ALLOW, 0xf0003: unix.SECCOMP_RET_ERRNO | 1, 900: noSys} {
		if got := run(t, b, call{nr: nr, arch: unix.AUDIT_ARCH_ARM}); got != want {
			t.Errorf("arm call %#x gives %#x, want %#x", nr, got, want)
		}
	}
	if _, err := compileFor(Default(amd64), "sparc"); err == nil {
		t.Error("compiled for an architecture without a table")
	}
}

func TestCompileOverlappingRulesTakeTheStrictest(t *testing.T) {
	rule := func(a specs.LinuxSeccompAction, op specs.LinuxSeccompOperator, v uint64) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"socket"}, Action: a, Args: []specs.LinuxSeccompArg{{Index: 0, Op: op, Value: v}}}
	}
	allow, trap := rule(specs.ActAllow, specs.OpLessThan, 20), rule(specs.ActTrap, specs.OpEqualTo, 5)
	for _, rules := range [][]specs.LinuxSyscall{{allow, trap}, {trap, allow}} {
		b := compiled(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: rules})
		for arg, want := range map[uint64]verdict{5: unix.SECCOMP_RET_TRAP, 6: unix.SECCOMP_RET_ALLOW, 20: unix.SECCOMP_RET_ERRNO | 1} {
			if got := run(t, b, call{41, unix.AUDIT_ARCH_X86_64, [6]uint64{arg}}); got != want {
				t.Errorf("socket(%d) gives %#x, want %#x", arg, got, want)
			}
		}
	}
}

func TestCompileConditionalSocketRulesOnX86(t *testing.T) {
	arg := []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: 2}}
	socketcall := call{102, unix.AUDIT_ARCH_I386, [6]uint64{1}}
	deny := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActErrno, Args: arg}}}
	if got := run(t, compiled(t, deny), socketcall); got != unix.SECCOMP_RET_ERRNO|1 {
		t.Errorf("socketcall passes a rule that denies sockets: %#x", got)
	}
	allow := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActAllow, Args: arg}}}
	if got := run(t, compiled(t, allow), socketcall); got != noSys && got != unix.SECCOMP_RET_ERRNO|1 {
		t.Errorf("socketcall passes by a rule for one family: %#x", got)
	}
}

// A profile with more rules than a conditional jump can leap over, and one that no kernel takes.
func TestCompileLargeProfiles(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for i := range 150 {
		errno := uint(i + 1)
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: &errno,
			Args: []specs.LinuxSeccompArg{{Index: 2, Op: specs.OpEqualTo, Value: uint64(i) << 30}}})
	}
	b := compiled(t, p)
	for i := range uint64(160) {
		want := verdict(unix.SECCOMP_RET_ERRNO) | verdict(i+1)
		if i >= 150 {
			want = unix.SECCOMP_RET_ALLOW
		}
		if got := run(t, b, call{0, unix.AUDIT_ARCH_X86_64, [6]uint64{2: i << 30}}); got != want {
			t.Errorf("read with %d<<30 gives %#x, want %#x", i, got, want)
		}
	}
	for i := range 1000 {
		errno := uint(i)
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"write"}, Action: specs.ActErrno, ErrnoRet: &errno,
			Args: []specs.LinuxSeccompArg{{Index: 2, Op: specs.OpEqualTo, Value: uint64(i) << 30}}})
	}
	if _, err := compileFor(p, "amd64"); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("compiled a program that is too long: %v", err)
	}
}

func TestFlags(t *testing.T) {
	for _, tc := range []struct {
		flags []specs.LinuxSeccompFlag
		want  uint64
	}{
		{nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, "SECCOMP_FILTER_FLAG_TSYNC"}, unix.SECCOMP_FILTER_FLAG_LOG},
	} {
		if got, err := Flags(&specs.LinuxSeccomp{Flags: tc.flags}); err != nil || got != tc.want {
			t.Errorf("Flags(%v) = %#x, %v, want %#x", tc.flags, got, err, tc.want)
		}
	}
}

func TestParseKernel(t *testing.T) {
	for release, want := range map[string][2]uint64{"6.18.44-fc": {6, 18}, "4.19": {4, 19}, "3.12-1-amd64": {3, 12}, "6.1+": {6, 1}} {
		if got, err := ParseKernel(release); err != nil || got != want {
			t.Errorf("ParseKernel(%q) = %v, %v", release, got, err)
		}
	}
	for _, release := range []string{"", "6", "x.y", "-1.2", "6."} {
		if got, err := ParseKernel(release); err == nil {
			t.Errorf("ParseKernel(%q) = %v", release, got)
		}
	}
}

func TestCacheKeepsTheLatestPrograms(t *testing.T) {
	c := cache{held: map[digest][]byte{}}
	made := 0
	get := func(i int) {
		t.Helper()
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{fmt.Sprint(i)}}}}
		b, err := c.get(p, func() ([]byte, error) { made++; return binary.BigEndian.AppendUint32(nil, uint32(i)), nil })
		if err != nil || binary.BigEndian.Uint32(b) != uint32(i) {
			t.Fatalf("get %d = %v, %v", i, b, err)
		}
		b[0] = 0xff // the caller's own
	}
	for i := range cacheSize {
		get(i)
		get(0)
	}
	if made != cacheSize {
		t.Errorf("%d compiled, want %d", made, cacheSize)
	}
	get(cacheSize) // pushes 1 out, not 0
	made = 0
	get(0)
	if made != 0 {
		t.Error("the profile used most was dropped")
	}
	get(1)
	if made != 1 || len(c.held) != cacheSize || len(c.order) != cacheSize {
		t.Errorf("%d made, %d held", made, len(c.held))
	}
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod"],"action":"SCMP_ACT_ERRNO","args":[{"index":1,"value":1,"op":"SCMP_CMP_MASKED_EQ"}]}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X32"]}],"syscalls":[{"name":"read","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8","caps":["CAP_CHOWN"]}}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Load(b, amd64)
		var bad *ProfileError
		if err != nil {
			if !errors.As(err, &bad) {
				t.Fatalf("Load gives %v, no ProfileError", err)
			}
			return
		}
		program, err := compileFor(p, "amd64")
		if err != nil {
			if strings.Contains(err.Error(), "instructions") {
				return
			}
			t.Fatalf("Load took what Compile refuses: %v", err)
		}
		for nr := range uint32(500) {
			c := call{nr: nr, arch: unix.AUDIT_ARCH_X86_64, args: [6]uint64{1, 2, 3, 4, 5, 6}}
			if got, want := run(t, program, c), reference(p, c); got != want {
				t.Fatalf("call %d gives %#x, want %#x", nr, got, want)
			}
		}
	})
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		Default(amd64)
	}
}

func BenchmarkCompileUncached(b *testing.B) {
	p := Default(amd64)
	for b.Loop() {
		if _, err := compileFor(p, "amd64"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileCached(b *testing.B) {
	p := Default(amd64)
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
