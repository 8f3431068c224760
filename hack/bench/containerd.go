package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/hack/turns"
	"github.com/berthd/berth/test/berthd"
)

// containerdConfig has everything below a folder (%[1]s). Without restrict_oom_score_adj runc fails where the capability is withheld.
const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]
[grpc]
  address = "%[1]s/c.sock"
[debug]
  level = "warn"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %[2]q
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %[3]q
    conf_dir = "%[1]s/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
      Root = "%[1]s/runc"
`

const containerdNetwork = `{"cniVersion": "0.4.0", "name": "bench", "plugins": [
  {"type": "bridge", "bridge": %[2]q, "isGateway": true, "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "%[1]s/ipam", "ranges": [[{"subnet": "10.247.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// pluginDir is where the CNI plugins are; "" if they are not.
func pluginDir() string {
	for _, dir := range []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"} {
		if _, err := os.Stat(filepath.Join(dir, "bridge")); err == nil {
			return dir
		}
	}
	return ""
}

// peerContainerd is a containerd that was started here.
type peerContainerd struct {
	dir, bridge, parent string
	cmd                 *exec.Cmd
	shared              []string // folders that it makes outside of its own and that were not there
}

func (b *bench) startContainerd(ctx context.Context) (_ *side, err error) {
	c := &peerContainerd{dir: filepath.Join(b.dir, "c"), bridge: fmt.Sprintf("benchc%d", os.Getpid()%100000), parent: fmt.Sprintf("/bench-%d", os.Getpid())}
	for _, dir := range []string{"/run/containerd/s", "/run/containerd/fifo", "/run/containerd", "/var/lib/cni/results", "/var/lib/cni"} {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			c.shared = append(c.shared, dir)
		}
	}
	if err := c.write(b.turns.Image); err != nil { // its program can also be the one that holds a pod's namespaces

		return nil, err
	}
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	c.cmd = exec.Command("containerd", "--config", filepath.Join(c.dir, "config.toml"))
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	socket := filepath.Join(c.dir, "c.sock")
	client, err := berthd.Dial(socket)
	if err != nil {
		return nil, errors.Join(err, c.end())
	}
	s := &side{name: nameContainerd, socket: socket, Peer: &turns.Peer{Client: client, CgroupParent: c.parent}}
	s.others = c.shims
	s.end = func() error { return errors.Join(client.Close(), c.end()) }
	if err := s.ask(ctx); err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, text), s.end())
	}
	return s, nil
}

func (c *peerContainerd) write(pause string) error {
	for _, dir := range []string{c.dir, filepath.Join(c.dir, "net.d")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(c.dir, "config.toml"), fmt.Appendf(nil, containerdConfig, c.dir, pause, pluginDir()), 0o600),
		os.WriteFile(filepath.Join(c.dir, "net.d/10-bench.conflist"), fmt.Appendf(nil, containerdNetwork, c.dir, c.bridge), 0o600))
}

var shim = regexp.MustCompile(`containerd-shim`)

// shims are the processes that it keeps for its pods.
func (c *peerContainerd) shims() ([]int, error) { return helpers(shim, c.dir+"/c.sock") }

// end ends it and takes away what it leaves.
func (c *peerContainerd) end() error {
	var errs []error
	if c.cmd != nil && c.cmd.Process != nil {
		c.cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { c.cmd.Process.Kill() })
		c.cmd.Wait() // says how it ended
		late.Stop()
	}
	pids, err := c.shims()
	errs = append(errs, err)
	for _, pid := range pids {
		errs = append(errs, unix.Kill(pid, unix.SIGKILL))
	}
	errs = append(errs, unmountBelow(c.dir))
	if link, err := netlink.LinkByName(c.bridge); err == nil {
		errs = append(errs, netlink.LinkDel(link))
	}
	for _, dir := range c.shared {
		os.Remove(dir) // if it is empty
	}
	return errors.Join(append(errs, removeCgroups(c.parent))...)
}

// unmountBelow unmounts everything below a folder.
func unmountBelow(dir string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var errs []error
	for _, line := range slices.Backward(strings.Split(string(text), "\n")) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			if err := unix.Unmount(f[4], unix.MNT_DETACH); err != nil {
				errs = append(errs, fmt.Errorf("unmount %s: %w", strconv.Quote(f[4]), err))
			}
		}
	}
	return errors.Join(errs...)
}
