package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/berthd/berth/imageservice/reference"
)

// capability is what an endpoint may be asked, a set of bits.
type capability int

const (
	canPull    capability = 1 << iota // manifests by digest, blobs
	canResolve                        // manifests by tag
)

// hostSpec is one endpoint as the operator wrote it, parsed and not yet opened.
type hostSpec struct {
	base        *url.URL // with the path that /manifests/ and /blobs/ hang below, up to /v2
	caps        capability
	ca          []string    // files
	client      [][2]string // certificate and key files; the key is "" when it is in the certificate's file
	skipVerify  bool
	header      http.Header
	dialTimeout time.Duration
	realms      []string // token servers that the operator trusts: scheme://host[:port]
	override    bool     // the operator gave the path: its repositories may have other names than the reference's
	own         bool     // the registry of the reference itself, so its credentials are meant for it
	source      string   // what names it, for people
	guess       bool     // loopback and nobody named a scheme: plain HTTP, or HTTPS if that does not work
}

// hostFile is the part of hosts.toml that repeats for each host.
type hostFile struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Realms       []string       `toml:"realms"`
}

// hostsFile is the whole of hosts.toml.
type hostsFile struct {
	hostFile
	Server string              `toml:"server"`
	Host   map[string]hostFile `toml:"host"`
}

// hostSpecs gives the endpoints of a registry, in the order to try them, from the folder dir ("" = no folder).
func hostSpecs(dir, host string) ([]hostSpec, error) {
	folder, shared, err := hostFolder(dir, host)
	if err != nil {
		return nil, fmt.Errorf("%w: find folder of %s: %w", ErrConfig, host, err)
	}
	if folder == "" {
		spec := defaultSpec(host)
		if spec.source = "the reference; hosts.toml files are not in use"; dir != "" {
			spec.source = fmt.Sprintf("the reference; %s has no folder %s, and no _default", dir, host)
		}
		return []hostSpec{spec}, nil
	}
	file := filepath.Join(folder, "hosts.toml")
	raw, err := readSmall(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(bytes.TrimSpace(raw)) == 0 {
		spec := defaultSpec(host)
		spec.source = "the reference; " + file + " is not there or empty"
		if err := spec.certFiles(folder); err != nil {
			return nil, fmt.Errorf("%w: read certificates of %s: %w", ErrConfig, host, err)
		}
		return []hostSpec{spec}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	specs, err := parseHosts(raw, folder, host)
	if err != nil {
		return nil, fmt.Errorf("%w: parse %s: %w", ErrConfig, file, err)
	}
	for i := range specs {
		specs[i].source = fmt.Sprintf("%s, host %d", file, i+1)
	}
	specs[len(specs)-1].source = file + ", server"
	if shared {
		// A server in _default stands for every registry: it is a mirror, not the place that credentials are meant for.
		last := &specs[len(specs)-1]
		last.own = last.own && sameHost(last.base.Host, host)
	}
	return specs, nil
}

// hostFolder finds the folder that holds for host, "" when there is none; shared is true for _default.
func hostFolder(dir, host string) (folder string, shared bool, err error) {
	if dir == "" {
		return "", false, nil
	}
	var names []string
	if name, port, err := net.SplitHostPort(host); err == nil {
		bracketed := name
		if strings.Contains(name, ":") {
			bracketed = "[" + name + "]"
		}
		names = append(names, bracketed+"_"+port+"_", bracketed+"_"+port)
	}
	for _, name := range append(names, host, "_default") {
		folder := filepath.Join(dir, name)
		st, err := os.Stat(folder)
		switch {
		case err == nil && st.IsDir():
			return folder, name == "_default", nil
		case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrInvalid):
			return "", false, err
		}
	}
	return "", false, nil
}

// defaultSpec is the registry itself, where nothing is configured.
func defaultSpec(host string) hostSpec {
	spec := hostSpec{base: &url.URL{Scheme: "https", Host: host, Path: "/v2"}, caps: canPull | canResolve, own: true}
	if host == reference.DockerHub {
		spec.base.Host = "registry-1.docker.io"
	}
	if reference.IsLoopback(host) && spec.base.Port() != "443" {
		spec.base.Scheme, spec.guess = "http", true
	}
	return spec
}

// certFiles takes Docker's certificate files from a folder without a hosts.toml.
func (spec *hostSpec) certFiles(folder string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		file := filepath.Join(folder, e.Name())
		switch filepath.Ext(file) {
		case ".crt":
			spec.ca = append(spec.ca, file)
		case ".cert":
			spec.client = append(spec.client, [2]string{file, strings.TrimSuffix(file, ".cert") + ".key"})
		}
	}
	if len(spec.ca)+len(spec.client) > 0 {
		spec.base.Scheme, spec.guess = "https", false
	}
	return nil
}

