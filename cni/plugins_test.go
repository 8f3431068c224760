package cni_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cni/cnitest"
	"github.com/berthd/berth/test/wait"
)

// newPluginHost is a host with a CNI configuration, and a daemon on it.
func newPluginHost(t *testing.T, change func(*cni.Config)) (cfg cni.Config, state string, d *cni.Dispatcher) {
	t.Helper()
	cnitest.NeedRoot(t)
	cfg, state = pluginConfig(t)
	if change != nil {
		change(&cfg)
	}
	d = open(t, cfg)
	t.Cleanup(func() {
		if left := pluginLeftovers(t, cfg, state, []*cni.Dispatcher{d}); len(left) > 0 {
			t.Errorf("left on the host: %q", left)
		}
	})
	return cfg, state, d
}

func calls(t *testing.T, state string) (list []cnitest.Call, commands []string) {
	t.Helper()
	list, err := cnitest.Calls(state)
	must(t, err)
	for _, c := range list {
		commands = append(commands, c.Command)
	}
	return list, commands
}

func script(t *testing.T, state string, commands map[string]string) {
	t.Helper()
	must(t, cnitest.SetScript(state, commands))
}

func TestPluginGetsArgumentsAndCapabilities(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	req := podRequest(t, cni.PortMapping{HostPort: 8080, ContainerPort: 80, Protocol: "TCP", HostIP: netip.MustParseAddr("127.0.0.1")}, cni.PortMapping{ContainerPort: 81})
	req.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "10M"}
	req.DNS = &cni.DNS{Servers: []string{"192.0.2.53"}}
	req.IPs = []netip.Prefix{netip.MustParsePrefix("198.19.0.77/16")}
	a := attach(t, d, req)
	if a.Engine != cni.EngineCNI || a.Network != "fakenet" || !strings.HasSuffix(a.ConfigFile, "10-fake.conflist") || a.HostIf != "vfake" {
		t.Errorf("attachment = %+v", a)
	}
	must(t, d.Del(t.Context(), a))
	list, commands := calls(t, state)
	if diff := cmp.Diff([]string{"ADD", "DEL"}, commands); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	for _, c := range list {
		if c.ContainerID != req.SandboxID || c.NetNS != req.NetNS || c.IfName != "eth0" {
			t.Errorf("%s: %+v", c.Command, c)
		}
		want := "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=" + req.SandboxID + ";K8S_POD_UID=0b1c"
		if c.Args != want {
			t.Errorf("%s: CNI_ARGS %q, want %q", c.Command, c.Args, want)
		}
		var stdin struct{ RuntimeConfig any }
		must(t, json.Unmarshal(c.Stdin, &stdin))
		wantConfig := map[string]any{
			"portMappings": []any{map[string]any{"hostPort": 8080.0, "containerPort": 80.0, "protocol": "tcp", "hostIP": "127.0.0.1"}},
			"bandwidth":    map[string]any{"ingressRate": 10e6, "ingressBurst": 2147483647.0},
			"dns":          map[string]any{"servers": []any{"192.0.2.53"}},
			"ips":          []any{"198.19.0.77/16"},
		}
		if diff := cmp.Diff(any(wantConfig), stdin.RuntimeConfig); diff != "" {
			t.Errorf("%s: runtimeConfig (-want +got):\n%s", c.Command, diff)
		}
	}
}

func TestAddThatFailsIsFollowedByDel(t *testing.T) {
	for _, tc := range []struct{ action, want string }{
		{"fail", "scripted failure"},
		{"fail late", "scripted late failure"},
		{"crash", "scripted crash"},
		{"hang", "6s"},
		{"fork", "6s"},
		{"garbage", "invalid character"},
		{"empty", "unexpected end"},
		{"nulls", "is null"},
		{"huge", "1 MiB"},
		{"noisy", "the end"},
		{"no address", "no address"},
		{"json and exit 1", "exit status 1"},
	} {
		t.Run(strings.ReplaceAll(tc.action, " ", "_"), func(t *testing.T) {
			cfg, state, d := newPluginHost(t, func(cfg *cni.Config) {
				if tc.want == "6s" { // in which one that does not hang must be done on a busy machine
					cfg.PluginTimeout = 6 * time.Second
				}
			})
			script(t, state, map[string]string{"ADD": tc.action})
			req := podRequest(t)
			a, err := d.Plan(t.Context(), req)
			must(t, err)
			err = d.Add(t.Context(), req, &a)
			if err == nil {
				t.Fatal("Add is nil")
			}
			for _, want := range []string{tc.want, filepath.Join(cfg.ConfDir, "10-fake.conflist"), req.SandboxID} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("Add = %v, want an error with %q", err, want)
				}
			}
			if len(err.Error()) > 8192 || strings.ContainsAny(err.Error(), "\x00\x1b") {
				t.Errorf("error of %d bytes: %.200q", len(err.Error()), err)
			}
			if len(a.IPs) != 0 || len(a.Result) != 0 {
				t.Errorf("a failed Add filled in %+v", a)
			}
			if _, commands := calls(t, state); !slices.Equal(commands, []string{"ADD", "DEL"}) {
				t.Errorf("commands %q, want ADD, DEL", commands)
			}
			script(t, state, nil)
			must(t, d.Add(t.Context(), req, &a)) // the pod's next try
			must(t, d.Del(t.Context(), a))
		})
	}
}

