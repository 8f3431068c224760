package floor

import (
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

//go:embed child/child.c
var childSource []byte

// Floor is a bridge and a root file system that pods of the floor share. Its methods must not run at the same time.
type Floor struct {
	dir    string // everything is below
	name   string // of the bridge and of the cgroups
	bridge netlink.Link
	host   *netlink.Handle
	hostNS *os.File
	made   int
}

// Pod is one pod of the floor. Its first process runs until Down.
type Pod struct {
	floor *Floor
	dir   string
	veth  string
	cmd   *exec.Cmd
}

// Open builds the child and makes the bridge. Everything is made in a new folder below dir, which Close removes.
func Open(dir string) (_ *Floor, err error) {
	f := &Floor{name: fmt.Sprintf("flr%d", os.Getpid())}
	if f.dir, err = os.MkdirTemp(dir, "floor"); err != nil {
		return nil, fmt.Errorf("open floor: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	if err := f.build(); err != nil {
		return nil, err
	}
	if f.hostNS, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("open floor: %w", err)
	}
	if f.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open floor: %w", err)
	}
	if err := f.host.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: f.name}}); err != nil {
		return nil, fmt.Errorf("make bridge of the floor: %w", err)
	}
	if f.bridge, err = f.host.LinkByName(f.name); err != nil {
		return nil, fmt.Errorf("make bridge of the floor: %w", err)
	}
	return f, f.host.LinkSetUp(f.bridge)
}

// build compiles the child and lays out the lower layer around it.
func (f *Floor) build() error {
	source, program := filepath.Join(f.dir, "child.c"), filepath.Join(f.dir, "run")
	if err := os.WriteFile(source, childSource, 0o600); err != nil {
		return fmt.Errorf("build child of the floor: %w", err)
	}
	if out, err := exec.Command("gcc", "-O2", "-static", "-s", "-Wall", "-o", program, source).CombinedOutput(); err != nil {
		return fmt.Errorf("build child of the floor: %w\n%s", err, out)
	}
	for _, d := range []string{"bin", "proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(f.dir, "lower", d), 0o755); err != nil {
			return fmt.Errorf("make layer of the floor: %w", err)
		}
	}
	return errors.Join(os.Link(program, filepath.Join(f.dir, "enter")),
		os.Link(program, filepath.Join(f.dir, "lower/bin/sleep")), os.Link(program, filepath.Join(f.dir, "lower/bin/true")))
}

// Program is the static program that the floor's containers run: as /bin/sleep it waits for SIGTERM, as /bin/true it ends.
func (f *Floor) Program() string { return filepath.Join(f.dir, "run") }

// Close removes the bridge, the cgroups and the folder. Pods must be down.
func (f *Floor) Close() error {
	var errs []error
	if f.hostNS != nil {
		errs = append(errs, f.hostNS.Close())
	}
	if f.bridge != nil {
		errs = append(errs, f.host.LinkDel(f.bridge))
	}
	for _, c := range hierarchies() {
		if err := os.Remove(filepath.Join(c, f.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(f.dir))...)
}

// hierarchies returns the cgroup trees that a container is placed in.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	var dirs []string
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "devices", "freezer", "blkio"} {
		dirs = append(dirs, "/sys/fs/cgroup/"+c)
	}
	return dirs
}

// Up brings a pod up and says how long that took.
func (f *Floor) Up() (*Pod, time.Duration, error) {
	n := f.made
	f.made++
	p := &Pod{floor: f, dir: filepath.Join(f.dir, strconv.Itoa(n)), veth: fmt.Sprintf("flv%d-%d", n, os.Getpid()%10000)}
	if err := os.Mkdir(p.dir, 0o755); err != nil {
		return nil, 0, fmt.Errorf("bring floor up: %w", err)
	}
	start := time.Now()
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is in the pod's namespaces and ends with the goroutine
		result <- p.up(n)
	}()
	if err := <-result; err != nil {
		p.unmount()
		return nil, 0, fmt.Errorf("bring floor up: %w", err)
	}
	return p, time.Since(start), nil
}

