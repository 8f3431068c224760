package cni_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
)

func TestMain(m *testing.M) { cnitest.Main(m) }

var bridgeNumber atomic.Int32

// bridgeConfig is a bridge that no other test has.
func bridgeConfig(t testing.TB) cni.Config {
	t.Helper()
	n := bridgeNumber.Add(1)
	dir := t.TempDir()
	return cni.Config{
		Live: cni.Live{ConfDir: filepath.Join(dir, "net.d"), BinDirs: []string{filepath.Join(dir, "bin")}}, CacheDir: filepath.Join(dir, "network"),
		Instance: fmt.Sprintf("%06x", n),
		Bridge: cni.BridgeConfig{
			Name: fmt.Sprintf("bt%d", n),
			Subnets: []netip.Prefix{
				netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/16", 10+n%200)), netip.MustParsePrefix(fmt.Sprintf("fd77:%x::/64", n)),
			},
		},
	}
}

func open(t testing.TB, cfg cni.Config) *cni.Dispatcher {
	t.Helper()
	d, err := cni.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// leftovers lists what a bridge without attachments must not have, then closes the daemons and lists what is left altogether.
func leftovers(t *testing.T, cfg cni.Config, daemons []*cni.Dispatcher) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var left []string
	for _, d := range daemons {
		if err := d.Idle(ctx); err != nil {
			left = append(left, err.Error())
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "vb") {
			left = append(left, l.Name)
		}
	}
	if files, err := os.ReadDir(filepath.Join(cfg.CacheDir, cfg.Bridge.Name)); err == nil {
		for _, f := range files {
			if _, err := netip.ParseAddr(f.Name()); err == nil {
				left = append(left, f.Name())
			}
		}
	}
	for _, d := range daemons {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := net.InterfaceByName(cfg.Bridge.Name); err == nil {
		left = append(left, cfg.Bridge.Name)
	}
	if nft, err := exec.LookPath("nft"); err == nil {
		out, _ := exec.Command(nft, "list", "tables").CombinedOutput()
		if strings.Contains(string(out), cfg.Bridge.Name) {
			left = append(left, string(out))
		}
	}
	return left
}

func netNS(t *testing.T) (string, func()) {
	ns := cnitest.NewNetNS(t)
	return ns.Path, ns.Remove
}

func TestBridge(t *testing.T) {
	cnitest.NeedRoot(t)
	cnitest.Suite(t, func(t *testing.T) cnitest.Harness {
		cfg := bridgeConfig(t)
		var daemons []*cni.Dispatcher
		return cnitest.Harness{
			Open: func(t *testing.T) cni.Network {
				d := open(t, cfg)
				daemons = append(daemons, d)
				return d
			},
			NetNS:     netNS,
			Leftovers: func(t *testing.T) []string { return leftovers(t, cfg, daemons) },
			Ports:     true,
		}
	})
}

// pluginConfig is a host with a CNI configuration of two plugins, the first of which does as its script says.
func pluginConfig(t testing.TB) (cfg cni.Config, state string) {
	t.Helper()
	cfg = bridgeConfig(t)
	state = t.TempDir()
	for _, dir := range append(cfg.BinDirs, cfg.ConfDir) {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fake", "chained"} {
		if err := os.Symlink(exe, filepath.Join(cfg.BinDirs[0], name)); err != nil {
			t.Fatal(err)
		}
	}
	chained := t.TempDir()
	writeConf(t, cfg, "10-fake.conflist", map[string]any{
		"cniVersion": "1.1.0", "name": "fakenet", "plugins": []any{
			map[string]any{"type": "fake", "state": state, "capabilities": map[string]bool{"portMappings": true, "bandwidth": true, "dns": true, "ips": true}},
			map[string]any{"type": "chained", "state": chained, "chained": true},
		},
	})
	return cfg, state
}

func writeConf(t testing.TB, cfg cni.Config, name string, content any) {
	t.Helper()
	b, ok := content.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(cfg.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.ConfDir, name), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func pluginLeftovers(t *testing.T, cfg cni.Config, state string, daemons []*cni.Dispatcher) []string {
	left, err := cnitest.Attached(state)
	if err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(filepath.Join(cfg.CacheDir, "results")); err == nil {
		for _, f := range files {
			left = append(left, f.Name())
		}
	}
	return append(left, leftovers(t, cfg, daemons)...)
}

func TestPlugins(t *testing.T) {
	cnitest.NeedRoot(t)
	cnitest.Suite(t, func(t *testing.T) cnitest.Harness {
		cfg, state := pluginConfig(t)
		var daemons []*cni.Dispatcher
		return cnitest.Harness{
			Open: func(t *testing.T) cni.Network {
				d := open(t, cfg)
				daemons = append(daemons, d)
				return d
			},
			NetNS:     netNS,
			Leftovers: func(t *testing.T) []string { return pluginLeftovers(t, cfg, state, daemons) },
		}
	})
}
