package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// runSuites runs the packages' tests in turn, and returns 1 when one of them fails.
func runSuites() (int, error) {
	failed := 0
	for i := 0; ; i++ {
		dir := filepath.Join(shared, "tests"+strconv.Itoa(i))
		args, err := os.ReadFile(filepath.Join(dir, "args"))
		if errors.Is(err, os.ErrNotExist) {
			return failed, nil
		}
		if err != nil {
			return 0, err
		}
		env, err := os.ReadFile(filepath.Join(dir, "env"))
		if err != nil {
			return 0, err
		}
		code, err := runTests(filepath.Join(dir, "run"), strings.Split(string(args), "\n"), string(env))
		if err != nil {
			return 0, err
		}
		if code != 0 {
			failed = 1
		}
	}
}

// runTests runs one test binary and returns its exit status. As the first process this one reaps whatever is left to it.
func runTests(name string, args []string, env string) (int, error) {
	p, err := os.StartProcess(name, append([]string{name}, args...), &os.ProcAttr{
		Dir: "/tmp", Files: []*os.File{nil, os.Stdout, os.Stdout},
		Env: []string{"PATH=" + shared + ":" + path, "HOME=/tmp", "BERTH_BIN=" + shared, "BERTH_PROBE=" + shared, env},
	})
	if err != nil {
		return 0, fmt.Errorf("start tests: %w", err)
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for tests: %w", err)
		case pid == p.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == p.Pid:
			return status.ExitStatus(), nil
		}
	}
}
