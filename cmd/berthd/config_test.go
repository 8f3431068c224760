package main

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/imageservice/registry"
	"github.com/berthd/berth/oci/adjust/nri"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestConfigDefaults(t *testing.T) {
	for _, path := range []string{write(t, ""), filepath.Join(t.TempDir(), "none")} {
		c, err := readDefaultConfig(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.images.HostsDir != "/etc/berth/certs.d" || c.network.ConfDir != "/etc/cni/net.d" || c.bridge != "" || c.verbosity != 2 ||
			!strings.HasSuffix(c.monitor, "/berth-monitor") || len(c.subnets) != 0 {
			t.Errorf("configuration = %+v", c)
		}
	}
	if _, err := readConfig(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that was asked for may be missing")
	}
}

func TestInstanceOfARoot(t *testing.T) {
	if instanceOf("/var/lib/berth/") != "" {
		t.Error("the default root has an instance")
	}
	a, b := instanceOf("/srv/a"), instanceOf("/srv/b")
	if len(a) != 6 || a == b {
		t.Fatalf("instances %q, %q", a, b)
	}
}

func TestConfigFile(t *testing.T) {
	c, err := readConfig(write(t, `
[registry]
config_path = "/c"
[network]
conf_dir = "/n"
bin_dirs = ["/b", "/d"]
bridge = "br9"
subnets = ["10.1.0.0/24"]
mtu = 1400
[runtime]
monitor = "/m"
[log]
verbosity = 0
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.images.HostsDir != "/c" || c.network.ConfDir != "/n" || len(c.network.BinDirs) != 2 || c.bridge != "br9" || len(c.subnets) != 1 || c.mtu != 1400 ||
		c.monitor != "/m" || c.verbosity != 0 {
		t.Errorf("configuration = %+v", c)
	}
}

func TestConfigErrorsNameLineAndKey(t *testing.T) {
	for _, tc := range []struct{ name, text, want string }{
		{"unknown key", "[network]\nbrigde = \"x\"\n", ":2: unknown key network.brigde"},
		{"unknown section", "\n\n[netwrok]\nbridge = \"x\"\n", ":3: unknown key netwrok"},
		{"wrong type", "[network]\nmtu = \"big\"\n", ":2: key network.mtu: want an integer, have a string"},
		{"no TOML", "[network\n", ":1:"},
		{"relative path", "[registry]\nconfig_path = \"certs\"\n", `key registry.config_path: "certs" is not an absolute path`},
		{"relative folder", "[network]\nbin_dirs = [\"bin\"]\n", "key network.bin_dirs"},
		{"bridge too long", "[network]\nbridge = \"a-very-long-name-\"\n", "key network.bridge"},
		{"bridge with a slash", "[network]\nbridge = \"a/b\"\n", "key network.bridge"},
		{"mtu", "[network]\nmtu = 100\n", "key network.mtu: 100"},
		{"subnet", "[network]\nsubnets = [\"10.0.0.0\"]\n", "key network.subnets"},
		{"host bits", "[network]\nsubnets = [\"10.0.0.1/24\"]\n", "the range is 10.0.0.0/24"},
		{"two of a family", "[network]\nsubnets = [\"10.0.0.0/16\", \"10.1.0.0/16\"]\n", ":2: key network.subnets: 10.1.0.0/16 is the second of its family"},
		{"no room", "[network]\nsubnets = [\"10.0.0.0/31\"]\n", ":2: key network.subnets: 10.0.0.0/31 has no room for pods"},
		{"multicast", "[network]\nsubnets = [\"224.0.0.0/16\"]\n", ":2: key network.subnets: 224.0.0.0/16 is not of unicast addresses"},
		{"name of a folder of the network's", "[network]\nbridge = \"results\"\n", ":2: key network.bridge: \"results\" is not"},
		{"verbosity", "[log]\nverbosity = 11\n", "key log.verbosity"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := write(t, tc.text)
			_, err := readConfig(path)
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), path) {
				t.Errorf("error = %v, want %q", err, path+tc.want)
			}
		})
	}
}

func TestDropInsOfTheConfiguration(t *testing.T) {
	path := write(t, "[network]\nmtu = 1400\nbridge = \"br9\"\n[runtimes.runc]\ntype = \"oci\"\npath = \"/a/runc\"\n")
	dropIn := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(path+".d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path+".d", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dropIn("20.toml", "[network]\nmtu = 1500\n")
	dropIn("10.toml", "[network]\nmtu = 1450\n[runtimes.runc]\npath = \"/b/runc\"\n[runtime]\ndefault = \"runc\"\n")
	c, err := readConfig(path)
	if err != nil || c.mtu != 1500 || c.bridge != "br9" || c.runtimes[""] == nil || c.runtimes[""].Path != "/b/runc" {
		t.Errorf("configuration = %+v, %v", c, err)
	}
	if err := os.Remove(path); err != nil { // the drop-ins count without it, too
		t.Fatal(err)
	}
	dropIn("10.toml", "[log]\nverbosity = 7\n")
	if c, err = readDefaultConfig(path); err != nil || c.mtu != 1500 || c.verbosity != 7 {
		t.Errorf("configuration = %+v, %v", c, err)
	}
	if _, err := readConfig(path); err == nil {
		t.Error("a file that was asked for may be missing when drop-ins are there")
	}
	// What is replaced would come to light when the drop-in goes, so it has to be in order as well.
	for key, value := range map[string]string{"type": `"vm"`, "path": `"runc"`, "options": `["debug"]`} {
		bad := write(t, "[runtimes.runc]\n"+key+" = "+value+"\n")
		if err := os.Mkdir(bad+".d", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bad+".d/10.toml", []byte("[runtimes.runc]\ntype = \"oci\"\npath = \"/a/runc\"\noptions = []\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readConfig(bad); err == nil || !strings.HasPrefix(err.Error(), bad+":2: key runtimes.runc."+key+": ") {
			t.Errorf("a wrong %s that is replaced: %v", key, err)
		}
	}
	dropIn("30.toml", "\n[network]\nmtu = 1\n")
	if _, err := readDefaultConfig(path); err == nil || !strings.HasPrefix(err.Error(), path+".d/30.toml:3: key network.mtu: 1") {
		t.Errorf("error = %v", err)
	}
}

func TestConfigCommand(t *testing.T) {
	run := func(want int, args ...string) (string, string) {
		t.Helper()
		var out, errs bytes.Buffer
		if code := configCommand(args, &out, &errs); code != want {
			t.Errorf("config %q: exit status %d, want %d: %s", args, code, want, &errs)
		}
		return out.String(), errs.String()
	}
	text, _ := run(0, "default")
	for _, k := range keys.Keys {
		if name := k.Name[strings.LastIndexByte(k.Name, '.')+1:]; !strings.Contains(text, name+" = ") {
			t.Errorf("the default file has no %s", k.Name)
		}
	}
	path := write(t, text)
	if out, _ := run(0, "check", path); !strings.Contains(out, path) {
		t.Errorf("check = %q", out)
	}
	now, err := readConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	before, err := readConfig(write(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if live, others := keys.Changed(before.values, now.values); live != nil || others != nil {
		t.Errorf("the default file changes %q and %q", live, others)
	}
	bad := write(t, "[network]\nmtu = 1\nbrigde = \"x\"\n[log]\nverbosity = 11\n")
	_, errs := run(exitFailed, "check", bad)
	for _, want := range []string{":2: key network.mtu: 1 ", ":3: unknown key network.brigde\n", ":5: key log.verbosity: 11 "} {
		if !strings.Contains(errs, bad+want) {
			t.Errorf("no %q in %q", want, errs)
		}
	}
	run(exitFailed, "check", "/nowhere/config.toml")
	run(0, "--help")
	for _, args := range [][]string{nil, {"x"}, {"default", "x"}, {"check", "a", "b"}} {
		run(exitUsage, args...)
	}
	if out, _ := run(0, "manual"); !strings.Contains(out, ".B network.mtu\n") {
		t.Errorf("manual = %q", out)
	}
}

func TestFlags(t *testing.T) {
	var out bytes.Buffer
	f, err := parseFlags([]string{"--state", "/s/x/../y"}, &out)
	if err != nil || f.socket != "/s/y/berth.sock" || f.state != "/s/y" || f.root != "/var/lib/berth" || f.mustConfig {
		t.Errorf("flags = %+v, %v", f, err)
	}
	if f, err = parseFlags([]string{"--config", "/c", "--socket", "/k", "--v", "4"}, &out); err != nil || !f.mustConfig || f.socket != "/k" || f.verbosity != 4 {
		t.Errorf("flags = %+v, %v", f, err)
	}
	for _, args := range [][]string{{"x"}, {"--nothing"}, {"--root", "/"}, {"--root", ""}, {"--v", "much"}, {"--v", "-3"}, {"--v", "11"}, {"--root", "/a/b", "--state", "/a/./b"},
		{"--socket", "/" + strings.Repeat("s", 107)}, {"--state", "/" + strings.Repeat("s", 96)}} {
		out.Reset()
		if _, err := parseFlags(args, &out); err == nil || out.Len() == 0 {
			t.Errorf("%q: %v, %q", args, err, out.String())
		}
	}
}

func TestVersionIsSemantic(t *testing.T) {
	for in, want := range map[string]string{
		"v1.2.3": "1.2.3", "1.2.3-rc.1": "1.2.3-rc.1", "v1.2.3-4-g8e94786-dirty": "1.2.3-4-g8e94786-dirty",
		"8e94786-dirty": "0.1.0-dev+8e94786-dirty", "unknown": "0.1.0-dev+unknown", "0.1.0-dev": "0.1.0-dev",
	} {
		if got := semanticVersion(in); got != want {
			t.Errorf("semanticVersion(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestEveryKeyCounts: each key has a field of its own, a value of each differs from the default, and a reload takes it over or tells of it.
func TestEveryKeyCounts(t *testing.T) {
	cert, key := filepath.Join(t.TempDir(), "k"), filepath.Join(t.TempDir(), "l")
	makeCertificate(t, cert, key, 1)
	now, err := readConfig(write(t, strings.NewReplacer("/k", cert, "/l", key).Replace(`
[registry]
config_path = "/a"
[images]
pinned = ["b"]
parallel_layers = 3
unpack_layers = 4
layer_connections = 5
chunk_size = 6
max_connections = 7
max_buffered = 9
stall_timeout = "10s"
stall_size = 11
mirror_patience = "12s"
dial_timeout = "13s"
[network]
conf_dir = "/c"
bin_dirs = ["/d"]
conf_template = "/e"
gc_interval = "14s"
bridge = "f"
subnets = ["10.1.0.0/24"]
mtu = 1500
ip_pref = "ipv6"
[runtime]
monitor = "/g"
default = "h"
[runtimes.h]
type = "oci"
path = "/i"
options = ["--j"]
[cgroup]
driver = "cgroupfs"
[streaming]
address = "::1"
port = 16
tls_cert = "/k"
tls_key = "/l"
idle_timeout = "17s"
[apparmor]
disabled = true
[blockio]
classes = "/m"
[cdi]
spec_dirs = ["/n"]
[devices]
additional = ["/o:/p:r"]
owned_by_user = true
none_for_privileged = true
[hooks]
dirs = ["/q"]
[selinux]
enabled = true
[nri]
disable = true
plugin_path = "/r"
plugin_config_path = "/s"
plugin_registration_timeout = "18s"
plugin_request_timeout = "19s"
plugin_synchronization_timeout = "20s"
[nri.default_validator]
enable = true
reject_oci_hook_adjustment = true
reject_runtime_default_seccomp_adjustment = true
reject_unconfined_seccomp_adjustment = true
reject_custom_seccomp_adjustment = true
reject_namespace_adjustment = true
reject_sysctl_adjustment = true
required_plugins = ["t"]
tolerate_missing_plugins_annotation = "u"
[metrics]
address = "127.0.0.1:21"
[log]
verbosity = 9
`)))
	if err != nil {
		t.Fatal(err)
	}
	program := &external.Program{Path: "/i", Options: []string{"--j"}}
	want := config{
		images: imageservice.Config{HostsDir: "/a", Pinned: []string{"b"}, Parallel: 3, Unpack: 4, Registry: registry.Config{
			Connections: 5, ChunkSize: 6 << 20, MaxConnections: 7, MaxBuffered: 9 << 20, StallTimeout: 10 * time.Second, StallBytes: 11 << 10,
			Patience: 12 * time.Second, DialTimeout: 13 * time.Second,
		}},
		network: cni.Live{ConfDir: "/c", BinDirs: []string{"/d"}, Template: "/e"}, gcInterval: 14 * time.Second,
		bridgeConfig: bridgeConfig{bridge: "f", subnets: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}, mtu: 1500},
		primaryIP:    sandbox.IPv6, monitor: "/g",
		handlerConfig: handlerConfig{
			defaultRuntime: "h", runtimeFiles: map[string]runtimeFile{"h": {Type: "oci", Path: "/i", Options: []string{"--j"}}},
			runtimes: map[string]*external.Program{"berth": nil, "h": program, "": program}, prober: now.prober,
		},
		cgroupDriver: "cgroupfs",
		streaming:    streamingConfig{address: netip.IPv6Loopback(), port: 16, cert: cert, key: key, certificate: now.streaming.certificate, idleTimeout: 17 * time.Second},
		metrics:      netip.MustParseAddrPort("127.0.0.1:21"),
		adjust: adjustConfig{
			cdiDirs: []string{"/n"}, hookDirs: []string{"/q"}, seLinux: true, noAppArmor: true, blockIO: "/m",
			devicePolicy: spec.DevicePolicy{
				ForAll: []*runtimeapi.Device{{HostPath: "/o", ContainerPath: "/p", Permissions: "r"}}, OwnedByUser: true, NoHostDevices: true,
			},
			plugins: pluginConfig{disable: true, Config: nri.Config{
				PluginPath: "/r", ConfigPath: "/s", RegistrationTimeout: 18 * time.Second, RequestTimeout: 19 * time.Second, SyncTimeout: 20 * time.Second,
				Validator: nri.Validator{
					Enable: true, RejectOCIHookAdjustment: true, RejectRuntimeDefaultSeccompAdjustment: true, RejectUnconfinedSeccompAdjustment: true,
					RejectCustomSeccompAdjustment: true, RejectNamespaceAdjustment: true, RejectSysctlAdjustment: true,
					RequiredPlugins: []string{"t"}, TolerateMissingAnnotation: "u",
				},
			}},
		},
		verbosity: 9, values: now.values,
	}
	if !reflect.DeepEqual(now, want) {
		t.Errorf("configuration = %+v\nwant %+v", now, want)
	}
	before, err := readConfig(write(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	live, others := keys.Changed(before.values, now.values)
	told := map[string]bool{}
	for _, key := range append(live, others...) {
		told[strings.Replace(key, "runtimes.h.", "runtimes.NAME.", 1)] = true
	}
	for _, k := range keys.Keys {
		if !told[k.Name] {
			t.Errorf("%s: a change is neither taken over nor told of", k.Name)
		}
	}
}
