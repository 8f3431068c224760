package registry

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/imageservice/registry/registrytest"
)

func TestHostsFile(t *testing.T) {
	specs, err := parseHosts([]byte(`
server = "https://up.example"
ca = "up.pem"
[host."http://z.example:5000"]
  capabilities = ["pull", "resolve"]
  dial_timeout = "3s"
  [host."http://z.example:5000".header]
    x-a = "1"
    x-b = ["2", "3"]
[host."https://a.example/proxy"]
  capabilities = ["Pull", "push"]
  skip_verify = true
  client = [["c.pem", "/k.pem"], ["d.pem", ""], "e.pem"]
[host."https://h.example/v2/mirror/"]
  override_path = true
  client = "one.pem"
  ca = ["1.pem", "/2.pem"]
[host."m.example"]
`), "/dir", "reg.example")
	if err != nil {
		t.Fatal(err)
	}
	var bases []string
	for _, s := range specs {
		bases = append(bases, s.base.String())
	}
	want := "http://z.example:5000/v2 https://a.example/proxy/v2 https://h.example/v2/mirror https://m.example/v2 https://up.example/v2"
	if got := strings.Join(bases, " "); got != want {
		t.Fatalf("hosts in order: %s, want %s", got, want)
	}
	z, a, h, up := specs[0], specs[1], specs[2], specs[4]
	if z.caps != canPull|canResolve || z.dialTimeout != 3*time.Second || z.header.Get("X-A") != "1" || len(z.header["X-B"]) != 2 || z.own {
		t.Errorf("z: %+v", z)
	}
	if a.caps != canPull || !a.skipVerify || fmt.Sprint(a.client) != "[[/dir/c.pem /k.pem] [/dir/d.pem ] [/dir/e.pem ]]" {
		t.Errorf("a: %+v", a)
	}
	if !h.override || fmt.Sprint(h.client, h.ca) != "[[/dir/one.pem ]] [/dir/1.pem /2.pem]" {
		t.Errorf("h: %+v", h)
	}
	if !up.own || fmt.Sprint(up.ca) != "[/dir/up.pem]" {
		t.Errorf("server: %+v", up)
	}
}

func TestHostsFileWithoutServerAsksTheRegistryLast(t *testing.T) {
	specs, err := parseHosts([]byte("[host.\"https://m.example\"]\n"), "/", "docker.io")
	if err != nil || len(specs) != 2 || specs[1].base.String() != "https://registry-1.docker.io/v2" || !specs[1].own {
		t.Errorf("%+v, %v", specs, err)
	}
	specs, err = parseHosts([]byte("[host.\"https://m.example\"]\n"), "/", "127.0.0.1:5000")
	if err != nil || len(specs) != 2 || specs[1].base.Scheme != "http" || !specs[1].guess {
		t.Errorf("%+v, %v", specs, err)
	}
}

func TestBrokenHostsFilesAreErrors(t *testing.T) {
	for _, content := range []string{
		"server = ", "server = 7", "server = \"ftp://x\"", "server = \"https://u:p@x\"", "server = \"https://x/?a=b\"", "[host.\"\"]\n",
		"[host.\"https://m\"]\ncapabilities = [\"fly\"]", "ca = 7", "ca = [7]", "client = [[\"a\",\"b\",\"c\"]]", "dial_timeout = \"soon\"",
		"dial_timeout = \"-1s\"", "[header]\nx = 7", "ca = \"missing.pem\"", "client = \"missing.pem\"", "skip_verify = \"yes\"",
	} {
		dir := hostsDir(t, map[string]string{"127.0.0.1:1/hosts.toml": content})
		_, err := New(Config{HostsDir: dir}).Open(parseRef(t, "127.0.0.1:1/a:1"), Credentials{})
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), dir) && !strings.Contains(content, "missing") {
			t.Errorf("%q: %v, want ErrConfig with the file", content, err)
		}
	}
}

func TestHostFolders(t *testing.T) {
	for _, tc := range []struct {
		folder, host string
		want         bool
	}{
		{"reg.example_5000_", "reg.example:5000", true},
		{"reg.example_5000", "reg.example:5000", true},
		{"reg.example:5000", "reg.example:5000", true},
		{"[::1]_5000_", "[::1]:5000", true},
		{"reg.example", "reg.example", true},
		{"reg.example", "reg.example:5000", false},
		{"_default", "reg.example:5000", true},
	} {
		dir := hostsDir(t, map[string]string{tc.folder + "/hosts.toml": `server = "https://found.example"`})
		specs, err := hostSpecs(dir, tc.host)
		if err != nil || (specs[0].base.Host == "found.example") != tc.want {
			t.Errorf("folder %s, host %s: %+v, %v", tc.folder, tc.host, specs, err)
		}
		if tc.folder == "_default" && specs[0].own {
			t.Error("the server of _default gets everybody's credentials")
		}
	}
}

