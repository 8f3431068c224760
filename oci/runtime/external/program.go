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
	probeTimeout  = 5 * time.Second
	deleteTimeout = 10 * time.Second
	// believed is for how long an answer that is a failure counts, and at least patience times as long as it took: a program that hangs must not hold
	// up everybody who asks.
	believed = 5 * time.Second
	patience = 10
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

// Prober asks programs whether they work and what they can do, again when their files have changed. Its zero value is ready for use, by any
// number of goroutines. What is known already costs one look at the file.
type Prober struct {
	mu    sync.Mutex
	known map[string]*probe // by command line
}

// probe is what one program has answered.
type probe struct {
	mu       sync.Mutex
	file     os.FileInfo // as it was then; nil: not asked yet
	at       time.Time
	took     time.Duration
	problem  error // why it cannot be used
	features runtime.Features
	silent   error // why it has not told its features
}

// Usable is nil when the program is there and can be executed with its options, else why not.
func (p *Prober) Usable(ctx context.Context, program *Program) error {
	got := p.probe(program)
	defer got.mu.Unlock()
	return got.ask(ctx, program)
}

// Features are what the program and the kernel can do together, as far as berth makes use of it. A program that cannot be asked has none, and the
// error says why.
func (p *Prober) Features(ctx context.Context, program *Program) (runtime.Features, error) {
	got := p.probe(program)
	defer got.mu.Unlock()
	if err := got.ask(ctx, program); err != nil {
		return runtime.Features{}, err
	}
	return got.features, got.silent
}

// probe finds or makes what is known of a program, locked: nobody waits for another program.
func (p *Prober) probe(program *Program) *probe {
	p.mu.Lock()
	key := strings.Join(append([]string{program.Path}, program.Options...), "\x00")
	got := p.known[key]
	if got == nil {
		if p.known == nil {
			p.known = map[string]*probe{}
		}
		got = &probe{}
		p.known[key] = got
	}
	p.mu.Unlock()
	got.mu.Lock()
	return got
}

// ask brings the probe up to date and returns its problem. A failure that may pass, of a machine under load, is not believed for long.
func (p *probe) ask(ctx context.Context, program *Program) error {
	st, err := os.Stat(program.Path)
	if err != nil {
		p.file = nil
		return fmt.Errorf("look at runtime: %w", err)
	}
	same := p.file != nil && os.SameFile(p.file, st) && p.file.ModTime().Equal(st.ModTime()) && p.file.Size() == st.Size() && p.file.Mode() == st.Mode()
	if same && (p.problem == nil && p.silent == nil || time.Since(p.at) < max(believed, patience*p.took)) {
		return p.problem
	}
	start := time.Now()
	asking, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	_, problem := program.run(asking, slices.Concat([]string{program.Path}, program.Options, []string{"--version"}))
	if problem != nil {
		problem = fmt.Errorf("ask %s for its version: %w", program.Path, problem)
	}
	var told features.Features
	var silent error
	if problem == nil {
		silent = program.features(asking, &told)
	}
	if ctx.Err() != nil { // it is the caller that gave up, and the program may answer the next one
		return errors.Join(problem, ctx.Err())
	}
	p.file, p.at, p.took, p.problem, p.features, p.silent = st, time.Now(), time.Since(start), problem, understand(&told), silent
	return problem
}

// features asks for runtime-spec's features.md.
func (p *Program) features(ctx context.Context, told *features.Features) error {
	out, err := p.run(ctx, slices.Concat([]string{p.Path}, p.Options, []string{"features"}))
	if err == nil {
		err = json.Unmarshal(out, told)
	}
	if err != nil {
		return fmt.Errorf("ask %s for its features: %w", p.Path, err)
	}
	return nil
}

// understand takes from a runtime's answer what the CRI has names for. User namespaces are not among it: the bundles written here have none,
// and a runtime needs idmapped mounts for them (linux.mountExtensions.idmap).
func understand(told *features.Features) runtime.Features {
	own := runtime.NativeFeatures()
	return runtime.Features{RecursiveReadOnlyMounts: own.RecursiveReadOnlyMounts && slices.Contains(told.MountOptions, "rro")}
}
