package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/imageservice/registry/registrytest"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/images"
	"github.com/berthd/berth/test/invariants"
)

const greeting = "<h1>Moored at berth</h1>\n"

func (d *demo) start(ctx context.Context) (string, error) {
	p, err := berthd.New(berthd.Options{Bin: d.bin, Log: filepath.Join(d.dir, "berthd.log")})
	if err != nil {
		return "", err
	}
	d.berthd = p
	if err := p.Start(ctx); err != nil {
		return "", err
	}
	if d.before, err = invariants.Take(p.Daemon()); err != nil {
		return "", err
	}
	return d.berth(ctx, "status")
}

// berth runs the command line for people.
func (d *demo) berth(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(d.bin, "berth"), args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("berth %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// serve makes two layers: the server, and what it serves.
func (d *demo) serve(context.Context) (string, error) {
	program, err := images.NewBuilder().Program("bin/web", filepath.Join(d.dir, "web")).Layer()
	if err != nil {
		return "", err
	}
	content, err := images.NewBuilder().File("srv/index.html", greeting, 0o644).File("etc/passwd", images.Passwd, 0o644).Layer()
	if err != nil {
		return "", err
	}
	if d.registry, err = registrytest.Start(registrytest.Options{}); err != nil {
		return "", err
	}
	d.image, err = d.registry.Push("demo/web", "1", registrytest.Image{Layers: []registrytest.Layer{program, content},
		Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Entrypoint: []string{"/bin/web"}, Cmd: []string{"serve", ":80"}}})
	return d.image.Ref, err
}

func (d *demo) pull(ctx context.Context) (string, error) {
	out, err := d.berth(ctx, "pull", d.image.Ref)
	if err != nil {
		return "", err
	}
	list, err := d.berth(ctx, "images")
	return out + list, err
}

// runPod does what the kubelet would.
func (d *demo) runPod(ctx context.Context) (string, error) {
	var err error
	if d.port, err = freePort(); err != nil {
		return "", err
	}
	logs := filepath.Join(d.dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return "", err
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web", Uid: "demo", Namespace: "demo"},
		Hostname:     "web",
		LogDirectory: logs,
		PortMappings: []*runtimeapi.PortMapping{{HostPort: int32(d.port), ContainerPort: 80}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
	start := time.Now()
	r, err := d.berthd.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return "", fmt.Errorf("run pod: %w", err)
	}
	d.pod = r.PodSandboxId
	if d.page, err = d.container(ctx, config, "page", "serve", ":80"); err != nil {
		return "", err
	}
	took := time.Since(start)
	if d.sidecar, err = d.container(ctx, config, "sidecar", "watch", "http://127.0.0.1/"); err != nil {
		return "", err
	}
	if d.address, err = d.podAddress(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("address %s, host port %d; its first container ran after %.2f ms", d.address, d.port, float64(took.Microseconds())/1000), nil
}

// container creates and starts one container of the pod, as a user without privileges.
func (d *demo) container(ctx context.Context, pod *runtimeapi.PodSandboxConfig, name string, args ...string) (string, error) {
	config := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: d.image.Ref}, Args: args, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 256, MemoryLimitInBytes: 64 << 20},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{ReadonlyRootfs: true,
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}}},
	}
	r, err := d.berthd.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: d.pod, Config: config, SandboxConfig: pod})
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", name, err)
	}
	if _, err := d.berthd.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		return "", fmt.Errorf("start container %s: %w", name, err)
	}
	return r.ContainerId, nil
}

func (d *demo) podAddress(ctx context.Context) (string, error) {
	s, err := d.berthd.Runtime.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: d.pod})
	if err != nil {
		return "", fmt.Errorf("status of the pod: %w", err)
	}
	if s.Status.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return "", fmt.Errorf("the pod is %s", s.Status.GetState())
	}
	return s.Status.GetNetwork().GetIp(), nil
}

// freePort prefers 8080.
func freePort() (int, error) {
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		if l, err = net.Listen("tcp", ":0"); err != nil {
			return 0, err
		}
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func (d *demo) byAddress(ctx context.Context) (string, error) {
	return fetch(ctx, "http://"+d.address+"/")
}
func (d *demo) byPort(ctx context.Context) (string, error) {
	return fetch(ctx, fmt.Sprintf("http://127.0.0.1:%d/", d.port))
}

// fetch gets the page. The server may need a moment to listen.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		text, err := get(ctx, &client, url)
		if err == nil || ctx.Err() != nil {
			return url + "  " + text, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && string(b) != greeting {
		err = fmt.Errorf("%s: got %q", url, b)
	}
	return string(b), err
}

func (d *demo) exec(ctx context.Context) (string, error) {
	r, err := d.berthd.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: d.page, Cmd: []string{"/bin/web", "hello"}, Timeout: 10})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	return "web hello: " + string(r.GetStdout()), err
}

func (d *demo) logs(ctx context.Context) (string, error) { return d.berth(ctx, "logs", d.page) }

func (d *demo) lists(ctx context.Context) (string, error) {
	pods, err := d.berth(ctx, "pods")
	if err != nil {
		return "", err
	}
	containers, err := d.berth(ctx, "ps")
	return pods + containers, err
}

func (d *demo) kill(ctx context.Context) (string, error) {
	if err := d.berthd.Kill(); err != nil {
		return "", err
	}
	return d.byPort(ctx)
}

func (d *demo) again(ctx context.Context) (string, error) {
	if err := d.berthd.Start(ctx); err != nil {
		return "", err
	}
	address, err := d.podAddress(ctx)
	if err == nil && address != d.address {
		err = fmt.Errorf("the pod's address was %s and is %s", d.address, address)
	}
	if err != nil {
		return "", err
	}
	return d.byAddress(ctx)
}

func (d *demo) remove(ctx context.Context) (string, error) {
	if err := d.removePod(ctx); err != nil {
		return "", err
	}
	_, err := d.berthd.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: d.image.Ref}})
	return "", err
}

// removePod stops and removes the pod; one that is gone is no error.
func (d *demo) removePod(ctx context.Context) error {
	if d.pod == "" {
		return nil
	}
	_, err := d.berthd.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: d.pod})
	if err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if _, err := d.berthd.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: d.pod}); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	d.pod = ""
	return nil
}

func (d *demo) nothing(ctx context.Context) (string, error) {
	lines, err := invariants.Settle(ctx, func(context.Context) ([]string, error) {
		after, err := invariants.Take(d.berthd.Daemon())
		return invariants.Diff(d.berthd.Daemon(), d.before, after), err
	})
	if err == nil && len(lines) > 0 {
		err = errors.New(strings.Join(lines, "\n"))
	}
	return "no process, mount, cgroup, namespace, link, address, firewall rule, record or layer more than before", err
}