func (p *Pod) up(n int) error {
	if err := p.namespaces(); err != nil {
		return err
	}
	if err := p.network(n); err != nil {
		return err
	}
	for _, c := range hierarchies() {
		if err := os.MkdirAll(p.cgroup(c), 0o755); err != nil {
			return err
		}
	}
	for _, d := range []string{"u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o755); err != nil {
			return err
		}
	}
	root := filepath.Join(p.dir, "m")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/u,workdir=%s/w", p.floor.dir, p.dir, p.dir)
	if err := unix.Mount("overlay", root, "overlay", 0, options); err != nil {
		return fmt.Errorf("mount overlay: %w", err)
	}
	return p.run(root)
}

func (p *Pod) namespaces() error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Sethostname([]byte("pod")); err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	for _, ns := range []string{"net", "ipc", "uts"} {
		pin := filepath.Join(p.dir, ns)
		if err := os.WriteFile(pin, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), ns), pin, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin namespace: %w", err)
		}
	}
	return nil
}

func (p *Pod) network(n int) error {
	inside, err := netlink.NewHandle() // a socket for each request, in this thread's namespace
	if err != nil {
		return err
	}
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: p.veth, PeerNamespace: netlink.NsFd(int(p.floor.hostNS.Fd()))}
	if err := errors.Join(inside.LinkSetUp(lo), inside.LinkAdd(veth)); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	eth0, err := inside.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 249, byte(n/250), byte(2+n%250)), Mask: net.CIDRMask(16, 32)}}
	route := &netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.IPv4(10, 249, 0, 1)}
	if err := errors.Join(inside.AddrAdd(eth0, address), inside.LinkSetUp(eth0), inside.RouteAdd(route)); err != nil {
		return fmt.Errorf("set up link: %w", err)
	}
	peer, err := p.floor.host.LinkByName(p.veth)
	if err != nil {
		return fmt.Errorf("find %s: %w", p.veth, err)
	}
	return errors.Join(p.floor.host.LinkSetMaster(peer, p.floor.bridge), p.floor.host.LinkSetUp(peer))
}

func (p *Pod) cgroup(hierarchy string) string {
	return filepath.Join(hierarchy, p.floor.name, filepath.Base(p.dir), "c")
}

func (p *Pod) run(root string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	p.cmd = exec.Command(filepath.Join(p.floor.dir, "run"), root)
	p.cmd.Stdout, p.cmd.Stderr = w, os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	for _, c := range hierarchies() {
		if err := os.WriteFile(filepath.Join(p.cgroup(c), "cgroup.procs"), strconv.AppendInt(nil, int64(p.cmd.Process.Pid), 10), 0); err != nil {
			return err
		}
	}
	r.Read(make([]byte, 1)) // its end comes right before execve
	return nil
}

// Exec runs /bin/true in the pod and says how long that took.
func (p *Pod) Exec() (time.Duration, error) {
	start := time.Now()
	args := []string{strconv.Itoa(p.cmd.Process.Pid)}
	for _, c := range hierarchies() {
		args = append(args, filepath.Join(p.cgroup(c), "cgroup.procs"))
	}
	if out, err := exec.Command(filepath.Join(p.floor.dir, "enter"), args...).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("exec on the floor: %w: %s", err, out)
	}
	return time.Since(start), nil
}

// Down ends the pod and says how long that took.
func (p *Pod) Down() (time.Duration, error) {
	start := time.Now()
	p.cmd.Process.Kill()
	p.cmd.Wait()
	veth, err := p.floor.host.LinkByName(p.veth)
	if err != nil {
		return 0, fmt.Errorf("take floor down: %w", err)
	}
	errs := []error{p.floor.host.LinkDel(veth)}
	errs = append(errs, p.unmount())
	for _, c := range hierarchies() {
		errs = append(errs, os.Remove(p.cgroup(c)), os.Remove(filepath.Dir(p.cgroup(c))))
	}
	errs = append(errs, os.RemoveAll(p.dir))
	if err := errors.Join(errs...); err != nil {
		return 0, fmt.Errorf("take floor down: %w", err)
	}
	return time.Since(start), nil
}

func (p *Pod) unmount() error {
	var errs []error
	for _, ns := range []string{"net", "ipc", "uts", "m"} {
		errs = append(errs, unix.Unmount(filepath.Join(p.dir, ns), unix.MNT_DETACH))
	}
	return errors.Join(errs...)
}
