package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/hack/turns"
	"github.com/berthd/berth/test/berthd"
	"github.com/berthd/berth/test/invariants"
)

// Names of the runtimes that are found by themselves.
const (
	nameBerth      = "berth"
	nameContainerd = "containerd"
	nameCRIO       = "CRI-O"
)

// side is one runtime and what was measured of it.
type side struct {
	*turns.Peer
	name    string
	version string
	socket  string
	berth   *berthd.Process // of berth only
	others  func() ([]int, error)
	end     func() error

	idle, loaded weight
	loadedPods   int
	rate         float64 // pods a second
	stats        []time.Duration
	pulls        []time.Duration
	newMonitors  []int // KiB
	oldMonitors  []int
}

// weight is the memory of a runtime's processes, in KiB.
type weight struct{ daemon, others int }

// start starts, or finds, the runtimes that are to be measured.
func (b *bench) start(ctx context.Context) error {
	wanted := func(name string) bool {
		if b.check {
			return name == nameBerth
		}
		return b.only == "" || slices.ContainsFunc(strings.Split(b.only, ","), func(n string) bool { return strings.EqualFold(n, name) })
	}
	if wanted(nameBerth) {
		s, err := b.startBerth(ctx)
		if err != nil {
			return err
		}
		b.sides = append(b.sides, s)
	}
	if wanted(nameContainerd) && hasContainerd() {
		s, err := b.startContainerd(ctx)
		if err != nil {
			return err
		}
		b.sides = append(b.sides, s)
	}
	peers := b.peers
	if conn, err := net.Dial("unix", crioSocket); err == nil {
		conn.Close()
		peers = append(peers, nameCRIO+"="+crioSocket)
	} else if _, missing := exec.LookPath("crio"); missing == nil && wanted(nameCRIO) {
		fmt.Fprintf(os.Stderr, "bench: CRI-O is installed and is left out, since it does not run: %v\n", err)
	}
	for _, p := range peers {
		name, socket, _ := strings.Cut(p, "=")
		if !wanted(name) {
			continue
		}
		s, err := findPeer(ctx, name, strings.TrimPrefix(socket, "unix://"))
		if err != nil {
			return err
		}
		b.sides = append(b.sides, s)
	}
	if len(b.sides) == 0 {
		return errors.New("there is no runtime of these names: " + b.only)
	}
	return nil
}

// crioSocket is CRI-O's own default.
const crioSocket = "/var/run/crio/crio.sock"

func (b *bench) startBerth(ctx context.Context) (*side, error) {
	bin, err := berthd.Build(filepath.Join(b.dir, "bin"))
	if err != nil {
		return nil, err
	}
	opts := berthd.Options{Bin: bin, Root: filepath.Join(b.dir, "r"), State: filepath.Join(b.dir, "s"), Config: filepath.Join(b.dir, "config.toml"),
		Bridge: fmt.Sprintf("bench%d", os.Getpid()%100000), Log: filepath.Join(b.dir, "berthd.log")}
	config := fmt.Sprintf("[network]\nconf_dir = %q\nbridge = %q\nsubnets = [\"10.248.0.0/16\", \"fd00:be28::/64\"]\n", filepath.Join(b.dir, "net.d"), opts.Bridge)
	if err := os.WriteFile(opts.Config, []byte(berthd.Isolate(config, b.dir)), 0o600); err != nil {
		return nil, err
	}
	p, err := berthd.New(opts)
	if err != nil {
		return nil, err
	}
	s := &side{name: nameBerth, Peer: &turns.Peer{Client: p.Client}, berth: p, socket: opts.State + "/berth.sock"}
	s.others = func() ([]int, error) { return invariants.Monitors(p.Daemon()) }
	s.end = func() error {
		d := p.Daemon()
		d.PID = 0
		return errors.Join(p.Stop(), p.Close(), berthd.Sweep(d))
	}
	if err := p.Start(ctx); err != nil {
		return nil, errors.Join(err, s.end())
	}
	return s, s.ask(ctx)
}

// findPeer uses a runtime that runs already.
func findPeer(ctx context.Context, name, socket string) (*side, error) {
	client, err := berthd.Dial(socket)
	if err != nil {
		return nil, err
	}
	before, err := helpers(anyHelper, "")
	if err != nil {
		return nil, err
	}
	s := &side{name: name, socket: socket, Peer: &turns.Peer{Client: client, CgroupParent: "/bench-" + strconv.Itoa(os.Getpid())}}
	s.others = func() ([]int, error) {
		now, err := helpers(anyHelper, "")
		return slices.DeleteFunc(now, func(pid int) bool { return slices.Contains(before, pid) }), err
	}
	s.end = func() error { return errors.Join(client.Close(), removeCgroups(s.CgroupParent)) }
	return s, s.ask(ctx)
}

// ask learns the runtime's version.
func (s *side) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	v, err := s.Client.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", s.name, err)
	}
	s.version = v.RuntimeVersion
	return nil
}

func (s *side) removeImage(ctx context.Context, ref string) error {
	if ref == "" {
		return nil
	}
	_, err := s.Client.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

// daemon is the process that serves the socket.
func (s *side) daemon() (int, error) {
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.socket, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { peer, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || failed != nil {
		return 0, errors.Join(err, failed)
	}
	return int(peer.Pid), nil
}

// weigh takes the memory of the runtime's own processes.
func (s *side) weigh() (w weight, err error) {
	pid, err := s.daemon()
	if err != nil {
		return w, err
	}
	if w.daemon, err = berthd.PSS(pid); err != nil {
		return w, err
	}
	pids, err := s.others()
	if err != nil {
		return w, err
	}
	for _, pid := range pids {
		if kib, err := berthd.PSS(pid); err == nil { // else it has ended
			w.others += kib
		}
	}
	return w, nil
}

// anyHelper matches the command lines of the processes that runtimes keep for a pod or a container.
var anyHelper = regexp.MustCompile(`^\S*\b(conmon|conmonrs|containerd-shim[^ /]*)( |$)`)

// helpers lists the processes whose command line matches and mentions a text.
func helpers(match *regexp.Regexp, mention string) (pids []int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		text, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			continue // it has ended
		}
		line := strings.ReplaceAll(string(text), "\x00", " ")
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil && match.MatchString(line) && strings.Contains(line, mention) {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

// removeCgroups removes what a runtime leaves of the cgroup parent of its pods.
func removeCgroups(parent string) error {
	tops, err := filepath.Glob("/sys/fs/cgroup/*" + parent)
	if err != nil {
		return err
	}
	var errs []error
	for _, top := range append(tops, "/sys/fs/cgroup"+parent) {
		var dirs []string
		filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			errs = append(errs, os.Remove(dir))
		}
	}
	return errors.Join(errs...)
}

// hasContainerd tells whether all is there that containerd needs.
func hasContainerd() bool {
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return false
		}
	}
	return pluginDir() != ""
}
