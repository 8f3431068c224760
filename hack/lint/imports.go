package main

import (
	"fmt"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
)

const module = "github.com/berthd/berth"

// A rule says what the packages below one folder may import: the project's packages in own (x/... means x and all below it), besides the
// folder itself and all below it, and of the libraries everything but those in not. The longest folder that fits a package counts.
type rule struct {
	folder string
	own    []string
	not    []string
	why    string
}

var (
	grpc    = []string{"google.golang.org/grpc"}
	criAPI  = []string{"k8s.io/cri-api"}
	logging = []string{"k8s.io/klog"}
	webs    = []string{"net/http"}
	linuxes = []string{"github.com/containerd/cgroups", "github.com/vishvananda/netlink", "github.com/google/nftables", "github.com/containernetworking"}
)

// rules is the one-way order: cmd > cri > sandbox, imageservice (strangers to each other) > their sub-packages, oci/spec,
// oci/adjust, cni > oci/runtime, oci/seccomp.
var rules = []rule{
	{"cmd", []string{"cri/...", "sandbox/...", "imageservice/...", "oci/...", "cni/..."}, nil,
		"cmd wires everything together"},
	{"cmd/berth", nil, linuxes, "the command line talks to berthd only, so it knows no more than the CRI"},
	{"cmd/berth-monitor", []string{"sandbox/monitor/...", "oci/runtime/..."}, slices.Concat(grpc, criAPI, logging, webs, linuxes),
		"one monitor runs for each pod: its memory is multiplied by the number of pods"},
	{"cri", []string{"sandbox", "imageservice", "oci/spec"}, linuxes,
		"cri composes images and sandboxes; paths on disk, CNI, cgroups and the monitor are not its business"},

	{"sandbox", []string{"oci/...", "cni/..."}, slices.Concat(grpc, webs),
		"a sandbox can run without a gRPC server, and knows images only as opaque keys"},
	{"sandbox/store", nil, slices.Concat(grpc, criAPI, logging, webs, linuxes),
		"records are files; what they mean is known above"},
	{"sandbox/netns", nil, slices.Concat(grpc, criAPI, logging, webs), "a leaf about pins"},
	{"sandbox/cgroup", nil, slices.Concat(grpc, criAPI, logging, webs), "a leaf about cgroup folders"},
	{"sandbox/monitor", []string{"oci/runtime/..."}, slices.Concat(grpc, criAPI, logging, webs, linuxes),
		"the protocol is spoken by berth-monitor too"},

	{"imageservice", nil, slices.Concat(grpc, criAPI, logging, linuxes), "images know no pods, no containers and no gRPC"},
	{"imageservice/reference", nil, slices.Concat(grpc, criAPI, logging, webs, linuxes), "parsing is pure"},
	{"imageservice/registry", []string{"imageservice/reference"}, slices.Concat(grpc, criAPI, logging, linuxes),
		"a registry's answers are hostile bytes; the registry client hands out streams and knows no disk"},
	{"imageservice/layer", nil, slices.Concat(grpc, criAPI, logging, webs, linuxes),
		"layers are hostile bytes: what unpacks them can reach nothing else"},
	{"imageservice/snapshot", []string{"imageservice/layer"}, slices.Concat(grpc, criAPI, logging, webs, linuxes),
		"snapshots are folders and mount lists; where layers come from is known above"},

	{"cni", nil, slices.Concat(grpc, criAPI, logging, webs), "the network sees an attachment, not a pod"},
	{"oci", nil, slices.Concat(grpc, criAPI, logging, webs, linuxes), "running a container needs no daemon"},
	{"oci/spec", []string{"oci/seccomp"}, slices.Concat(grpc, logging, webs, linuxes), "PURE: CRI config + image config -> spec"},
	{"oci/adjust", []string{"oci/spec"}, slices.Concat(grpc, logging, webs, linuxes), "changes a spec, and nothing else"},
	{"oci/runtime", []string{"oci/seccomp"}, slices.Concat(grpc, criAPI, logging, webs, linuxes),
		"the engine runs in the monitor too, and does not know why a container exists"},
	{"oci/seccomp", nil, slices.Concat(grpc, criAPI, logging, webs, linuxes), "a profile goes in, a program comes out"},

	{"test", []string{"cmd/...", "cri/...", "sandbox/...", "imageservice/...", "oci/...", "cni/...", "hack/..."}, nil, "tests may look at everything"},
	{"hack", []string{"cmd/...", "cri/...", "sandbox/...", "imageservice/...", "oci/...", "cni/...", "test/..."}, nil, "tools may use everything"},
}