// parseHosts reads a hosts.toml; paths in it are relative to folder.
func parseHosts(raw []byte, folder, host string) ([]hostSpec, error) {
	var file hostsFile
	if err := toml.Unmarshal(raw, &file); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) { // its message quotes no values; that of other errors may
			row, _ := de.Position()
			return nil, fmt.Errorf("line %d: %s", row, de.Error())
		}
		return nil, errors.New("it is not TOML of the known form")
	}
	order, err := hostOrder(raw)
	if err != nil {
		return nil, err
	}
	var specs []hostSpec
	for _, name := range order {
		spec, err := file.Host[name].spec(name, folder)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", redactURL(name), err)
		}
		specs = append(specs, spec)
	}
	server := file.Server
	last := defaultSpec(host)
	if server == "" {
		server = last.base.String()
	}
	spec, err := file.hostFile.spec(server, folder)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", redactURL(server), err)
	}
	spec.own = true
	spec.guess = file.Server == "" && last.guess
	if spec.guess && (len(spec.ca) > 0 || len(spec.client) > 0 || spec.skipVerify) {
		spec.base.Scheme, spec.guess = "https", false
	}
	return append(specs, spec), nil
}

// hostOrder lists the [host."..."] tables in the order of the file, which toml.Unmarshal does not keep.
func hostOrder(raw []byte) ([]string, error) {
	var order []string
	p := unstable.Parser{}
	p.Reset(raw)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		if len(key) >= 2 && key[0] == "host" && !slices.Contains(order, key[1]) {
			order = append(order, key[1])
		}
	}
	return order, p.Error()
}

// spec checks one host of a hosts.toml.
func (f hostFile) spec(server, folder string) (hostSpec, error) {
	if !strings.Contains(server, "://") {
		server = "https://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return hostSpec{}, errors.New("it must be http://HOST or https://HOST with an optional path")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return hostSpec{}, errors.New("it must have no user, query or fragment")
	}
	spec := hostSpec{
		base: &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(path.Clean("/"+u.Path), "/")},
		caps: canPull | canResolve, skipVerify: f.SkipVerify, override: f.OverridePath, realms: f.Realms,
	}
	if !f.OverridePath && !strings.HasSuffix(spec.base.Path, "/v2") {
		spec.base.Path += "/v2"
	}
	if len(f.Capabilities) > 0 {
		if spec.caps, err = capabilities(f.Capabilities); err != nil {
			return hostSpec{}, err
		}
	}
	if spec.ca, err = paths(f.CA, folder); err != nil {
		return hostSpec{}, fmt.Errorf("ca: %w", err)
	}
	if spec.client, err = pairs(f.Client, folder); err != nil {
		return hostSpec{}, fmt.Errorf("client: %w", err)
	}
	if spec.header, err = header(f.Header); err != nil {
		return hostSpec{}, err
	}
	if f.DialTimeout != "" {
		if spec.dialTimeout, err = time.ParseDuration(f.DialTimeout); err != nil || spec.dialTimeout <= 0 {
			return hostSpec{}, fmt.Errorf("dial_timeout %q must be a positive duration such as 5s", f.DialTimeout)
		}
	}
	return spec, nil
}

// readSmall reads a configuration file of at most maxHostsFile bytes.
func readSmall(file string) (raw []byte, err error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	raw, err = io.ReadAll(io.LimitReader(f, maxHostsFile+1))
	if err != nil {
		return nil, err
	}
	if len(raw) > maxHostsFile {
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", file, maxHostsFile)
	}
	return raw, nil
}

// sameHost compares two registries' hosts; Docker Hub has three names.
func sameHost(a, b string) bool { return canonicalHost(a) == canonicalHost(b) }

func canonicalHost(host string) string {
	host = strings.ToLower(host)
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return reference.DockerHub
	}
	return strings.TrimSuffix(host, ":443")
}