func TestAddThatFailsInTheSecondPluginUndoesTheFirst(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	req := podRequest(t)
	a, err := d.Plan(t.Context(), req)
	must(t, err)
	list := a.Config
	var conf struct{ Plugins []cnitest.PluginConf }
	must(t, json.Unmarshal(list, &conf))
	script(t, conf.Plugins[1].State, map[string]string{"ADD": "fail"})
	if err := d.Add(t.Context(), req, &a); err == nil || !strings.Contains(err.Error(), "chained") {
		t.Errorf("Add = %v, want an error that names the plugin", err)
	}
	if attached, _ := cnitest.Attached(state); len(attached) != 0 {
		t.Errorf("the first plugin has %q attached", attached)
	}
}

func TestAddEndsWithItsContextAndIsUndone(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	script(t, state, map[string]string{"ADD": "hang"})
	req := podRequest(t)
	a, err := d.Plan(t.Context(), req)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	start := time.Now()
	go func() {
		for list, _ := cnitest.Calls(state); len(list) == 0 && ctx.Err() == nil; list, _ = cnitest.Calls(state) {
			time.Sleep(10 * time.Millisecond)
		}
		cancel()
	}()
	if err := d.Add(ctx, req, &a); !errors.Is(err, context.Canceled) || time.Since(start) > 30*time.Second {
		t.Errorf("Add = %v after %s, want Canceled", err, time.Since(start))
	}
	if _, commands := calls(t, state); !slices.Equal(commands, []string{"ADD", "DEL"}) {
		t.Errorf("commands %q, want ADD, DEL", commands)
	}
}

func TestAddressOfAnotherPodIsRefused(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	script(t, state, map[string]string{"ADD": "same address"})
	a := attach(t, d, podRequest(t))
	req := podRequest(t)
	b, err := d.Plan(t.Context(), req)
	must(t, err)
	if err := d.Add(t.Context(), req, &b); err == nil || !strings.Contains(err.Error(), a.SandboxID) {
		t.Errorf("Add = %v, want an error that names %s", err, a.SandboxID)
	}
	must(t, d.Del(t.Context(), a))
	must(t, d.Add(t.Context(), req, &b)) // it is free now
	must(t, d.Del(t.Context(), b))
}

func TestDelThatFailsIsAnErrorUntilItWorks(t *testing.T) {
	_, state, d := newPluginHost(t, func(cfg *cni.Config) { cfg.PluginTimeout = 6 * time.Second })
	a := attach(t, d, podRequest(t))
	for _, action := range []string{"fail", "crash", "hang"} {
		script(t, state, map[string]string{"DEL": action})
		if err := d.Del(t.Context(), a); err == nil {
			t.Errorf("Del with DEL %s is nil", action)
		}
	}
	script(t, state, nil)
	must(t, d.Del(t.Context(), a))
}

func TestAttachmentEndsAsItWasMade(t *testing.T) {
	cfg, state, d := newPluginHost(t, nil)
	a := attach(t, d, podRequest(t))
	b := attach(t, d, podRequest(t))
	must(t, os.RemoveAll(cfg.ConfDir))
	c := attach(t, d, podRequest(t))
	if c.Engine != cni.EngineBridge {
		t.Errorf("without configuration: engine %s, want bridge", c.Engine)
	}
	must(t, d.Status(t.Context()))
	must(t, d.Del(t.Context(), a)) // by the plugin, with the configuration of then
	other := t.TempDir()
	writeConf(t, cfg, "05-other.conf", map[string]any{"cniVersion": "1.0.0", "name": "other", "type": "fake", "state": other})
	e := attach(t, d, podRequest(t))
	if e.Network != "other" {
		t.Errorf("with a new configuration: network %s, want other", e.Network)
	}
	d2 := open(t, cfg) // a restart changes nothing of it
	defer func() { must(t, d2.Close()) }()
	for _, x := range []cni.Attachment{b, c, e} {
		must(t, d2.Check(t.Context(), x))
		must(t, d2.Del(t.Context(), x))
	}
	list, _ := calls(t, state)
	for _, call := range list {
		if call.Command == "DEL" && !strings.Contains(string(call.Stdin), `"fakenet"`) {
			t.Errorf("DEL with %s", call.Stdin)
		}
	}
}

func TestDelWithoutNamespacePassesNone(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	for _, end := range []func(path string){
		func(path string) { (&cnitest.NetNS{Path: path}).Remove() }, // the file is there, the namespace is not: after a reboot
		func(path string) { (&cnitest.NetNS{Path: path}).Remove(); must(t, os.Remove(path)) },
	} {
		a := attach(t, d, podRequest(t))
		end(a.NetNS)
		must(t, d.Del(t.Context(), a))
		list, _ := calls(t, state)
		if last := list[len(list)-1]; last.Command != "DEL" || last.NetNS != "" {
			t.Errorf("%s with CNI_NETNS %q, want DEL with none", last.Command, last.NetNS)
		}
	}
}

