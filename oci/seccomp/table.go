package seccomp

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:embed syscalls.txt
var tableText string

// x32Bit marks an x32 call: it shares AUDIT_ARCH_X86_64 with the 64-bit ones (__X32_SYSCALL_BIT).
const x32Bit = 0x40000000

// armPrivate is where ARM's private calls begin (__ARM_NR_BASE); no architecture has others near it.
const armPrivate = 0xf0000

// arch is an architecture that Compile serves.
type arch struct {
	name  specs.Arch
	goArc string // GOARCH, or x32; also the table's column
	audit uint32 // AUDIT_ARCH_*: seccomp_data.arch
	words int    // that are compared of an argument: 1 the low half, 2 all of it
}

// arches are in the order of the table's columns.
var arches = []arch{
	{specs.ArchX86_64, "amd64", unix.AUDIT_ARCH_X86_64, 2},
	{specs.ArchX86, "386", unix.AUDIT_ARCH_I386, 1},
	{specs.ArchX32, "x32", unix.AUDIT_ARCH_X86_64, 1},
	{specs.ArchAARCH64, "arm64", unix.AUDIT_ARCH_AARCH64, 2},
	{specs.ArchARM, "arm", unix.AUDIT_ARCH_ARM, 1},
	{specs.ArchRISCV64, "riscv64", unix.AUDIT_ARCH_RISCV64, 2},
	{specs.ArchLOONGARCH64, "loong64", unix.AUDIT_ARCH_LOONGARCH64, 2},
}

// table maps a call's name to its number by architecture, -1 where there is none.
type table map[string][]int64

// numbers parses the embedded table once.
var numbers = sync.OnceValue(func() table {
	t := make(table, 600)
	for line := range strings.Lines(tableText) {
		fields := strings.Fields(line)
		if fields[0] == "#" || fields[0] == "name" {
			continue
		}
		row := make([]int64, len(arches))
		for i, f := range fields[1:] {
			n, err := strconv.ParseInt(f, 10, 64)
			if err != nil {
				n = -1
			}
			row[i] = n
		}
		t[fields[0]] = row
	}
	return t
})

// nativeArch returns the index of the architecture named as in GOARCH, or -1.
func nativeArch(goarch string) int {
	for i := range arches {
		if arches[i].goArc == goarch {
			return i
		}
	}
	return -1
}

// multiplexed are the calls that x86 also reaches through one number and a selector in the first argument:
// socketcall (include/uapi/linux/net.h SYS_*) and ipc (include/uapi/linux/ipc.h).
var multiplexed = map[string]struct {
	call     string
	selector uint64
}{
	"socket": {"socketcall", 1}, "bind": {"socketcall", 2}, "connect": {"socketcall", 3}, "listen": {"socketcall", 4},
	"accept": {"socketcall", 5}, "getsockname": {"socketcall", 6}, "getpeername": {"socketcall", 7},
	"socketpair": {"socketcall", 8}, "send": {"socketcall", 9}, "recv": {"socketcall", 10}, "sendto": {"socketcall", 11},
	"recvfrom": {"socketcall", 12}, "shutdown": {"socketcall", 13}, "setsockopt": {"socketcall", 14},
	"getsockopt": {"socketcall", 15}, "sendmsg": {"socketcall", 16}, "recvmsg": {"socketcall", 17},
	"accept4": {"socketcall", 18}, "recvmmsg": {"socketcall", 19}, "sendmmsg": {"socketcall", 20},
	"semop": {"ipc", 1}, "semget": {"ipc", 2}, "semctl": {"ipc", 3}, "semtimedop": {"ipc", 4}, "msgsnd": {"ipc", 11},
	"msgrcv": {"ipc", 12}, "msgget": {"ipc", 13}, "msgctl": {"ipc", 14}, "shmat": {"ipc", 21}, "shmdt": {"ipc", 22},
	"shmget": {"ipc", 23}, "shmctl": {"ipc", 24},
}
