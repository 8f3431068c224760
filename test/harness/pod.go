package harness

import (
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pod is a running pod of the test's.
type Pod struct {
	*Daemon
	ID     string
	Config *runtimeapi.PodSandboxConfig
}

// PodOption changes a pod's configuration.
type PodOption func(*runtimeapi.PodSandboxConfig)

// Pod makes a pod's configuration as the kubelet would: own network, IPC and UTS, a PID namespace for each container, a log folder.
func (d *Daemon) Pod(name string, options ...PodOption) *runtimeapi.PodSandboxConfig {
	d.T.Helper()
	d.mu.Lock()
	d.pods++
	d.mu.Unlock()
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "test"},
		Hostname:     name,
		LogDirectory: filepath.Join(d.Dir, "logs", name),
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"test/annotation": name},
		Linux:        &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, o := range options {
		o(c)
	}
	if err := os.MkdirAll(c.LogDirectory, 0o755); c.LogDirectory != "" && err != nil {
		d.T.Fatal(err)
	}
	return c
}

// Namespaces sets the modes of a pod's namespaces.
func Namespaces(network, pid, ipc runtimeapi.NamespaceMode) PodOption {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: network, Pid: pid, Ipc: ipc}
		if network == runtimeapi.NamespaceMode_NODE {
			c.Hostname = ""
		}
	}
}

// Privileged lets a pod have privileged containers.
func Privileged(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true }

// CgroupParent sets a pod's cgroup parent.
func CgroupParent(path string) PodOption {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = path }
}

// HostPort maps a port of the host.
func HostPort(protocol runtimeapi.Protocol, host, container int32, hostIP string) PodOption {
	return func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = append(c.PortMappings, &runtimeapi.PortMapping{Protocol: protocol, HostPort: host, ContainerPort: container, HostIp: hostIP})
	}
}

// RunPod runs a pod, or fails the test.
func (d *Daemon) RunPod(config *runtimeapi.PodSandboxConfig) *Pod {
	d.T.Helper()
	p, err := d.TryRunPod(config)
	if err != nil {
		d.T.Fatalf("RunPodSandbox(%s): %v", config.GetMetadata().GetName(), err)
	}
	return p
}

// TryRunPod is RunPod for tests of what does not work.
func (d *Daemon) TryRunPod(config *runtimeapi.PodSandboxConfig) (*Pod, error) {
	r, err := d.Runtime.RunPodSandbox(d.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	return &Pod{Daemon: d, ID: r.PodSandboxId, Config: config}, nil
}

// Status returns the pod's status.
func (p *Pod) Status() *runtimeapi.PodSandboxStatus {
	p.T.Helper()
	r, err := p.Runtime.PodSandboxStatus(p.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.ID})
	if err != nil {
		p.T.Fatalf("PodSandboxStatus: %v", err)
	}
	return r.Status
}

// IPs returns the pod's addresses, the first one first.
func (p *Pod) IPs() []string {
	p.T.Helper()
	n := p.Status().GetNetwork()
	ips := []string{n.GetIp()}
	for _, more := range n.GetAdditionalIps() {
		ips = append(ips, more.Ip)
	}
	return ips
}

// Stop stops the pod.
func (p *Pod) Stop() {
	p.T.Helper()
	if _, err := p.Runtime.StopPodSandbox(p.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.T.Fatalf("StopPodSandbox: %v", err)
	}
}

// Remove removes the pod.
func (p *Pod) Remove() {
	p.T.Helper()
	if _, err := p.Runtime.RemovePodSandbox(p.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.ID}); err != nil {
		p.T.Fatalf("RemovePodSandbox: %v", err)
	}
}
