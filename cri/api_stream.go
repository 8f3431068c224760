package cri

import (
	"context"
	"fmt"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/streaming"
	"github.com/berthd/berth/sandbox"
)

// Bounds of what is kept until a client comes.
const (
	// maxCommandBytes is what the kernel takes of arguments, with the usual limit of a stack (execve(2)).
	maxCommandBytes = 2 << 20
	// maxForwardPorts is how many ports a request may name. Only clients of older days need that.
	maxForwardPorts = 64
)

// Streaming makes URLs at which clients reach processes and ports. Each is good for one client, soon.
type Streaming interface {
	Exec(streaming.Process) (url string, err error)
	Attach(streaming.Process) (url string, err error)
	PortForward(sandboxID string, ports []uint16) (url string, err error)
}

// Exec answers with a URL at which a command can be run in a running container.
func (s *runtimeService) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	p := streaming.Process{Cmd: r.GetCmd(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTty()}
	if len(p.Cmd) == 0 {
		return nil, invalid("cmd", "", "must name a command")
	}
	n := 0
	for _, arg := range p.Cmd {
		n += len(arg) + 1
	}
	if n > maxCommandBytes {
		return nil, invalid("cmd", strconv.Itoa(n)+" bytes", "must have at most "+strconv.Itoa(maxCommandBytes)+" bytes")
	}
	if _, err := s.checkProcess(r.GetContainerId(), &p); err != nil {
		return nil, err
	}
	url, err := s.streaming.Exec(p)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach answers with a URL at which a client can be attached to a running container.
func (s *runtimeService) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	p := streaming.Process{Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(), Terminal: r.GetTty()}
	c, err := s.checkProcess(r.GetContainerId(), &p)
	if err != nil {
		return nil, err
	}
	p.Deaf = !c.Config.GetStdin()
	url, err := s.streaming.Attach(p)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// checkProcess looks at what a client asks for of a process, and finds the container.
func (s *runtimeService) checkProcess(containerID string, p *streaming.Process) (c sandbox.Container, err error) {
	switch {
	case !p.Stdin && !p.Stdout && !p.Stderr:
		return c, invalid("stdin, stdout, stderr", "false", "one must be true")
	case p.Terminal && p.Stderr:
		return c, invalid("stderr", "true", "must be false with tty: a terminal has one output")
	}
	if err = checkID("container_id", containerID); err != nil {
		return c, err
	}
	if c, err = s.containers.Container(containerID); err != nil {
		return c, err
	}
	if c.State != sandbox.ContainerRunning {
		return c, fmt.Errorf("container %s: it is %s, not Running: %w", c.ID, c.State, sandbox.ErrState)
	}
	p.ContainerID = c.ID
	return c, nil
}

// PortForward answers with a URL at which a client can connect to ports of a running pod.
func (s *runtimeService) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := checkID("pod_sandbox_id", r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	if n := len(r.GetPort()); n > maxForwardPorts {
		return nil, invalid("port", strconv.Itoa(n)+" ports", "must be at most "+strconv.Itoa(maxForwardPorts)+" ports")
	}
	var ports []uint16
	for i, port := range r.GetPort() {
		if port < 1 || port > 65535 {
			return nil, invalid(fmt.Sprintf("port[%d]", i), strconv.Itoa(int(port)), "must be 1 to 65535")
		}
		ports = append(ports, uint16(port))
	}
	p, err := s.pods.Pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if p.State != sandbox.PodReady {
		return nil, fmt.Errorf("sandbox %s: it is %s, not Ready: %w", p.ID, p.State, sandbox.ErrState)
	}
	url, err := s.streaming.PortForward(p.ID, ports)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}
