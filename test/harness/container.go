package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container is a container of the test's.
type Container struct {
	*Pod
	ID     string
	Config *runtimeapi.ContainerConfig
}

// ContainerOption changes a container's configuration.
type ContainerOption func(*runtimeapi.ContainerConfig)

// What the kubelet sends for a container with procMount Default.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// Container makes the configuration of a container of the base image.
func (d *Daemon) Container(name string, command []string, options ...ContainerOption) *runtimeapi.ContainerConfig {
	d.T.Helper()
	c := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: name},
		Image:       d.baseImage(),
		Command:     command,
		LogPath:     name + ".log",
		Labels:      map[string]string{"container": name},
		Annotations: map[string]string{"test/container": name},
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Seccomp: &runtimeapi.SecurityProfile{},
				MaskedPaths: maskedPaths, ReadonlyPaths: readonlyPaths,
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	for _, o := range options {
		o(c)
	}
	return c
}

// Shell makes the configuration of a container that runs a script.
func (d *Daemon) Shell(name, script string, options ...ContainerOption) *runtimeapi.ContainerConfig {
	d.T.Helper()
	return d.Container(name, []string{"sh", "-c", script}, options...)
}

// Sleeper makes the configuration of a container that says "up", waits until it is told to end, and then does at once.
func (d *Daemon) Sleeper(name string, options ...ContainerOption) *runtimeapi.ContainerConfig {
	d.T.Helper()
	return d.Shell(name, "trap 'exit 0' TERM; echo up; sleep 3600 & wait", options...)
}

// Security changes a container's security context.
func Security(f func(*runtimeapi.LinuxContainerSecurityContext)) ContainerOption {
	return func(c *runtimeapi.ContainerConfig) { f(c.Linux.SecurityContext) }
}

// Resources sets a container's limits.
func Resources(r *runtimeapi.LinuxContainerResources) ContainerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
}

// Mounts adds mounts to a container.
func Mounts(m ...*runtimeapi.Mount) ContainerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = append(c.Mounts, m...) }
}

// Image gives a container another image.
func Image(ref string) ContainerOption {
	return func(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: ref} }
}

// Create creates a container in the pod, or fails the test.
func (p *Pod) Create(config *runtimeapi.ContainerConfig) *Container {
	p.T.Helper()
	c, err := p.TryCreate(config)
	if err != nil {
		p.T.Fatalf("CreateContainer(%s): %v", config.GetMetadata().GetName(), err)
	}
	return c
}

// TryCreate is Create for tests of what does not work.
func (p *Pod) TryCreate(config *runtimeapi.ContainerConfig) (*Container, error) {
	r, err := p.Runtime.CreateContainer(p.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.ID, Config: config, SandboxConfig: p.Config})
	if err != nil {
		return nil, err
	}
	return &Container{Pod: p, ID: r.ContainerId, Config: config}, nil
}

// Run creates a container and starts it.
func (p *Pod) Run(config *runtimeapi.ContainerConfig) *Container {
	p.T.Helper()
	c := p.Create(config)
	c.Start()
	return c
}

// Start starts the container.
func (c *Container) Start() {
	c.T.Helper()
	if err := c.TryStart(); err != nil {
		c.T.Fatalf("StartContainer: %v", err)
	}
}

// TryStart is Start for tests of what does not work.
func (c *Container) TryStart() error {
	_, err := c.Runtime.StartContainer(c.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ID})
	return err
}

// Stop stops the container, with a grace period of whole seconds.
func (c *Container) Stop(grace time.Duration) {
	c.T.Helper()
	if _, err := c.Runtime.StopContainer(c.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: int64(grace / time.Second)}); err != nil {
		c.T.Fatalf("StopContainer: %v", err)
	}
}

// Remove removes the container.
func (c *Container) Remove() {
	c.T.Helper()
	if _, err := c.Runtime.RemoveContainer(c.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.ID}); err != nil {
		c.T.Fatalf("RemoveContainer: %v", err)
	}
}

// Status returns the container's status.
func (c *Container) Status() *runtimeapi.ContainerStatus {
	c.T.Helper()
	r, err := c.Runtime.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID})
	if err != nil {
		c.T.Fatalf("ContainerStatus: %v", err)
	}
	return r.Status
}

// Wait waits until the container has exited, and returns its status.
func (c *Container) Wait(within time.Duration) *runtimeapi.ContainerStatus {
	c.T.Helper()
	c.Eventually(within, "container "+c.Config.Metadata.Name+" exits", func() bool {
		return c.Status().State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return c.Status()
}

// Result is what a command in a container did.
type Result struct {
	Stdout, Stderr string
	Code           int32
}

// Exec runs a command in the container, or fails the test. A command that ends with an error is no failure.
func (c *Container) Exec(command ...string) Result {
	c.T.Helper()
	r, err := c.TryExec(time.Minute, command...)
	if err != nil {
		c.T.Fatalf("ExecSync(%q): %v", command, err)
	}
	return r
}

// TryExec is Exec with a time limit, for tests of what does not work.
func (c *Container) TryExec(limit time.Duration, command ...string) (Result, error) {
	r, err := c.Runtime.ExecSync(c.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: int64(limit / time.Second)})
	if err != nil {
		return Result{}, err
	}
	return Result{Stdout: string(r.Stdout), Stderr: string(r.Stderr), Code: r.ExitCode}, nil
}

// Sh runs a script in the container, fails the test if that does not end with 0, and returns its output without the last newline.
func (c *Container) Sh(script string) string {
	c.T.Helper()
	r := c.Exec("sh", "-c", script)
	if r.Code != 0 {
		c.T.Fatalf("%q exits with %d: %s%s", script, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(r.Stdout, "\n")
}

// PID is the host's number of the container's first process.
func (c *Container) PID() int {
	c.T.Helper()
	r, err := c.Runtime.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		c.T.Fatalf("ContainerStatus: %v", err)
	}
	return InfoPID(c.T, r.Info)
}

// Executed is the container's first process once it is its own program. Other runtimes have ended their command start before: until then the process
// has the runtime's name, descriptors and capabilities.
func (c *Container) Executed() int {
	c.T.Helper()
	pid := c.PID()
	if Handler == "" {
		return pid
	}
	c.Eventually(10*time.Second, fmt.Sprintf("%s has executed the program of %s", Handler, c.Config.Metadata.Name), func() bool {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // empty within execve, until credentials have changed too
		program, _, _ := strings.Cut(string(line), "\x00")
		return err != nil || program != "" && filepath.Base(program) != Handler
	})
	return pid
}

// Host reads a file of /proc/PID of the container's first process.
func (c *Container) Host(name string) string {
	c.T.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", c.Executed(), name))
	if err != nil {
		c.T.Fatal(err)
	}
	return string(text)
}
