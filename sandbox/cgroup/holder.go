package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A holder is a process that does nothing, in a leaf of its own below a scope: systemd ends a scope that has no process, and with it the leaf of a
// container whose exit is not told yet. Monitors cannot be that process: they must not count against the limits that the kubelet sets on the slice above.
//
// It is not a process of the kind that Go starts, which takes a MiB: its program is the few instructions of holderCode, two pages of memory.

// Where the program is loaded, and sizes of the ELF headers (elf(5)).
const (
	holderAddress    = 0x400000
	elfHeader        = 64
	programHeader    = 56
	programHeaders   = 2
	holderCodeOffset = elfHeader + programHeaders*programHeader
)

// holderProgram is an executable of code alone.
func holderProgram() []byte {
	le := binary.LittleEndian
	size := uint64(holderCodeOffset + len(holderCode))
	b := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...) // 64 bits, little endian
	b = le.AppendUint16(b, 2)                                      // executable
	b = le.AppendUint16(b, holderMachine)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, holderAddress+holderCodeOffset)
	b = le.AppendUint64(b, elfHeader)
	b = le.AppendUint64(b, 0) // no sections
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{elfHeader, programHeader, programHeaders, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	for _, p := range []struct {
		kind, flags         uint32
		address, size, page uint64
	}{
		{1, 5, holderAddress, size, 0x10000}, // PT_LOAD, read and execute
		{0x6474e551, 6, 0, 0, 16},            // PT_GNU_STACK, read and write
	} {
		b = le.AppendUint32(b, p.kind)
		b = le.AppendUint32(b, p.flags)
		for _, v := range []uint64{0, p.address, p.address, p.size, p.size, p.page} {
			b = le.AppendUint64(b, v)
		}
	}
	return append(b, holderCode...)
}

// openHolder makes the program's file, in memory.
func openHolder() (*os.File, error) {
	fd, err := unix.MemfdCreate("berth-hold", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 every memfd is executable, and the flag is not known
		fd, err = unix.MemfdCreate("berth-hold", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("make the holder's program: %w", err)
	}
	out := os.NewFile(uintptr(fd), "berth-hold")
	defer out.Close()
	if _, err := out.Write(holderProgram()); err != nil {
		return nil, fmt.Errorf("make the holder's program: %w", err)
	}
	return os.Open("/proc/self/fd/" + strconv.Itoa(fd)) // what is open for writing cannot be executed
}

// holder is a running one.
type holder struct {
	pid   int
	pidfd *os.File // non-blocking, for the poller
	keep  *os.File // its end ends a holder that is not kept yet; nil: it is
}

// startHolder starts one, which ends with this process unless it is kept: nothing names a holder that is in no scope yet. name is what its command line
// says.
func startHolder(program *os.File, name string) (*holder, error) {
	wait, keep, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the holder of %s: %w", name, err)
	}
	defer wait.Close()
	pidfd := -1
	p, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(program.Fd())), []string{"berth-hold", name},
		&os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{wait}, Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the holder of %s: %w", name, err), keep.Close())
	}
	unix.SetNonblock(pidfd, true) // a pidfd always takes the flag
	h := &holder{pid: p.Pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), keep: keep}
	return h, p.Release()
}

// settle lets the holder outlive this process.
func (h *holder) settle() error {
	_, err := h.keep.Write([]byte{1})
	err = errors.Join(err, h.keep.Close())
	h.keep = nil
	if err != nil {
		return fmt.Errorf("keep a holder: %w", err)
	}
	return nil
}

// findHolder takes one over that an earlier daemon started.
func findHolder(pid int) (*holder, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return &holder{pid: pid, pidfd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// wait returns when the holder has ended, true, or pidfd was closed.
func (h *holder) wait() bool {
	raw, err := h.pidfd.SyscallConn()
	if err != nil {
		return false
	}
	ended := false
	raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		ended = err == nil && n == 1
		if ended {
			unix.Waitid(unix.P_PIDFD, int(fd), nil, unix.WEXITED|unix.WNOHANG, nil) // ECHILD when an earlier daemon started it
		}
		return ended
	})
	return ended
}

// kill ends one that nobody is going to use.
func (h *holder) kill() error {
	err := unix.PidfdSendSignal(int(h.pidfd.Fd()), unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	h.wait()
	if h.keep != nil {
		err = errors.Join(err, h.keep.Close())
	}
	return errors.Join(err, h.pidfd.Close())
}
