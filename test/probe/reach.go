package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reach does to another process what a debugger does, and a thief.
func reach(args []string) error {
	pid, err := find(args[0])
	if err != nil {
		return err
	}
	proc := "/proc/" + strconv.Itoa(pid)
	runtime.LockOSThread() // a tracer is a thread
	for _, try := range []struct {
		name string
		do   func() error
	}{
		{"mem", func() error { return open(proc+"/mem", unix.O_RDWR) }},
		{"environ", func() error { return open(proc+"/environ", unix.O_RDONLY) }},
		{"root", func() error { return open(proc+"/root", unix.O_PATH) }},
		{"fd", func() error { _, err := os.ReadDir(proc + "/fd"); return err }},
		{"ns", func() error { return open(proc+"/ns/user", unix.O_RDONLY) }},
		{"getfd", func() error {
			pidfd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return err
			}
			_, err = unix.PidfdGetfd(pidfd, 0, 0)
			return err
		}},
		{"trace", func() error { return unix.PtraceSeize(pid) }},
	} {
		fmt.Println(try.name, outcome(try.do()))
	}
	return nil
}

// find waits for a process by its name, or for a new one.
func find(name string) (int, error) {
	var known []string
	for i := range 2000 {
		names, err := filepath.Glob("/proc/[0-9]*/comm")
		if err != nil {
			return 0, err
		}
		if i == 0 && name == "new" {
			known = names
			fmt.Println("ready")
		}
		for _, path := range names {
			text, _ := os.ReadFile(path)
			if name == "new" && !slices.Contains(known, path) || strings.TrimSpace(string(text)) == name {
				return strconv.Atoi(filepath.Base(filepath.Dir(path)))
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return 0, fmt.Errorf("no process is named %s", name)
}

// outcome is "ok" or the errno's name.
func outcome(err error) string {
	var errno syscall.Errno
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &errno):
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// mountProc mounts /proc in namespaces of its own, as a container in a container does.
func mountProc() error {
	cmd := exec.Command("mount", "-t", "proc", "proc", "/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// setCaps gives a copy of this program a capability, and sees that it has it when an ordinary user runs it.
func setCaps() error {
	const path = "/tmp/capable"
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, program, 0o755); err != nil {
		return err
	}
	// struct vfs_cap_data, version 2: CAP_NET_RAW, permitted and effective.
	value := make([]byte, 20)
	value[0], value[3], value[5] = 1, 2, 1<<(unix.CAP_NET_RAW-8)
	if err := unix.Setxattr(path, "security.capability", value, 0); err != nil {
		return err
	}
	cmd := exec.Command(path, "call", "socket-raw")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	out, err := cmd.CombinedOutput()
	if err == nil && string(out) != "ok\n" {
		err = fmt.Errorf("with the capability: %s", out)
	}
	return err
}
