package cni_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

const crashEnv = "BERTH_TEST_CRASH"

// TestCrashChild is not a test: it is the daemon that TestKilledAtAnyMoment kills. It attaches and detaches pods for ever.
func TestCrashChild(t *testing.T) {
	text := os.Getenv(crashEnv)
	if text == "" {
		return
	}
	var job struct {
		Config cni.Config
		NetNS  []string
		Shaped bool // all pods but the first
	}
	must(t, json.Unmarshal([]byte(text), &job))
	d, err := cni.Open(t.Context(), job.Config)
	must(t, err)
	errs := make(chan error)
	for i, path := range job.NetNS {
		go func() {
			for {
				req := cni.Request{
					SandboxID: cnitest.SandboxID(), NetNS: path,
					PortMappings: []cni.PortMapping{{HostPort: uint16(8000 + i), ContainerPort: 80, Protocol: "udp"}},
				}
				if i > 0 && job.Shaped {
					req.Bandwidth = &cni.Bandwidth{IngressRate: 1e6, IngressBurst: 1e6, EgressRate: 1e6, EgressBurst: 1e6}
				}
				a, err := d.Plan(t.Context(), req)
				if err == nil {
					err = d.Add(t.Context(), req, &a)
				}
				if err == nil {
					err = d.Del(t.Context(), a)
				}
				if err == nil { // eth0 is there until the link is gone
					err = d.Idle(t.Context())
				}
				if err != nil {
					errs <- err
				}
			}
		}()
	}
	fmt.Println("running")
	t.Error(<-errs)
}

// Whenever the daemon dies, the next one frees everything, and can attach pods at once.
func TestKilledAtAnyMoment(t *testing.T) {
	h := newHost(t)
	var paths []string
	for range 3 {
		paths = append(paths, cnitest.NewNetNS(t).Path)
	}
	job, err := json.Marshal(map[string]any{"Config": h.cfg, "NetNS": paths, "Shaped": canShape(t)})
	must(t, err)
	exe, err := os.Executable()
	must(t, err)
	for round := range 20 {
		cmd := exec.Command(exe, "-test.run", "^TestCrashChild$", "-test.v")
		cmd.Env = append(os.Environ(), crashEnv+"="+string(job))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		buf, said := make([]byte, 4096), ""
		for !strings.Contains(said, "running") {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("child: %v\n%s", err, said)
			}
			said += string(buf[:n])
		}
		time.Sleep(rand.N(40 * time.Millisecond))
		must(t, cmd.Process.Kill())
		n, _ := out.Read(buf)
		_ = cmd.Wait()
		if n > 0 {
			t.Fatalf("child: %s", buf[:n])
		}
		d := open(t, h.cfg)
		if err := d.GC(t.Context(), nil); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if left := podsLeft(t, h.cfg); len(left) > 0 {
			t.Fatalf("round %d: GC left %q", round, left)
		}
		req := podRequest(t, cni.PortMapping{HostPort: 8000, ContainerPort: 80, Protocol: "udp"})
		must(t, d.Del(t.Context(), attach(t, d, req)))
		must(t, d.Close())
	}
}

// canShape reports whether the kernel can limit bandwidth.
func canShape(t *testing.T) bool {
	t.Helper()
	h := newHost(t)
	d := h.newDaemon(t)
	req := podRequest(t)
	req.Bandwidth = &cni.Bandwidth{IngressRate: 1e6, IngressBurst: 1e6, EgressRate: 1e6, EgressBurst: 1e6}
	a, err := d.Plan(t.Context(), req)
	must(t, err)
	if err = d.Add(t.Context(), req, &a); errors.Is(err, cni.ErrNotSupported) {
		return false
	}
	must(t, err)
	must(t, d.Del(t.Context(), a))
	return true
}

// podsLeft lists links and addresses of pods.
func podsLeft(t *testing.T, cfg cni.Config) (left []string) {
	t.Helper()
	for _, address := range reserved(t, cfg) {
		left = append(left, address)
	}
	links, err := filepath.Glob("/proc/sys/net/ipv4/conf/vb*")
	must(t, err)
	return append(left, links...)
}

func TestFullDisk(t *testing.T) {
	h := newHost(t)
	must(t, os.MkdirAll(h.cfg.CacheDir, 0o700))
	must(t, unix.Mount("tmpfs", h.cfg.CacheDir, "tmpfs", 0, "nr_inodes=8"))
	d := h.newDaemon(t)
	var attached []cni.Attachment
	for {
		req := podRequest(t)
		a, err := d.Plan(t.Context(), req)
		must(t, err)
		if err := d.Add(t.Context(), req, &a); err != nil {
			if !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(err.Error(), "reserve address") {
				t.Errorf("Add on a full disk = %v", err)
			}
			break
		}
		if attached = append(attached, a); len(attached) > 20 {
			t.Fatal("the disk does not fill")
		}
	}
	must(t, d.Idle(t.Context()))
	if got := reserved(t, h.cfg); len(got) != 2*len(attached) {
		t.Errorf("%d pods, reserved %q", len(attached), got)
	}
	for _, a := range attached {
		must(t, d.Del(t.Context(), a))
	}
	must(t, d.Idle(t.Context()))
	must(t, d.Del(t.Context(), attach(t, d, podRequest(t))))
	must(t, d.Idle(t.Context()))
	t.Cleanup(func() { must(t, unix.Unmount(h.cfg.CacheDir, unix.MNT_DETACH)) })
}
