package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime/engine"
	"github.com/berthd/berth/sandbox/monitor/wire"
)

// Pod is what a monitor is started for.
type Pod struct {
	SandboxID string
	Socket    string // in a folder of mode 0700
	RecordDir string
	Hostname  string
	Sysctls   [][2]string
	// The namespaces that the pod has of its own; the others are the host's.
	NewNet, NewIPC, NewUTS bool
	SharedPID              bool
	// UIDs and GIDs map a user namespace of the pod's own, which then owns the others that it has. Empty: the host's.
	UIDs, GIDs []engine.IDMap
}

// Process is a monitor that was started.
type Process struct {
	PID       int
	PIDFD     *os.File // the caller's
	StartTime uint64   // clock ticks since boot (proc_pid_stat(5), field 22): with PID the identity of the process
}

// Spawner starts monitors.
type Spawner struct {
	binary  *os.File
	unified int         // folder of the monitors' cgroup in the unified hierarchy, or -1
	work    chan func() // runs on a thread that is in the monitors' cgroups of the v1 hierarchies
	done    sync.WaitGroup
}

// NewSpawner seals a copy of the monitor's binary. cgroups are the folders of the cgroup that monitors live in; they
// are borrowed until Close.
func NewSpawner(binary string, cgroups []*os.File) (*Spawner, error) {
	sealed, err := seal(binary)
	if err != nil {
		return nil, fmt.Errorf("seal a copy of %s: %w", binary, err)
	}
	s := &Spawner{binary: sealed, unified: -1, work: make(chan func())}
	var tasks []string
	for _, f := range cgroups {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			sealed.Close()
			return nil, fmt.Errorf("look at cgroup %s: %w", f.Name(), err)
		}
		if st.Type == unix.CGROUP2_SUPER_MAGIC {
			s.unified = int(f.Fd())
		} else {
			tasks = append(tasks, f.Name()+"/tasks")
		}
	}
	ready := make(chan error)
	s.done.Go(func() { s.serve(tasks, ready) })
	if err := <-ready; err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// serve runs work on a thread of its own. In the v1 hierarchies a thread can be in another cgroup than its process and a
// new process starts where the thread is: so no monitor is ever moved, which would take a lock that waits for an RCU
// grace period. The thread is not unlocked: it ends with the goroutine.
func (s *Spawner) serve(tasks []string, ready chan<- error) {
	runtime.LockOSThread()
	beOrdinary()
	var err error
	for _, path := range tasks {
		if e := os.WriteFile(path, []byte(strconv.Itoa(unix.Gettid())), 0); e != nil {
			err = errors.Join(err, fmt.Errorf("join the monitors' cgroup: %w", e))
		}
	}
	ready <- err
	for f := range s.work {
		f()
	}
}

// beOrdinary gives the calling thread, and so the monitors that it starts and all that they start, the scheduling of a process of which nobody has
// said anything: that of the daemon is not the pods'. What the host does not allow stays.
func beOrdinary() {
	unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}, 0) //nolint:errcheck // with the nice value 0
	var all [1 << 10]byte                                                                           // processors, a bit each
	for i := range all {
		all[i] = 0xff
	}
	unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(len(all)), uintptr(unsafe.Pointer(&all)))
	const whoProcess, noClass = 1, 0 // linux/ioprio.h
	unix.RawSyscall(unix.SYS_IOPRIO_SET, whoProcess, 0, noClass)
}

// Close ends the Spawner, not the monitors.
func (s *Spawner) Close() error {
	close(s.work)
	s.done.Wait()
	return s.binary.Close()
}

// Spawn makes the socket and starts a monitor. It returns as soon as the process and its namespaces are there; Hello
// waits until it is up. On an error nothing is left but perhaps the socket.
func (s *Spawner) Spawn(ctx context.Context, p Pod) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	setup := wire.Setup{SandboxID: p.SandboxID, RecordDir: p.RecordDir, Hostname: p.Hostname, SharedPID: p.SharedPID,
		UIDs: p.UIDs, GIDs: p.GIDs}
	for _, kv := range p.Sysctls {
		setup.Sysctls = append(setup.Sysctls, wire.Sysctl{Key: kv[0], Value: kv[1]})
	}
	socket, err := wire.Listen(p.Socket)
	if err != nil {
		return nil, err
	}
	listener := os.NewFile(uintptr(socket), p.Socket)
	defer listener.Close()
	made, err := makeNamespaces(p)
	if err != nil {
		return nil, err
	}
	defer made.close()
	var process *Process
	finished := make(chan struct{})
	s.work <- func() {
		defer close(finished)
		process, err = s.start(p, wire.Encode(&setup), listener, made)
	}
	<-finished
	return process, err
}

func (s *Spawner) start(p Pod, setup []byte, listener *os.File, made namespaces) (*Process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make set-up pipe: %w", err)
	}
	defer r.Close()
	if len(setup) > 64<<10 {
		w.Close()
		return nil, fmt.Errorf("set up monitor: %d bytes of names and kernel parameters are more than 64 KiB", len(setup))
	}
	_, err = w.Write(setup) // fits into the pipe: nobody needs to read yet
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, fmt.Errorf("write set-up: %w", err)
	}
	pidfd := -1
	cmd := &exec.Cmd{
		Path:        "/proc/self/fd/" + strconv.Itoa(int(s.binary.Fd())),
		Args:        []string{"berth-monitor", "--pod", p.SandboxID},
		Env:         []string{"GOMAXPROCS=1", "GOGC=25"}, // a monitor is idle most of its life: small before fast
		Dir:         "/",
		Stdin:       r,
		ExtraFiles:  []*os.File{listener},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd, Cloneflags: p.cloneFlags()},
	}
	if s.unified >= 0 {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, s.unified
	}
	if err := made.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Args[0], err)
	}
	unix.SetNonblock(pidfd, true) // so that a goroutine can wait for it; a pidfd always takes the flag
	process := &Process{PID: cmd.Process.Pid, PIDFD: os.NewFile(uintptr(pidfd), "pidfd")}
	if process.StartTime, err = startTime(process.PID); err != nil {
		err = errors.Join(err, unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0), process.PIDFD.Close())
		cmd.Wait() // says that it was killed
		return nil, err
	}
	// The caller waits by pidfd; the process handle of package os is not needed.
	return process, cmd.Process.Release()
}

func (p *Pod) cloneFlags() uintptr {
	var flags uintptr
	if len(p.UIDs) > 0 {
		return 0
	}
	if p.NewNet {
		flags |= unix.CLONE_NEWNET
	}
	if p.NewIPC {
		flags |= unix.CLONE_NEWIPC
	}
	if p.NewUTS {
		flags |= unix.CLONE_NEWUTS
	}
	return flags
}

// startTime reads field 22 of /proc/PID/stat; the name in parentheses before it may hold anything.
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(fields))
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// seal copies a binary to memory that nothing can change (memfd_create(2), F_ADD_SEALS).
func seal(path string) (*os.File, error) {
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	fd, err := unix.MemfdCreate("berth-monitor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 every memfd is executable, and the flag is not known
		fd, err = unix.MemfdCreate("berth-monitor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	out := os.NewFile(uintptr(fd), "berth-monitor")
	defer out.Close()
	if _, err := out.ReadFrom(in); err != nil {
		return nil, err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(out.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, err
	}
	// A file that is open for writing cannot be executed (ETXTBSY), so it is opened again.
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd))
}