func TestMirrorsAreTriedInOrder(t *testing.T) {
	upstream := start(t, registrytest.Options{Auth: registrytest.Auth{Scheme: registrytest.Basic, Username: "u", Password: secret}})
	p := push(t, upstream, registrytest.Image{})
	cred := Credentials{Username: "u", Password: secret}
	for _, tc := range []struct {
		name  string
		fault registrytest.Fault
		empty bool
		down  bool
	}{
		{name: "good"},
		{name: "empty", empty: true},
		{name: "down", down: true},
		{name: "500", fault: registrytest.Fault{Status: 500}},
		{name: "401", fault: registrytest.Fault{Status: 401, Header: http.Header{"Www-Authenticate": {`Basic realm="x"`}}}},
		{name: "429", fault: registrytest.Fault{Status: 429, Header: http.Header{"Retry-After": {"60"}}}},
		{name: "silent", fault: registrytest.Fault{Wait: time.Hour}},
		{name: "a page for people", fault: registrytest.Fault{Status: 200, Header: http.Header{"Content-Type": {"text/html"}}, Body: []byte("<html>Log in</html>")}},
		{name: "wrong blobs", fault: registrytest.Fault{Path: "/blobs/", Cut: registrytest.Corrupt, At: 5}},
		{name: "short blobs", fault: registrytest.Fault{Path: "/blobs/", Cut: registrytest.Truncate, At: 5}},
		{name: "wrong digest header", fault: registrytest.Fault{Path: "/manifests/", Header: http.Header{"Docker-Content-Digest": {p.ImageID}}}},
		{name: "resets", fault: registrytest.Fault{Path: "/blobs/", Cut: registrytest.Reset, At: 5}},
		{name: "stalls", fault: registrytest.Fault{Path: "/blobs/", Cut: registrytest.Stall, At: 5}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mirror := start(t, registrytest.Options{})
			address := mirror.URL
			if tc.down {
				address = "http://127.0.0.1:1"
			}
			if !tc.empty {
				push(t, mirror, registrytest.Image{})
			}
			mirror.AddFault(tc.fault)
			dir := hostsDir(t, map[string]string{upstream.Host() + "/hosts.toml": fmt.Sprintf("server = %q\n[host.%q]\n", upstream.URL, address)})
			config := patient
			if tc.fault.Wait > 0 || tc.fault.Cut == registrytest.Stall { // what a mirror may take; the registry itself has longer
				config.Patience = 300 * time.Millisecond
			}
			if tc.fault.Cut == registrytest.Stall {
				config.StallTimeout = 2 * time.Second
			}
			config.HostsDir = dir
			upstream.ClearRequests()
			begin := time.Now()
			if err := pullAll(t.Context(), open(t, config, p.Ref, cred)); err != nil || time.Since(begin) > 30*time.Second {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
			if n := len(upstream.Requests()); (n == 0) != (tc.name == "good") {
				t.Errorf("%d requests to the registry itself", n)
			}
			if got := sawSecrets(mirror); got != "" {
				t.Errorf("the mirror was sent %s", got)
			}
			for _, r := range mirror.Requests() {
				if r.Query.Get("ns") != upstream.Host() {
					t.Errorf("mirror was not told for whom: %v", r.Query)
				}
			}
		})
	}
}

func TestMirrorsErrorsNameEveryHost(t *testing.T) {
	a, b := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	a.AddFault(registrytest.Fault{Status: 500})
	dir := hostsDir(t, map[string]string{b.Host() + "/hosts.toml": fmt.Sprintf("server = %q\n[host.%q]\n", b.URL, a.URL)})
	config := patient
	config.HostsDir = dir
	_, err := open(t, config, b.Host()+"/a/b:1", Credentials{}).Manifest(t.Context())
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), a.Host()) || !strings.Contains(err.Error(), b.Host()) {
		t.Errorf("%v", err)
	}
	if n := len(a.Requests()); n != 1 {
		t.Errorf("asked the mirror %d times although the registry knows no such image", n)
	}
}