// forbidden are package names that say nothing about what is inside, so that everything ends up in them.
var forbidden = []string{"config", "util", "utils", "common", "types", "helper", "helpers", "base", "misc", "shared"}

// monitorBans are what must not be linked into berth-monitor, not even by way of a library.
var monitorBans = []string{"google.golang.org/grpc", "google.golang.org/protobuf", "k8s.io/cri-api", "k8s.io/klog", "net/http", "crypto/tls",
	"github.com/containernetworking", "github.com/containerd/cgroups", "github.com/spf13"}

func checkImports(s *source) []finding {
	dir := path.Dir(s.path)
	name := strings.TrimSuffix(s.file.Name.Name, "_test")
	var found []finding
	if slices.Contains(forbidden, name) || slices.Contains(forbidden, path.Base(dir)) {
		found = append(found, finding{where: s.path, text: "package name " + name + " says nothing about what is inside"})
	}
	r, ok := ruleOf(dir)
	if !ok {
		return append(found, finding{where: s.path, text: "no rule for this folder: top-level folders are fixed, see rules in hack/lint/imports.go"})
	}
	if s.isTest() || strings.HasSuffix(name, "test") {
		return found // tests and fakes may look up
	}
	for _, spec := range s.file.Imports {
		p, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		if why := r.refuses(p); why != "" {
			found = append(found, finding{where: s.at(spec.Pos()), text: why})
		}
	}
	return found
}

func ruleOf(dir string) (best rule, ok bool) {
	for _, r := range rules {
		if below(dir, r.folder) && len(r.folder) > len(best.folder) {
			best, ok = r, true
		}
	}
	return best, ok
}

func (r rule) refuses(imported string) string {
	if own, ok := strings.CutPrefix(imported, module+"/"); ok {
		if below(own, r.folder) || slices.ContainsFunc(r.own, func(f string) bool { return matches(own, f) }) {
			return ""
		}
		return fmt.Sprintf("%s must not import %s: %s", r.folder, own, r.why)
	}
	if slices.ContainsFunc(r.not, func(f string) bool { return below(imported, f) }) {
		return fmt.Sprintf("%s must not import %s: %s", r.folder, imported, r.why)
	}
	return ""
}

// matches tells whether package p is meant by pattern.
func matches(p, pattern string) bool {
	folder, all := strings.CutSuffix(pattern, "/...")
	return p == folder || all && below(p, folder)
}

// below tells whether path p is folder or stands below it.
func below(p, folder string) bool {
	return p == folder || strings.HasPrefix(p, folder+"/")
}

// checkMonitor looks at everything that is linked into berth-monitor.
func checkMonitor(top string) []finding {
	cmd := exec.Command("go", "list", "-deps", "./cmd/berth-monitor")
	cmd.Dir = top
	out, err := cmd.Output()
	if err != nil {
		return []finding{{where: "cmd/berth-monitor", text: "list its packages: " + err.Error()}}
	}
	var found []finding
	for _, p := range strings.Fields(string(out)) {
		if slices.ContainsFunc(monitorBans, func(ban string) bool { return below(p, ban) }) {
			found = append(found, finding{where: "cmd/berth-monitor", text: "links " + p + ": a monitor runs for each pod and stays small"})
		}
	}
	return found
}
