package berthd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/invariants"
)

// Options of a Process. Empty folders and files mean the daemon's own defaults.
type Options struct {
	Bin                         string // folder of the binaries
	Root, State, Socket, Config string
	Bridge                      string // as in the configuration; "" = the default of the root
	Log                         string // file that takes the daemon's standard error; "" = none
	Env                         []string
	CgroupParents               []string // see invariants.Daemon
	Systemd                     bool     // the cgroup driver is systemd
	Verbosity                   int
}

// Process is one berthd, which may be started and killed many times.
type Process struct {
	*Client

	opts   Options
	cmd    *exec.Cmd
	exited chan error
	last   *os.ProcessState
}

// answerWait is how long a started daemon may take to answer.
const answerWait = time.Minute

// New prepares a daemon and clients of its socket, and starts nothing. Close ends the clients.
func New(opts Options) (*Process, error) {
	if opts.Root == "" {
		opts.Root = "/var/lib/berth"
	}
	if opts.State == "" {
		opts.State = "/run/berth"
	}
	if opts.Socket == "" {
		opts.Socket = filepath.Join(opts.State, "berth.sock")
	}
	if opts.Bridge == "" {
		opts.Bridge = "berth0"
		if i := (invariants.Daemon{Root: opts.Root}).Instance(); i != "" {
			opts.Bridge = "berth-" + i
		}
	}
	client, err := Dial(opts.Socket)
	if err != nil {
		return nil, err
	}
	return &Process{Client: client, opts: opts}, nil
}

// Options tells where the daemon keeps its things, defaults filled in.
func (p *Process) Options() Options { return p.opts }

// Use makes Start start the binaries of another folder from now on.
func (p *Process) Use(bin string) { p.opts.Bin = bin }

// Daemon describes the process to package invariants.
func (p *Process) Daemon() invariants.Daemon {
	return invariants.Daemon{Root: p.opts.Root, State: p.opts.State, Bridge: p.opts.Bridge, PID: p.PID(), CgroupParents: p.opts.CgroupParents, Systemd: p.opts.Systemd}
}

// PID is 0 while the daemon does not run.
func (p *Process) PID() int {
	if p.cmd == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// Start starts the daemon and waits until it answers.
func (p *Process) Start(ctx context.Context) error {
	if err := p.Begin(); err != nil {
		return err
	}
	return p.answer(ctx)
}

// Begin starts the daemon and waits for nothing.
func (p *Process) Begin() error {
	if p.cmd != nil {
		return errors.New("start berthd: it runs")
	}
	cmd := exec.Command(filepath.Join(p.opts.Bin, "berthd"), "--root", p.opts.Root, "--state", p.opts.State, "--socket", p.opts.Socket)
	if p.opts.Config != "" {
		cmd.Args = append(cmd.Args, "--config", p.opts.Config)
	}
	if p.opts.Verbosity > 0 {
		cmd.Args = append(cmd.Args, fmt.Sprintf("--v=%d", p.opts.Verbosity))
	}
	cmd.Env = append(os.Environ(), p.opts.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's ^C is not for it
	if p.opts.Log != "" {
		log, err := os.OpenFile(p.opts.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return fmt.Errorf("start berthd: %w", err)
		}
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start berthd: %w", err)
	}
	p.cmd, p.exited = cmd, make(chan error, 1)
	go func(exited chan error) { exited <- cmd.Wait() }(p.exited)
	return nil
}

// answer waits for the first answer, or for the end of a daemon that could not start.
func (p *Process) answer(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	answered := make(chan error, 1)
	go func() {
		for {
			_, err := p.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
			if status.Code(err) == codes.Unavailable && ctx.Err() == nil {
				continue // the connection of the daemon before
			}
			answered <- err
			return
		}
	}()
	select {
	case err := <-p.exited:
		p.cmd = nil
		return fmt.Errorf("start berthd: it ended: %v; its log is %s", err, p.opts.Log)
	case err := <-answered:
		if err != nil {
			return errors.Join(fmt.Errorf("start berthd: ask for its version: %w", err), p.Kill())
		}
		return nil
	}
}

// Kill ends the daemon with SIGKILL and waits for its end. Pods live on. A daemon that does not run is left alone.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL) }

// Stop ends the daemon in an orderly way and waits for its end. Pods live on.
func (p *Process) Stop() error { return p.end(syscall.SIGTERM) }

// Reload tells the daemon to read its configuration again.
func (p *Process) Reload() error {
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return fmt.Errorf("reload berthd: %w", err)
	}
	return nil
}

func (p *Process) end(sig syscall.Signal) error {
	if p.cmd == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal berthd: %w", err)
	}
	select {
	case <-p.exited:
	case <-time.After(answerWait):
		return fmt.Errorf("berthd (PID %d) does not end after %s", p.PID(), sig)
	}
	p.last, p.cmd = p.cmd.ProcessState, nil
	return nil
}

// Last is how the daemon ended that Kill or Stop ended last.
func (p *Process) Last() *os.ProcessState { return p.last }
