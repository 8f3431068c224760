package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/harness"
)

// TestHowTheDaemonWasStartedIsNotThePods: a descriptor, priorities, processors, and signals that are ignored and blocked are the daemon's own, by
// whatever script it was started.
func TestHowTheDaemonWasStartedIsNotThePods(t *testing.T) {
	bin, marker := t.TempDir(), filepath.Join(t.TempDir(), "marker")
	script := fmt.Sprintf("#!/bin/sh\nexec 9>%s\numask 077\nulimit -S -c \"$(ulimit -H -c)\"\nexec nice -n 5 ionice -c 2 -n 7 chrt -b 0 taskset -c 0 env --ignore-signal --block-signal %s \"$@\"\n",
		marker, filepath.Join(harness.Bin(t), "berthd"))
	if err := os.WriteFile(filepath.Join(bin, "berthd"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	d := harness.Start(t, harness.WithBin(bin), harness.WithConfig(otherHandler(t)))
	ordinary := schedulingOf(t, 1)
	if s := schedulingOf(t, d.PID()); s == ordinary {
		t.Fatalf("the daemon was started with %s: this test tests nothing", s)
	}
	var cores unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &cores); err != nil {
		t.Fatal(err)
	}
	for _, handler := range []string{"", "other"} {
		pod := runWith(d, "started"+handler, handler)
		c := pod.Run(d.Container("c", []string{"sleep", "1000"}))
		monitor := monitorPID(t, pod)
		for _, fd := range listFolder(t, fmt.Sprintf("/proc/%d/fd", monitor)) {
			if target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", monitor, fd)); target == marker {
				t.Errorf("handler %q: descriptor %s of the monitor is %s", handler, fd, target)
			}
		}
		pid := runsProgram(c, handler)
		if got := schedulingOf(t, pid); got != ordinary {
			t.Errorf("handler %q: the first process has %s, want %s", handler, got, ordinary)
		}
		if status := readRaw(t, fmt.Sprintf("/proc/%d/status", pid)); !strings.Contains(status, "\nUmask:\t0022\n") {
			t.Errorf("handler %q: the first process has the umask of the daemon's start: %q", handler, status)
		}
		var got unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_CORE, nil, &got); err != nil || got.Cur != cores.Max {
			t.Errorf("handler %q: the limit on core files is %d (%v), want %d, with which the daemon was started", handler, got.Cur, err, cores.Max)
		}
		for who, status := range map[string]string{"first process": readRaw(t, fmt.Sprintf("/proc/%d/status", pid)), "exec": c.Exec("cat", "/proc/self/status").Stdout} {
			for _, field := range []string{"SigBlk", "SigIgn"} {
				if got := capabilities(t, status, field); got != 0 {
					t.Errorf("handler %q: %s of the %s = %x", handler, field, who, got)
				}
			}
		}
	}
}

// runsProgram is the first process of a container once it is the program that was asked for, whatever makes it.
func runsProgram(c *harness.Container, handler string) int {
	c.T.Helper()
	pid := c.PID()
	c.Eventually(harness.Timeout, "handler "+handler+" has executed the program", func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		return err == nil && strings.HasPrefix(string(line), "sleep\x00")
	})
	return pid
}

// schedulingOf is how a process is scheduled: policy and nice value (proc_pid_stat(5)), I/O priority (ioprio_get(2)), and its processors.
func schedulingOf(t testing.TB, pid int) string {
	t.Helper()
	stat := readRaw(t, fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]) // the first is field 3
	const ofProcess = 1
	io, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ofProcess, uintptr(pid), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	_, rest, _ := strings.Cut(readRaw(t, fmt.Sprintf("/proc/%d/status", pid)), "Cpus_allowed_list:\t")
	cpus, _, _ := strings.Cut(rest, "\n")
	return fmt.Sprintf("policy %s, nice %s, I/O priority %d, processors %s", fields[41-3], fields[19-3], io, cpus)
}

func listFolder(t testing.TB, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
