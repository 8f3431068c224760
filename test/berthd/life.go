package berthd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Life is one pod of one container that is timed from its first call to its last.
type Life struct {
	Pod, Container string // IDs

	client *Client
}

// lifeLabel tells pods of Up's from all others of a runtime.
const lifeLabel = "bench.berth"

// LifeSpec says what the pod runs.
type LifeSpec struct {
	Name, Image string
	Command     []string
	LogDir      string // a folder is made below it
	// CgroupParent is "" for the runtime's own tree.
	CgroupParent string
}

// Up runs a pod and starts its container, and says how long the three calls took together.
func (c *Client) Up(ctx context.Context, spec LifeSpec) (*Life, time.Duration, error) {
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	profile := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: spec.Name, Uid: spec.Name, Namespace: "bench"},
		Hostname:     spec.Name,
		LogDirectory: filepath.Join(spec.LogDir, spec.Name),
		Labels:       map[string]string{lifeLabel: "1"},
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: spec.CgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options, Seccomp: profile}},
	}
	container := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: spec.Image},
		Command: spec.Command, LogPath: "c.log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: options, Seccomp: profile}},
	}
	if err := os.MkdirAll(pod.LogDirectory, 0o755); err != nil {
		return nil, 0, err
	}
	start := time.Now()
	r, err := c.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return nil, 0, fmt.Errorf("run pod %s: %w", spec.Name, err)
	}
	created, err := c.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: container, SandboxConfig: pod})
	if err != nil {
		return nil, 0, fmt.Errorf("create container in %s: %w", spec.Name, err)
	}
	if _, err := c.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		return nil, 0, fmt.Errorf("start container in %s: %w", spec.Name, err)
	}
	return &Life{Pod: r.PodSandboxId, Container: created.ContainerId, client: c}, time.Since(start), nil
}

// Exec runs a command in the container and says how long that took.
func (l *Life) Exec(ctx context.Context, command ...string) (time.Duration, error) {
	start := time.Now()
	r, err := l.client.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: l.Container, Cmd: command, Timeout: 60})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	if err != nil {
		return 0, fmt.Errorf("run %q: %w", command, err)
	}
	return time.Since(start), nil
}

// Down stops and removes the container and the pod, and says how long the four calls took together.
func (l *Life) Down(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	rt := l.client.Runtime
	if _, err := rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: l.Container, Timeout: 10}); err != nil {
		return 0, fmt.Errorf("stop container: %w", err)
	}
	if _, err := rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: l.Container}); err != nil {
		return 0, fmt.Errorf("remove container: %w", err)
	}
	if _, err := rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: l.Pod}); err != nil {
		return 0, fmt.Errorf("stop pod: %w", err)
	}
	if _, err := rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: l.Pod}); err != nil {
		return 0, fmt.Errorf("remove pod: %w", err)
	}
	return time.Since(start), nil
}

// PSS is a process's proportional set size in KiB.
func PSS(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "\nPss:")
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return 0, fmt.Errorf("process %d has no Pss", pid)
	}
	return strconv.Atoi(fields[0])
}

// Burst runs pods with several callers at once, and says how long it took until all their containers ran. spec names the pod of a
// number. After an error those that run are returned, too.
func (c *Client) Burst(ctx context.Context, pods, callers int, spec func(n int) LifeSpec) ([]*Life, time.Duration, error) {
	lives := make([]*Life, pods)
	start := time.Now()
	err := crowd(pods, callers, func(n int) (err error) {
		lives[n], _, err = c.Up(ctx, spec(n))
		return err
	})
	took := time.Since(start)
	return slices.DeleteFunc(lives, func(l *Life) bool { return l == nil }), took, err
}

// Sink takes pods down with several callers at once, and says how long it took until all were gone.
func Sink(ctx context.Context, lives []*Life, callers int) (time.Duration, error) {
	start := time.Now()
	err := crowd(len(lives), callers, func(n int) error {
		_, err := lives[n].Down(ctx)
		return err
	})
	return time.Since(start), err
}

// crowd calls do for each number below n, from several goroutines. After the first error no more calls begin.
func crowd(n, callers int, do func(int) error) error {
	var g errgroup.Group
	g.SetLimit(callers)
	var failed atomic.Bool
	for i := range n {
		g.Go(func() error {
			if failed.Load() {
				return nil
			}
			err := do(i)
			if err != nil {
				failed.Store(true)
			}
			return err
		})
	}
	return g.Wait()
}
