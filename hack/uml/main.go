// Command uml boots a User-Mode Linux kernel on this machine's own root file system and runs tests there:
//
//	go run ./hack/uml [-timeout 20m] [-mem 2G] [-skip REGEXP] [-systemd] "[NAME=VALUE ]PACKAGE[=REGEXP]"...
//
//	go run ./hack/uml [...] "./hack/critest[ ARGUMENT...]"...
//
// REGEXP chooses tests of the package, as go test's -run; all are run without. That of -skip leaves tests out of every package.
//
// NAME=VALUE goes into the environment of that package's tests.
//
// ./hack/critest is run with its arguments, if the program critest is on PATH. It finds what it needs, and a program sudo that executes
// its arguments, in the guest.
//
// The kernel is Debian's package user-mode-linux, Linux 6.1 as a program: cgroup v2 alone, AppArmor, every capability, and none of what
// came later. The root file system is mounted read-only, everything that tests write goes to memory: nothing of a run stays on the
// machine. With -systemd the root file system is a small Debian system that debootstrap makes, in the user's cache folder, once; systemd is its init and runs
// the tests as a service, without AppArmor. BERTH_BIN names a folder of built binaries, as for the other tests.
//
// # Exit status
//
// 0 or 1 as the tests say, 2 when the kernel did not come up or went down before the tests ended.
//
// Needs root (the tests of the guest read everything that this machine's root may) and gcc (see ptrace/ptrace.c).
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "embed"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/berthd"
)

//go:embed ptrace/ptrace.c
var ptrace []byte

// kernel is the emulator's program.
const kernel = "linux.uml"

// exitBroken is the exit status of a guest that did not come to an end by itself.
const exitBroken = 2

type options struct {
	mem, skip string
	timeout   time.Duration
	systemd   bool
	suites    []string // [NAME=VALUE ]PACKAGE[=REGEXP], or critestPackage with its arguments
}

// init keeps main on one thread: the kernel is told to end when the thread does that started it.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	flag.StringVar(&o.mem, "mem", "2G", "`memory` of the guest")
	flag.StringVar(&o.skip, "skip", "", "`regexp` of tests to leave out")
	flag.BoolVar(&o.systemd, "systemd", false, "boot a Debian system whose init is systemd")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "how `long` the guest may take")
	flag.Parse()
	if o.suites = flag.Args(); len(o.suites) == 0 {
		flag.Usage()
		os.Exit(exitBroken)
	}
	if o.suites = possible(o.suites); len(o.suites) == 0 {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	code, err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "uml: %v\n", err)
		code = exitBroken
	}
	os.Exit(code)
}

// run builds what the guest runs, boots it, and returns the exit status of the tests.
func run(ctx context.Context, o options) (code int, err error) {
	dir, err := os.MkdirTemp("/var/tmp", "berth-uml")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(ctx, dir, o); err != nil {
		return 0, err
	}
	if o.systemd {
		root, err := systemdRoot(ctx)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "root"), []byte(root), 0o644)
		}
		if err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("it has not ended within %s", o.timeout))
	defer cancel()
	start := time.Now()
	if err := boot(ctx, dir, o); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return 0, errors.New("the guest ended before its tests did: see the console above")
	}
	fmt.Printf("uml: guest ran for %.1f s, tests ended with %s\n", time.Since(start).Seconds(), text)
	return strconv.Atoi(string(text))
}

// build puts everything that the guest executes into dir.
func build(ctx context.Context, dir string, o options) error {
	source, shim := filepath.Join(dir, "ptrace.c"), filepath.Join(dir, "ptrace.so")
	if err := os.WriteFile(source, ptrace, 0o644); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", shim, source).CombinedOutput(); err != nil {
		return fmt.Errorf("compile ptrace.c: %w\n%s", err, out)
	}
	bin, err := berthd.Build(dir, "./test/probe", "./hack/uml/guest")
	if err != nil {
		return err
	}
	if bin != dir {
		for _, name := range []string{"berthd", "berth-monitor", "berth"} {
			if err := copyProgram(filepath.Join(bin, name), filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	for i, suite := range o.suites {
		make := buildTests
		if isCritest(suite) {
			make = buildCritest
		}
		if err := make(ctx, filepath.Join(dir, "tests"+strconv.Itoa(i)), suite, o.skip); err != nil {
			return err
		}
	}
	return nil
}

// copyProgram copies: a link may lead to what the guest has hidden under its own /tmp or /var/tmp.
func copyProgram(from, to string) error {
	program, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy program: %w", err)
	}
	return os.WriteFile(to, program, 0o755)
}

// buildTests puts a package's tests into dir: the program "run", and the arguments and the environment that it is to be started with.
func buildTests(ctx context.Context, dir, suite, skip string) error {
	top, err := berthd.Top()
	if err != nil {
		return err
	}
	env, suite := splitSuite(suite)
	pkg, pattern, _ := strings.Cut(suite, "=")
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-trimpath", "-tags=grpcnotrace", "-o", filepath.Join(dir, "run"), pkg)
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
	}
	args := "-test.v\n-test.run=" + pattern + "\n-test.skip=" + skip
	return errors.Join(os.WriteFile(filepath.Join(dir, "args"), []byte(args), 0o644), os.WriteFile(filepath.Join(dir, "env"), []byte(env), 0o644))
}

// splitSuite takes NAME=VALUE off the front.
func splitSuite(suite string) (env, rest string) {
	if before, after, found := strings.Cut(suite, " "); found && !strings.HasPrefix(before, "./") {
		return before, after
	}
	return "", suite
}

// boot runs the kernel until the guest powers it off, and prints its console.
func boot(ctx context.Context, dir string, o options) error {
	cmd := exec.Command(kernel, "mem="+o.mem, "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init="+filepath.Join(dir, "guest"),
		"con=null", "con0=fd:0,fd:1", "ssl=null", "quiet", "uml_dir="+dir)
	if !o.systemd { // that system has no apparmor_parser
		cmd.Args = append(cmd.Args, "lsm=landlock,yama,apparmor,bpf", "apparmor=1", "security=apparmor")
	}
	cmd.Env = []string{"LD_PRELOAD=" + filepath.Join(dir, "ptrace.so"), "HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	// The guest's processes are processes here, of one group: they end together, and with this one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	stdin, err := cmd.StdinPipe() // the console's input: the kernel polls it
	if err != nil {
		return err
	}
	defer stdin.Close()
	cmd.Stdout = lines{os.Stdout}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the kernel: %w; install Debian's package user-mode-linux (make setup)", err)
	}
	stop := context.AfterFunc(ctx, func() { unix.Kill(-cmd.Process.Pid, unix.SIGKILL) })
	defer stop()
	err = cmd.Wait()
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // what a panic left
	if ctx.Err() != nil {
		return fmt.Errorf("run the guest: %w", context.Cause(ctx))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "uml: the kernel ended: %v\n", err) // the guest's status file tells what counts
	}
	return nil
}

// lines takes the carriage returns of a console away.
type lines struct{ w io.Writer }

// Write passes on all but carriage returns.
func (l lines) Write(b []byte) (int, error) {
	if _, err := l.w.Write(bytes.ReplaceAll(b, []byte("\r"), nil)); err != nil {
		return 0, err
	}
	return len(b), nil
}