func TestResolveCapability(t *testing.T) {
	mirror, upstream := start(t, registrytest.Options{}), start(t, registrytest.Options{})
	push(t, mirror, registrytest.Image{})
	p := push(t, upstream, registrytest.Image{})
	config := patient
	config.HostsDir = hostsDir(t, map[string]string{
		upstream.Host() + "/hosts.toml": fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", upstream.URL, mirror.URL)})
	if err := pullAll(t.Context(), open(t, config, p.Ref, Credentials{})); err != nil {
		t.Fatal(err)
	}
	if upstream.Count("", "/manifests/") != 1 || upstream.Count("", "/blobs/") != 0 || mirror.Count("", "/manifests/") != 0 || mirror.Count("", "/blobs/") != 2 {
		t.Error("tags must be asked of the registry, blobs of the mirror")
	}
}

func TestCredentialsAreMeantForTheirRegistry(t *testing.T) {
	mirror := func(u string) hostSpec {
		base, err := url.Parse(u)
		if err != nil {
			t.Fatal(err)
		}
		return hostSpec{base: base}
	}
	own := func(u string) hostSpec {
		spec := mirror(u)
		spec.own = true
		return spec
	}
	for _, tc := range []struct {
		server   string
		spec     hostSpec
		registry string
		want     bool
	}{
		{"", own("https://registry-1.docker.io"), "docker.io", true},
		{"https://index.docker.io/v1/", own("https://registry-1.docker.io"), "docker.io", true},
		{"index.docker.io", own("https://registry-1.docker.io"), "docker.io", true},
		{"", mirror("https://m.example"), "docker.io", false},
		{"m.example", mirror("https://m.example"), "docker.io", true},
		{"m.example", own("https://registry-1.docker.io"), "docker.io", false},
		{"https://evil.example", own("https://reg.example"), "reg.example", false},
		{"reg.example:443/path", own("https://reg.example"), "reg.example", true},
		{"reg.example:5000", own("https://reg.example"), "reg.example", false},
	} {
		c := Credentials{Username: "u", ServerAddress: tc.server}
		if got := c.meantFor(tc.spec, tc.registry); got != tc.want {
			t.Errorf("credentials for %q, endpoint %s of %s: %v, want %v", tc.server, tc.spec.base, tc.registry, got, tc.want)
		}
	}
}

func TestPlatform(t *testing.T) {
	for _, tc := range []struct {
		arch    string
		level   int
		offered []string
		want    string
	}{
		{"amd64", 3, []string{"linux/arm64", "linux/amd64", "linux/amd64/v3", "linux/amd64/v4"}, "linux/amd64/v3"},
		{"amd64", 1, []string{"windows/amd64", "linux/386", "linux/amd64"}, "linux/amd64"},
		{"amd64", 1, []string{"linux/386", "linux/amd64/v2"}, "linux/386"},
		{"arm64", 0, []string{"linux/arm/v7", "linux/arm64/v8", "linux/amd64"}, "linux/arm64/v8"},
		{"arm64", 0, []string{"linux/arm/v6", "linux/arm/v7"}, "linux/arm/v7"},
		{"arm", 0, []string{"linux/arm/v6", "linux/arm/v5", "linux/arm64"}, "linux/arm/v6"},
		{"riscv64", 0, []string{"unknown/unknown", "linux/riscv64"}, "linux/riscv64"},
		{"amd64", 1, []string{"unknown/unknown", "linux/s390x"}, ""},
	} {
		var all []wireDescriptor
		for _, o := range tc.offered {
			parts := append(strings.Split(o, "/"), "")
			all = append(all, wireDescriptor{MediaType: o, Platform: platform(parts[0], parts[1], parts[2])})
		}
		got, err := platformOf(tc.arch, tc.level).choose(all)
		if got.MediaType != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%s level %d of %v: %q, %v, want %q", tc.arch, tc.level, tc.offered, got.MediaType, err, tc.want)
		}
	}
	for _, tc := range []struct {
		os, arch, variant string
		want              bool
	}{
		{"", "", "", true}, {"linux", "amd64", "", true}, {"LINUX", "x86_64", "v1", true}, {"windows", "amd64", "", false},
		{"linux", "arm64", "", false}, {"windows", "", "", false}, {"linux", "amd64", "v9", false},
	} {
		if got := platformOf("amd64", 2).Runs(tc.os, tc.arch, tc.variant); got != tc.want {
			t.Errorf("Runs(%q, %q, %q) = %v", tc.os, tc.arch, tc.variant, got)
		}
	}
}