func TestStatusOfPlugins(t *testing.T) {
	_, state, d := newPluginHost(t, nil)
	script(t, state, map[string]string{"STATUS": "fail"})
	if err := d.Status(t.Context()); !errors.Is(err, cni.ErrNotReady) || !strings.Contains(err.Error(), "scripted failure") {
		t.Errorf("Status = %v, want ErrNotReady with the plugin's words", err)
	}
	script(t, state, nil)
	var good time.Time
	if !wait.Until(30*time.Second, 100*time.Millisecond, func() bool {
		good = time.Now()
		return d.Status(t.Context()) == nil
	}) {
		t.Fatal("Status does not recover")
	}
	script(t, state, map[string]string{"STATUS": "fail"})
	const grace = 5 * time.Second
	for time.Since(good) < 3*time.Second {
		if err := d.Status(t.Context()); err != nil && time.Since(good) < grace {
			t.Fatalf("Status after %s = %v, want nil for a while", time.Since(good), err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if !wait.Until(30*time.Second, 100*time.Millisecond, func() bool { return d.Status(t.Context()) != nil }) {
		t.Fatal("Status stays good")
	}
}

func TestConfigurationThatCannotBeUsed(t *testing.T) {
	cfg, _, d := newPluginHost(t, nil)
	check := func(name string, want ...string) {
		t.Helper()
		_, planErr := d.Plan(t.Context(), podRequest(t))
		for method, err := range map[string]error{"Plan": planErr, "Status": d.Status(t.Context())} {
			if !errors.Is(err, cni.ErrNotReady) {
				t.Errorf("%s: %s = %v, want ErrNotReady", name, method, err)
			}
			for _, w := range want {
				if !strings.Contains(fmt.Sprint(err), w) {
					t.Errorf("%s: %s = %v, want an error with %q", name, method, err, w)
				}
			}
		}
	}
	writeConf(t, cfg, "05-bad.conflist", []byte(`{"cniVersion":`))
	d.Close()
	d = open(t, cfg)
	check("broken file", "05-bad.conflist")
	if err := d.GC(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "05-bad.conflist") {
		t.Errorf("GC = %v, want an error that names the file", err)
	}
	must(t, os.Remove(filepath.Join(cfg.ConfDir, "05-bad.conflist")))
	must(t, os.Remove(filepath.Join(cfg.BinDirs[0], "chained")))
	check("missing plugin", "10-fake.conflist", `"chained"`, cfg.BinDirs[0])
	must(t, os.Chmod(cfg.BinDirs[0], 0o777))
	check("plugin folder that everybody may write to", "10-fake.conflist", "writable by everybody")
	must(t, os.Chmod(cfg.BinDirs[0], 0o755))
	must(t, os.RemoveAll(cfg.ConfDir))
	must(t, d.Status(t.Context()))
	cfg.Bridge.Disabled = true
	d.Close()
	d = open(t, cfg)
	check("no configuration, no bridge", cfg.ConfDir, "disabled")
}

func TestGCOfPlugins(t *testing.T) {
	cfg, state, d := newPluginHost(t, nil)
	kept := attach(t, d, podRequest(t))
	lost := attach(t, d, podRequest(t))
	// ADD of a daemon that was killed before libcni noted the result: only the plugin knows.
	must(t, os.WriteFile(filepath.Join(state, "attached-half"), nil, 0o600))
	d2 := open(t, cfg)
	defer func() { must(t, d2.Close()) }()
	must(t, d2.GC(t.Context(), []cni.Attachment{kept}))
	attached, err := cnitest.Attached(state)
	must(t, err)
	if !slices.Equal(attached, []string{kept.SandboxID}) {
		t.Errorf("attached after GC: %q, want %q only", attached, kept.SandboxID)
	}
	list, commands := calls(t, state)
	if !slices.Equal(commands, []string{"ADD", "ADD", "DEL", "GC"}) || list[2].ContainerID != lost.SandboxID {
		t.Errorf("commands %q, DEL of %s", commands, list[2].ContainerID)
	}
	must(t, d2.Del(t.Context(), kept))
}

// What was made with a configuration that is no longer there is ended with it.
func TestGCOfAFormerConfiguration(t *testing.T) {
	cfg, state, d := newPluginHost(t, nil)
	attach(t, d, podRequest(t))
	must(t, os.RemoveAll(cfg.ConfDir))
	d2 := open(t, cfg)
	defer func() { must(t, d2.Close()) }()
	must(t, d2.GC(t.Context(), nil))
	attached, err := cnitest.Attached(state)
	must(t, err)
	if _, commands := calls(t, state); len(attached) != 0 || !slices.Equal(commands, []string{"ADD", "DEL"}) {
		t.Errorf("attached after GC: %q, commands %q", attached, commands)
	}
}
