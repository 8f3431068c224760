package external

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/oci/runtime"
)

// Bounds of what is executed here.
const (
	featuresTimeout = 5 * time.Second
	deleteTimeout   = 10 * time.Second
)

// Program is an OCI runtime on this host.
type Program struct {
	Path    string
	Root    string   // the folder in which it keeps its state
	Options []string // global options, which stand before the command
}

// line is a command line that logs into a bundle's folder, or that of an exec.
func (p *Program) line(folder string, command ...string) []string {
	global := append(slices.Clone(p.Options), "--root", p.Root, "--log", filepath.Join(folder, logName), "--log-format", "json")
	return slices.Concat([]string{p.Path}, global, command)
}

// Create makes a container of a bundle, whose folder it is executed in; terminal is the name of a socket there, or empty. Its standard streams
// are the container's.
func (p *Program) Create(folder, containerID, terminal string) []string {
	command := []string{"create", "--bundle", folder, "--pid-file", PIDFile(folder)}
	if terminal != "" {
		command = append(command, "--console-socket", terminal)
	}
	return p.line(folder, append(command, containerID)...)
}

// Start lets the process of a container that was created run.
func (p *Program) Start(folder, containerID string) []string {
	return p.line(folder, "start", containerID)
}

// Exec runs the process that folder holds in a container, in the cgroup of that name below the container's.
func (p *Program) Exec(folder, containerID, cgroup, terminal string) []string {
	command := []string{"exec", "--detach", "--process", filepath.Join(folder, processName), "--pid-file", PIDFile(folder), "--cgroup", cgroup}
	if terminal != "" {
		command = append(command, "--console-socket", terminal)
	}
	return p.line(folder, append(command, containerID)...)
}

// Delete has the runtime forget a container whose processes have been killed, and removes what it leaves of its state: nothing it says keeps a
// container from being removed, but the error tells it. It is idempotent.
func (p *Program) Delete(ctx context.Context, folder, containerID string) error {
	state := filepath.Join(p.Root, containerID)
	if _, err := os.Lstat(state); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, deleteTimeout)
	defer cancel()
	line := p.line(folder, "delete", "--force", containerID)
	_, err := p.run(ctx, line)
	if err != nil {
		err = fmt.Errorf("delete container by %s: %w", p.Path, err)
	}
	return errors.Join(err, RemoveState(state))
}

// unescape undoes the escapes of mountinfo (proc_pid_mountinfo(5)).
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// RemoveState removes a folder in which a runtime that runs no more kept its state. It may have been ended at any moment: runc mounts itself there
// for an instant (CVE-2019-5736).
func RemoveState(folder string) error {
	folder, err := filepath.EvalSymlinks(folder) // the kernel tells of mounts by such paths
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var table []byte
	if err == nil {
		table, err = os.ReadFile("/proc/self/mountinfo")
	}
	if err != nil {
		return fmt.Errorf("remove a runtime's state: %w", err)
	}
	var errs []error
	lines := slices.Collect(strings.Lines(string(table)))
	for _, line := range slices.Backward(lines) { // what was mounted last goes first
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		path := unescape.Replace(fields[4])
		if strings.HasPrefix(path, folder+"/") {
			if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", path, err))
			}
		}
	}
	if len(errs) > 0 { // never walk into what is mounted
		return errors.Join(errs...)
	}
	return os.RemoveAll(folder)
}

// run executes a command line with nothing of the daemon's environment.
func (p *Program) run(ctx context.Context, line []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // what it started ends with it
	cmd.WaitDelay = time.Second
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if text := bytes.TrimSpace(stderr.Bytes()); err != nil && len(text) > 0 {
		err = fmt.Errorf("%w: %s", err, text[:min(len(text), maxReason)])
	}
	return out, err
}

// Prober asks a Program for its features, again when its file has changed.
type Prober struct {
	mu      sync.Mutex
	probed  os.FileInfo
	answer  runtime.Features
	problem error
}

// Features are what the program and the kernel can do together, as far as berth makes use of it. A program that cannot be asked has none, and the
// error says why.
func (p *Prober) Features(ctx context.Context, program *Program) (runtime.Features, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	st, err := os.Stat(program.Path)
	if err != nil {
		return runtime.Features{}, fmt.Errorf("look at runtime: %w", err)
	}
	if p.probed != nil && os.SameFile(p.probed, st) && p.probed.ModTime().Equal(st.ModTime()) && p.probed.Size() == st.Size() {
		return p.answer, p.problem
	}
	asking, cancel := context.WithTimeout(ctx, featuresTimeout)
	defer cancel()
	out, err := program.run(asking, slices.Concat([]string{program.Path}, program.Options, []string{"features"}))
	var told features.Features
	if err == nil {
		err = json.Unmarshal(out, &told)
	}
	if err != nil {
		err = fmt.Errorf("ask %s for its features: %w", program.Path, err)
	}
	if ctx.Err() == nil { // else it is the caller that gave up, and the program may answer the next one
		p.probed, p.answer, p.problem = st, understand(&told), err
	}
	return understand(&told), err
}

// understand takes from a runtime's answer what the CRI has names for. User namespaces are not among it: the bundles written here have none,
// and a runtime needs idmapped mounts for them (linux.mountExtensions.idmap).
func understand(told *features.Features) runtime.Features {
	own := runtime.NativeFeatures()
	return runtime.Features{RecursiveReadOnlyMounts: own.RecursiveReadOnlyMounts && slices.Contains(told.MountOptions, "rro")}
}
