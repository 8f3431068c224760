package engine

import (
	"errors"
	"runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Error is why a process could not be started: the step that failed, what it was done to, and the kernel's errno.
type Error struct {
	Step  string // such as "mount"
	Path  string // the step's object; may be empty
	Errno syscall.Errno
}

// StepExec is the step of execve, and StepCwd that of the working directory: their errors are about the request, not about the host.
const (
	StepExec = "exec"
	StepCwd  = "change to directory"
)

// Error reads "exec /bin/x: no such file or directory".
func (e *Error) Error() string {
	s := e.Step
	if e.Path != "" {
		s += " " + e.Path
	}
	if e.Step == StepProfile && e.Errno == unix.ENOENT {
		return s + ": it is not loaded"
	}
	if e.Step == StepExec && e.Errno == unix.ENOENT {
		return s + ": executable file not found"
	}
	return s + ": " + e.Errno.Error()
}

// Unwrap lets errors.Is see the errno.
func (e *Error) Unwrap() error { return e.Errno }

// reg is a register of the child; 0 is none.
type reg uint8

// arg is an argument of an operation: a number or a register.
type arg struct {
	value uintptr
	reg   reg
}

func num[T ~int | ~uint | ~int32 | ~uint32 | ~uint64 | ~uintptr](n T) arg {
	return arg{value: uintptr(n)}
}

func (r reg) arg() arg { return arg{reg: r} }

// label is a place in a program that operations before it jump to.
type label struct{ from []*int32 }

// program is a list of operations under construction. All memory that the operations point to is kept alive by keep. A monitor makes
// one for every exec for months: it is frugal with memory.
type program struct {
	ops   []*chunk
	len   int // operations
	steps []step
	keep  []any
	piece []byte // for texts, and what is left of it, or of a further one
	texts []byte
	step  step
	next  reg
	users *UserNamespace // the process's, or nil when it is the host's
	// help is what the parent does for the child that it has cloned, before it waits for it; nil is nothing.
	help func(pid int) error
	proc int // the folder of confinement
	// shared is the descriptor of a pid namespace with others in it, where the process appears at the end; 0 is none.
	shared int
	places
	pipe [2]int // what the child reports by; start makes it, unless it is there
	gate gate
}

// places are folders of the child; 0 is none.
type places struct {
	place reg // where the root file system is attached, if not at the top
	stage reg // the child's own, where volumes are bound before they are attached
}

type step struct{ verb, object string }

// Bounds of what a program that is done leaves to the next one.
const (
	spareChunks = 4
	spareSteps  = 64
	spareKeep   = 128
	pieceSize   = 4 << 10
)

// spare is a program that is done. Execs are many, and each would leave its memory to the garbage collector.
var spare atomic.Pointer[program]

func newProgram(users *UserNamespace) *program {
	p := spare.Swap(nil)
	if p == nil {
		p = &program{piece: make([]byte, pieceSize)}
	}
	p.users, p.texts = users, p.piece
	return p
}

// release makes p the spare one. Nothing of it may be used from then on.
func (p *program) release() {
	if p.pipe[1] > 0 { // it was never started
		unix.Close(p.pipe[0])
		unix.Close(p.pipe[1])
	}
	for _, c := range p.ops {
		*c = chunk{}
	}
	clear(p.ops[min(len(p.ops), spareChunks):])
	clear(p.steps)
	clear(p.keep)
	next := &program{ops: p.ops[:min(len(p.ops), spareChunks)], piece: p.piece}
	if cap(p.steps) <= spareSteps {
		next.steps = p.steps[:0]
	}
	if cap(p.keep) <= spareKeep {
		next.keep = p.keep[:0]
	}
	spare.Store(next)
}

// at names the step that the operations after it belong to.
func (p *program) at(verb, object string) { p.step = step{verb, object} }

// register returns a fresh register. Registers are few: scope frees those taken since.
func (p *program) register() reg {
	p.next++
	if p.next > registers {
		panic("engine: out of registers") // a program's shape is fixed, so every test would see it
	}
	return p.next
}

// scope runs f and gives its registers back.
func (p *program) scope(f func()) {
	saved := p.next
	f()
	p.next = saved
}

// text returns a pointer to s as a C string.
func (p *program) text(s string) arg {
	if len(p.texts) <= len(s) {
		p.texts = make([]byte, max(pieceSize, len(s)+1))
		p.keep = append(p.keep, p.texts)
	}
	b := p.texts[:len(s)+1]
	p.texts = p.texts[len(s)+1:]
	b[copy(b, s)] = 0
	return arg{value: uintptr(unsafe.Pointer(&b[0]))}
}

// memory returns a pointer to v, which the child may read and write.
func memory[T any](p *program, v *T) arg {
	p.keep = append(p.keep, v)
	return arg{value: uintptr(unsafe.Pointer(v))}
}

// slice returns a pointer to the first element of v, or nil.
func slice[T any](p *program, v []T) arg {
	if len(v) == 0 {
		return arg{}
	}
	p.keep = append(p.keep, v)
	return arg{value: uintptr(unsafe.Pointer(&v[0]))}
}

// sys appends a system call.
func (p *program) sys(nr uintptr, args ...arg) *op {
	if p.len == len(p.ops)*chunkOps { // a spare program's pieces are used first
		p.ops = append(p.ops, new(chunk))
	}
	if len(p.steps) == 0 || p.steps[len(p.steps)-1] != p.step {
		p.steps = append(p.steps, p.step)
	}
	o := p.op(p.len)
	p.len++
	o.nr, o.step = nr, uint16(len(p.steps)-1)
	for i, a := range args {
		o.args[i], o.regs[i] = a.value, uint8(a.reg)
	}
	return o
}

// op is an operation that there is, or the place of the next one.
func (p *program) op(n int) *op { return &p.ops[n/chunkOps][n%chunkOps] }

// to keeps the result in r.
func (o *op) to(r reg) *op { o.dst = uint8(r); return o }

// upTo makes the call again with argument i, a number, one larger each time, until it was last.
func (o *op) upTo(i int, last uint8) *op {
	o.counted, o.last = uint8(i)+1, last
	return o
}

// any lets the program go on after an error.
func (o *op) any() *op { o.ignore = true; return o }

// onError jumps to l at one of these errors.
func (o *op) onError(l *label, errnos ...syscall.Errno) *op {
	for i := range o.on {
		if len(errnos) > 0 && o.on[i].errno == 0 {
			o.on[i].errno = uint32(errnos[0])
			l.from = append(l.from, &o.on[i].to)
			errnos = errnos[1:]
		}
	}
	return o
}

// onSuccess jumps to l.
func (o *op) onSuccess(l *label) *op {
	l.from = append(l.from, &o.then)
	return o
}

// here puts l in front of the next operation.
func (p *program) here(l *label) {
	for _, to := range l.from {
		*to = int32(p.len)
	}
}

func (p *program) close(r reg) { p.sys(unix.SYS_CLOSE, r.arg()).any() }

// store writes the register's value to *v.
func (p *program) store(r reg, v *int32) {
	o := p.sys(0, r.arg())
	o.kind, o.store = opStore, v
}

func (p *program) makePipe() error {
	if p.pipe[1] > 0 {
		return nil
	}
	if err := unix.Pipe2(p.pipe[:], unix.O_CLOEXEC); err != nil {
		return &Error{"make", "the start pipe", errno(err)}
	}
	return nil
}

// start clones a child that runs the program and waits until it has executed or failed.
func (p *program) start(flags uint64, cgroup, pidns int) (Child, error) {
	if err := p.makePipe(); err != nil {
		return Child{}, err
	}
	pipe := p.pipe
	p.pipe = [2]int{} // closed here
	defer unix.Close(pipe[0])
	pidfd := new(int32)
	// By memory: the kernel gets the address as a number, so it must be one that no growing stack takes along.
	args := &cloneArgs{flags: flags | unix.CLONE_PIDFD, exitSignal: uint64(unix.SIGCHLD), pidfd: uint64(memory(p, pidfd).value)}
	if cgroup >= 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(cgroup)
	}
	own := -1
	if pidns >= 0 {
		var err error
		if own, err = unix.Open("/proc/thread-self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			unix.Close(pipe[1])
			return Child{}, &Error{"open", "the monitor's pid namespace", errno(err)}
		}
		defer unix.Close(own)
	}
	pid, err := fork(args, p, pipe[1], childNamespace{pidns, own})
	runtime.KeepAlive(p.keep)
	unix.Close(pipe[1])
	if err != nil {
		return Child{}, &Error{"clone", "", errno(err)}
	}
	c := Child{PID: pid, PIDFD: int(*pidfd)}
	if p.help != nil {
		if err := p.help(pid); err != nil {
			c.discard()
			return Child{}, err
		}
	}
	failed, err := p.reports(pipe[0], &c)
	if err == nil && failed == nil {
		return c, nil
	}
	c.discard()
	switch {
	case failed != nil:
		return Child{}, failed
	case p.gate.refused != nil:
		return Child{}, p.gate.refused
	}
	return Child{}, &Error{"wait for", "the child", errno(err)}
}

