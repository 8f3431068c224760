package seccomp

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insideFilter runs in a child: it installs the program from standard input and reports what calls return as JSON.
func insideFilter() {
	runtime.LockOSThread()
	var program []byte
	if err := json.NewDecoder(os.Stdin).Decode(&program); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	filter := unix.SockFprog{Len: uint16(len(program) / unix.SizeofSockFilter), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&filter))); e != 0 {
		fmt.Fprintln(os.Stderr, "install:", e)
		os.Exit(2)
	}
	got := map[string]string{}
	for _, c := range installCalls {
		_, _, e := unix.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
		got[c.name] = unix.ErrnoName(e)
	}
	if err := json.NewEncoder(os.Stdout).Encode(got); err != nil {
		os.Exit(2)
	}
}

// installCalls are real calls and what the default profile must make of them.
var installCalls = []struct {
	name string
	nr   uintptr
	args [6]uintptr
	want string
}{
	{"getpid", unix.SYS_GETPID, [6]uintptr{}, ""},
	{"socket AF_ALG", unix.SYS_SOCKET, [6]uintptr{unix.AF_ALG, unix.SOCK_SEQPACKET}, "EPERM"},
	{"socket AF_VSOCK", unix.SYS_SOCKET, [6]uintptr{unix.AF_VSOCK, unix.SOCK_STREAM}, "EPERM"},
	{"socket AF_ALG behind a high half", unix.SYS_SOCKET, [6]uintptr{1<<32 | unix.AF_ALG, unix.SOCK_SEQPACKET}, "EPERM"},
	{"socket AF_VSOCK behind a high half", unix.SYS_SOCKET, [6]uintptr{0xffffffff<<32 | unix.AF_VSOCK, unix.SOCK_STREAM}, "EPERM"},
	{"socket AF_UNIX", unix.SYS_SOCKET, [6]uintptr{unix.AF_UNIX, unix.SOCK_STREAM}, ""},
	{"socket AF_NETLINK", unix.SYS_SOCKET, [6]uintptr{unix.AF_NETLINK, unix.SOCK_RAW}, ""},
	{"io_uring_setup", unix.SYS_IO_URING_SETUP, [6]uintptr{1}, "EPERM"},
	{"keyctl", unix.SYS_KEYCTL, [6]uintptr{}, "EPERM"},
	{"add_key", unix.SYS_ADD_KEY, [6]uintptr{}, "EPERM"},
	{"userfaultfd", unix.SYS_USERFAULTFD, [6]uintptr{}, "EPERM"},
	{"bpf", unix.SYS_BPF, [6]uintptr{}, "EPERM"},
	{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [6]uintptr{}, "EPERM"},
	{"unshare", unix.SYS_UNSHARE, [6]uintptr{unix.CLONE_NEWUSER}, "EPERM"},
	{"mount", unix.SYS_MOUNT, [6]uintptr{}, "EPERM"},
	{"clone3", unix.SYS_CLONE3, [6]uintptr{}, "ENOSYS"},
	{"clone NEWNS", unix.SYS_CLONE, [6]uintptr{unix.CLONE_NEWNS}, "EPERM"},
	{"kexec_load", unix.SYS_KEXEC_LOAD, [6]uintptr{}, "EPERM"},
	{"a call of the future", 1000, [6]uintptr{}, "ENOSYS"},
}

func TestDefaultProfileStopsDangerousCalls(t *testing.T) {
	program, err := Compile(Default(Target{Capabilities: []string{"CAP_CHOWN"}, Arch: runtime.GOARCH, Kernel: [2]uint64{6, 1}}))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "inside-filter")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	go func() {
		_ = json.NewEncoder(stdin).Encode(program)
		_ = stdin.Close()
	}()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	var got map[string]string
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	for _, c := range installCalls {
		if got[c.name] != c.want {
			t.Errorf("%s gives %q, want %q", c.name, got[c.name], c.want)
		}
	}
}
