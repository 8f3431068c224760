package engine

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The runtime's side of a fork, as package syscall uses it: signals are blocked around the clone, and the child's
// handlers are reset before anything else runs there.
//
//go:linkname runtimeBeforeFork syscall.runtime_BeforeFork
func runtimeBeforeFork()

//go:linkname runtimeAfterFork syscall.runtime_AfterFork
func runtimeAfterFork()

//go:linkname runtimeAfterForkInChild syscall.runtime_AfterForkInChild
func runtimeAfterForkInChild()

// What an operation does.
const (
	opSyscall = iota
	opStore   // store args[0] as 32 bits at *store
	opTry     // execve: go on when it fails, and keep the most telling errno
	opGiveUp  // report the errno that opTry kept
	opBirth   // clone: the child goes on, the parent reports the child's process ID and ends
	opRead    // read: the end of the file is an error
)

// op is one operation of a program.
type op struct {
	nr   uintptr
	args [6]uintptr
	// regs[i] names a register plus one that replaces args[i]; 0 means args[i] itself.
	regs   [6]uint8
	dst    uint8 // register plus one that takes the result
	kind   uint8
	ignore bool // an error is no error
	// counted is the number plus one of an argument that counts up: the operation runs for each value up to last.
	counted, last uint8
	step          uint16 // of program.steps
	then          int32  // where a success goes on; 0 is the next operation
	on            [3]branch
	store         *int32
}

// branch is taken when an operation fails with errno.
type branch struct {
	errno uint32
	to    int32
}

// chunk is a piece of a program. Operations stay where they are while the program grows.
type chunk [chunkOps]op

const chunkOps = 32

const registers = 16

// What stands where a report has its operation, when it is no failure.
const (
	born   = 1<<32 - 1 // and a process ID follows
	paused = 1<<32 - 2 // and the point follows at which the child waits
)

// openAgain bounds how often in all a child asks again when openat2 could not tell that a ".." stays inside the root: any
// rename or mount on the host does that (openat2(2), EAGAIN), and a hostile one does it without end.
const openAgain = 1 << 12

// childState is all the memory that the child's loop writes to.
type childState struct {
	regs   [registers]uintptr
	report [2]uint32 // operation, errno; or born, process ID
}

// cloneArgs is struct clone_args of clone3(2), up to the member cgroup.
type cloneArgs struct {
	flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls, setTID, setTIDSize, cgroup uint64
}

const cloneArgsSize = unsafe.Sizeof(cloneArgs{})

// childNamespace is the pid namespace that a child is born in, and the caller's own; -1 is none, and not needed.
type childNamespace struct{ pidns, own int }

// fork clones a child that runs p and reports a failure to the descriptor report. It returns the child's process ID in the
// caller's namespace.
func fork(args *cloneArgs, p *program, report int, ns childNamespace) (int, error) {
	state := new(childState)
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	if ns.pidns >= 0 {
		// setns of a pid namespace changes where this thread's children are born and nothing else, so the
		// thread is locked for that long and then looks like any other again.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := unix.Setns(ns.pidns, unix.CLONE_NEWPID); err != nil {
			return 0, err
		}
		defer unix.Setns(ns.own, unix.CLONE_NEWPID) // cannot fail: the namespace is the thread's own
	}
	pid, errno := cloneAndRun(args, &p.ops[0], uintptr(p.len), uintptr(report), state)
	runtime.KeepAlive(p)
	if errno != 0 {
		return 0, errno
	}
	return int(pid), nil
}

//go:noinline
//go:norace
func cloneAndRun(args *cloneArgs, ops **chunk, n, report uintptr, state *childState) (uintptr, syscall.Errno) {
	runtimeBeforeFork()
	pid, _, errno := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), cloneArgsSize, 0)
	if errno != 0 || pid != 0 {
		runtimeAfterFork()
		return pid, errno
	}
	runtimeAfterForkInChild()
	run(ops, n, report, state)
	return 0, 0
}

// run is the child: it never returns. It may not grow the stack, allocate, or call anything that does.
//
//go:nosplit
//go:norace
//go:noinline
func run(ops **chunk, n, report uintptr, state *childState) {
	var pc, next, again uintptr
	var kept syscall.Errno
	for pc < n {
		o := &(*(**chunk)(unsafe.Add(unsafe.Pointer(ops), pc/chunkOps*unsafe.Sizeof(ops))))[pc%chunkOps]
		for i := range o.regs {
			if o.regs[i] != 0 {
				o.args[i] = state.regs[(o.regs[i]-1)&(registers-1)]
			}
		}
		var r uintptr
		var errno syscall.Errno
		switch o.kind {
		case opStore:
			*o.store = int32(o.args[0])
		case opGiveUp:
			errno = kept
		default:
			r, _, errno = syscall.RawSyscall6(o.nr, o.args[0], o.args[1], o.args[2], o.args[3], o.args[4], o.args[5])
		}
		if errno == 0 && o.kind == opBirth && r != 0 {
			state.report[0], state.report[1] = born, uint32(r)
			syscall.RawSyscall(unix.SYS_WRITE, report, uintptr(unsafe.Pointer(&state.report)), unsafe.Sizeof(state.report))
			for {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
		}
		if errno == 0 && o.kind == opRead && r == 0 {
			errno = unix.EPIPE
		}
		next = pc + 1
		if counted := &o.args[(o.counted-1)&7%6]; o.counted != 0 && *counted < uintptr(o.last) {
			*counted++ // the child's own copy
			next = pc
		}
		if errno == 0 {
			if o.dst != 0 {
				state.regs[(o.dst-1)&(registers-1)] = r
			}
			pc = next
			if o.then != 0 {
				pc = uintptr(o.then)
			}
			continue
		}
		if errno == unix.EAGAIN && o.nr == unix.SYS_OPENAT2 && again < openAgain {
			again++
			continue
		}
		if o.kind == opTry && (errno == unix.ENOENT || errno == unix.ENOTDIR || errno == unix.EACCES) {
			if kept == 0 || errno == unix.EACCES {
				kept = errno
			}
			pc++
			continue
		}
		to := int32(0)
		for i := range o.on {
			if o.on[i].to != 0 && o.on[i].errno == uint32(errno) {
				to = o.on[i].to
			}
		}
		switch {
		case to != 0:
			pc = uintptr(to)
		case o.ignore:
			pc = next
		default:
			state.report[0], state.report[1] = uint32(pc), uint32(errno)
			syscall.RawSyscall(unix.SYS_WRITE, report, uintptr(unsafe.Pointer(&state.report)), unsafe.Sizeof(state.report))
			for {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 127, 0, 0)
			}
		}
	}
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 126, 0, 0)
	}
}
