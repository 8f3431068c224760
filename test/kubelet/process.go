package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node is the kubelet's name for the machine: it ends the names of all pods.
const Node = "node"

// Options of a Process.
type Options struct {
	Program    string // from Build
	Dir        string // the kubelet's folder, made and removed here
	Socket     string // of the runtime
	CgroupRoot string // made and removed here, in every hierarchy
	Port       int    // of the kubelet's API, on loopback
}

// Process is one kubelet, which may be started and ended many times.
type Process struct {
	Pods   string // folder of the pods' files
	Log    string
	Client *http.Client
	URL    string

	opts   Options
	cmd    *exec.Cmd
	exited chan struct{}
}

// New makes the kubelet's folders, its configuration and its cgroup. Close takes them away, whatever happened.
func New(opts Options) (*Process, error) {
	k := &Process{opts: opts, Pods: filepath.Join(opts.Dir, "pods.d"), Log: filepath.Join(opts.Dir, "kubelet.log"),
		Client: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // its certificate is its own
			Timeout: time.Minute}}
	if err := os.Mkdir(opts.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the kubelet's folder: %w", err)
	}
	if err := errors.Join(unix.Mount(opts.Dir, opts.Dir, "", unix.MS_BIND, ""), unix.Mount("", opts.Dir, "", unix.MS_SHARED, "")); err != nil {
		return k, fmt.Errorf("share the kubelet's folder: %w", err)
	}
	k.URL = fmt.Sprintf("https://127.0.0.1:%d", k.opts.Port)
	for _, dir := range []string{k.Pods, k.path("logs"), k.path("root")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return k, fmt.Errorf("make the kubelet's folder: %w", err)
		}
	}
	if err := os.WriteFile(k.path("resolv.conf"), []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		return k, fmt.Errorf("configure the kubelet: %w", err)
	}
	if err := k.Configure(""); err != nil {
		return k, err
	}
	return k, makeCgroups(opts.CgroupRoot)
}

// Configure says what the kubelet is told from its next start on besides what it always is: lines of its configuration, and
// features by their gates.
func (k *Process) Configure(more string, gates ...string) error {
	text := k.config() + more + "featureGates:\n"
	for _, g := range gates {
		text += "  " + g + ": true\n"
	}
	if err := os.WriteFile(k.path("config.yaml"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("configure the kubelet: %w", err)
	}
	return nil
}

func (k *Process) path(name string) string { return filepath.Join(k.opts.Dir, name) }

// PodLogs is the folder of the containers' logs.
func (k *Process) PodLogs() string { return k.path("logs") }

// config is what the kubelet of a small machine without an API server is told. Periods are short, so that tests are.
func (k *Process) config() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: %s
podLogsDir: %s
containerRuntimeEndpoint: unix://%s
address: 127.0.0.1
port: %d
readOnlyPort: 0
healthzPort: 0
authentication:
  anonymous: {enabled: true}
  webhook: {enabled: false}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
cgroupRoot: %s
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
evictionHard: {}
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
resolvConf: %s
volumePluginDir: %s
fileCheckFrequency: 1s
syncFrequency: 5s
crashLoopBackOff: {maxContainerRestartPeriod: 1s}
logging: {verbosity: 4}
`, k.Pods, k.PodLogs(), k.opts.Socket, k.opts.Port, k.opts.CgroupRoot, k.path("resolv.conf"), k.path("plugins"))
}

// Start starts the kubelet and waits until it is healthy.
func (k *Process) Start(ctx context.Context) error {
	log, err := os.OpenFile(k.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start the kubelet: %w", err)
	}
	defer log.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("start the kubelet: %w", err)
	}
	cmd := exec.Command(self, k.opts.Program, "--config", k.path("config.yaml"), "--root-dir", k.path("root"), "--cert-dir", k.path("pki"),
		"--hostname-override", Node)
	cmd.Env = append(os.Environ(), jailEnv+"="+k.opts.Dir)
	cmd.Stdout, cmd.Stderr = log, log
	// Cloneflags, since Go makes all mounts private after an unshare, and the kubelet's folder must stay shared with the host.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL, Cloneflags: unix.CLONE_NEWNS}
	started, exited := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // Pdeathsig comes when the thread ends
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
			close(exited)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start the kubelet: %w", err)
	}
	k.cmd, k.exited = cmd, exited
	return k.healthy(ctx)
}

func (k *Process) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		_, err := k.Get(ctx, "/healthz")
		if err == nil {
			return nil
		}
		select {
		case <-k.exited:
			return fmt.Errorf("start the kubelet: it ended: %s", k.cmd.ProcessState)
		case <-ctx.Done():
			return fmt.Errorf("start the kubelet: %w", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Kill ends the kubelet with SIGKILL. Pods live on. One that does not run is left alone.
func (k *Process) Kill() error {
	if k.cmd == nil {
		return nil
	}
	if err := k.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill the kubelet: %w", err)
	}
	<-k.exited
	k.cmd = nil
	return nil
}

// Close ends the kubelet and takes its folder's mounts and its cgroups away. The folder stays, for who wants to read its log.
func (k *Process) Close() error {
	errs := []error{k.Kill()}
	mounts, err := Mounts(k.opts.Dir)
	errs = append(errs, err)
	for _, at := range slices.Backward(mounts) {
		errs = append(errs, unmount(at))
	}
	return errors.Join(append(errs, removeCgroups(k.opts.CgroupRoot))...)
}

// Mounts lists the host's mounts at and below a folder, parents first.
func Mounts(dir string) ([]string, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if at := mountpoint(line); at == dir || strings.HasPrefix(at, strings.TrimSuffix(dir, "/")+"/") {
			found = append(found, at)
		}
	}
	return found, nil
}

// mountpoint is the fifth field of a line of mountinfo.
func mountpoint(line string) string {
	f := strings.Fields(line)
	if len(f) < 5 {
		return ""
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4])
}

// Get asks the kubelet's API.
func (k *Process) Get(ctx context.Context, path string) (string, error) {
	return k.ask(ctx, http.MethodGet, path)
}

// Post sends a request without a body.
func (k *Process) Post(ctx context.Context, path string) (string, error) {
	return k.ask(ctx, http.MethodPost, path)
}

func (k *Process) ask(ctx context.Context, method, path string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.URL+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := k.Client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, text)
	}
	return string(text), err
}