// reports reads what the child tells until its end of the pipe is closed, as execve does: nothing, or why it failed. A
// child that gave birth to another one stands back for it: that one is c from then on. One that waits goes on when whoever was asked says so.
//
// A child is born once. Until execve whoever traces the process can write a report, and must not have it be any process of the host.
func (p *program) reports(pipe int, c *Child) (failed *Error, err error) {
	for stoodBack := false; ; {
		var report [8]byte
		n, err := readFull(pipe, report[:])
		if err != nil || n == 0 {
			return failed, err
		}
		if n < len(report) {
			return failed, unix.EIO
		}
		first, second := *(*uint32)(unsafe.Pointer(&report[0])), *(*uint32)(unsafe.Pointer(&report[4]))
		if first == paused {
			if err := p.gate.open(Point(second), *c); err != nil {
				return failed, err
			}
			continue
		}
		if first != born {
			s := p.steps[p.op(min(int(first), p.len-1)).step]
			failed = &Error{s.verb, s.object, syscall.Errno(second)}
			continue
		}
		if stoodBack {
			return failed, unix.EPROTO
		}
		stoodBack = true
		parent := *c
		c.PID = int(second)
		// It is not reaped by anyone else, so the ID is its own.
		if c.PIDFD, err = unix.PidfdOpen(c.PID, 0); err != nil {
			unix.Kill(c.PID, unix.SIGKILL)
		}
		parent.discard() // it has ended, or ends now
		if err != nil {
			return failed, err
		}
	}
}

// Child is a process that the engine started. The caller waits for it and closes PIDFD.
type Child struct {
	PID   int
	PIDFD int
	// Master is the terminal's master, or -1.
	Master int
}

// discard ends a child that failed, or is not needed any more.
func (c Child) discard() {
	if c.PIDFD >= 0 {
		defer unix.Close(c.PIDFD)
		unix.PidfdSendSignal(c.PIDFD, unix.SIGKILL, nil, 0)
	}
	for {
		if _, err := unix.Wait4(c.PID, nil, unix.WALL, nil); err != unix.EINTR {
			break // ECHILD: the caller's reaper was first
		}
	}
}

// stepError is err when that names its step already, else an Error of this step.
func stepError(err error, verb, object string) error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{verb, object, errno(err)}
}

func errno(err error) syscall.Errno {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return unix.EIO
}

func readFull(fd int, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || m == 0 {
			return n, err
		}
		n += m
	}
	return n, nil
}
