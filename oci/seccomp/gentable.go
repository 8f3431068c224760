//go:build ignore

// Command gentable writes syscalls.txt, the table of system call numbers, from the constants of golang.org/x/sys/unix.
// Run it with go generate after an upgrade of that module.
package main

import (
	"bytes"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// columns are the architectures in the table's order.
var columns = []string{"amd64", "386", "x32", "arm64", "arm", "riscv64", "loong64"}

// namesOnly are architectures whose own calls profiles name, but that the compiler does not serve.
var namesOnly = []string{"mips", "mips64", "ppc", "ppc64", "ppc64le", "s390x", "sparc64"}

// x32Only and no64 turn amd64's numbers into x32's: arch/x86/entry/syscalls/syscall_64.tbl, ABI columns "x32" and "64".
var x32Only = map[string]int{
	"rt_sigaction": 512, "rt_sigreturn": 513, "ioctl": 514, "readv": 515, "writev": 516, "recvfrom": 517, "sendmsg": 518,
	"recvmsg": 519, "execve": 520, "ptrace": 521, "rt_sigpending": 522, "rt_sigtimedwait": 523, "rt_sigqueueinfo": 524,
	"sigaltstack": 525, "timer_create": 526, "mq_notify": 527, "kexec_load": 528, "waitid": 529, "set_robust_list": 530,
	"get_robust_list": 531, "vmsplice": 532, "move_pages": 533, "preadv": 534, "pwritev": 535, "rt_tgsigqueueinfo": 536,
	"recvmmsg": 537, "sendmmsg": 538, "process_vm_readv": 539, "process_vm_writev": 540, "setsockopt": 541,
	"getsockopt": 542, "io_setup": 543, "io_submit": 544, "execveat": 545, "preadv2": 546, "pwritev2": 547,
}

var no64 = []string{
	"uselib", "_sysctl", "create_module", "get_kernel_syms", "query_module", "nfsservctl", "set_thread_area",
	"get_thread_area", "epoll_ctl_old", "epoll_wait_old", "vserver", "uretprobe", "uprobe",
	"map_shadow_stack",
}

// x32Bit marks an x32 call in seccomp_data.nr (__X32_SYSCALL_BIT).
const x32Bit = 0x40000000

// armPrivate are the calls of arch/arm/include/uapi/asm/unistd.h above __ARM_NR_BASE, which x/sys leaves out.
var armPrivate = map[string]int{
	"breakpoint": 0xf0001, "cacheflush": 0xf0002, "usr26": 0xf0003, "usr32": 0xf0004, "set_tls": 0xf0005, "get_tls": 0xf0006,
}

var constant = regexp.MustCompile(`(?m)^\s+SYS_([A-Z0-9_]+)\s*=\s*(\d+)`)

func read(folder, arch string) map[string]int {
	b, err := os.ReadFile(filepath.Join(folder, "zsysnum_linux_"+arch+".go"))
	if err != nil {
		log.Fatal(err)
	}
	numbers := map[string]int{}
	for _, m := range constant.FindAllSubmatch(b, -1) {
		n, err := strconv.Atoi(string(m[2]))
		if err != nil {
			log.Fatal(err)
		}
		if name := strings.ToLower(string(m[1])); name != "syscall_mask" { // no call, a constant of the ARM ABI
			numbers[name] = n
		}
	}
	return numbers
}

func main() {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		log.Fatal(err)
	}
	folder := filepath.Join(strings.TrimSpace(string(out)), "unix")
	tables := map[string]map[string]int{}
	for _, arch := range columns {
		if arch != "x32" {
			tables[arch] = read(folder, arch)
		}
	}
	maps.Copy(tables["arm"], armPrivate)
	x32 := map[string]int{}
	for name, n := range tables["amd64"] {
		if special, ok := x32Only[name]; ok {
			x32[name] = x32Bit | special
		} else if !slices.Contains(no64, name) {
			x32[name] = x32Bit | n
		}
	}
	tables["x32"] = x32
	names := map[string]bool{}
	for _, t := range tables {
		for name := range t {
			names[name] = true
		}
	}
	for _, arch := range namesOnly {
		for name := range read(folder, arch) {
			names[name] = true
		}
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by gentable.go; do not edit. Numbers of seccomp_data.nr; - where the architecture has no such call.\n")
	fmt.Fprintf(&b, "name %s\n", strings.Join(columns, " "))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		b.WriteString(name)
		for _, arch := range columns {
			if n, ok := tables[arch][name]; ok {
				fmt.Fprintf(&b, " %d", n)
			} else {
				b.WriteString(" -")
			}
		}
		b.WriteByte('\n')
	}
	if err := os.WriteFile("syscalls.txt", b.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
