package berthd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Life is one pod of one container that is timed from its first call to its last.
type Life struct {
	Pod, Container string // IDs

	process *Process
}

// LifeSpec says what the pod runs.
type LifeSpec struct {
	Name, Image string
	Command     []string
	LogDir      string // a folder is made below it
}

// Up runs a pod and starts its container, and says how long the three calls took together.
func (p *Process) Up(ctx context.Context, spec LifeSpec) (*Life, time.Duration, error) {
	options := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	profile := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	pod := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: spec.Name, Uid: spec.Name, Namespace: "bench"},
		Hostname:     spec.Name,
		LogDirectory: filepath.Join(spec.LogDir, spec.Name),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
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
	r, err := p.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return nil, 0, fmt.Errorf("run pod %s: %w", spec.Name, err)
	}
	c, err := p.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.PodSandboxId, Config: container, SandboxConfig: pod})
	if err != nil {
		return nil, 0, fmt.Errorf("create container in %s: %w", spec.Name, err)
	}
	if _, err := p.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		return nil, 0, fmt.Errorf("start container in %s: %w", spec.Name, err)
	}
	return &Life{Pod: r.PodSandboxId, Container: c.ContainerId, process: p}, time.Since(start), nil
}

// Exec runs a command in the container and says how long that took.
func (l *Life) Exec(ctx context.Context, command ...string) (time.Duration, error) {
	start := time.Now()
	r, err := l.process.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: l.Container, Cmd: command, Timeout: 20})
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
	rt := l.process.Runtime
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
