package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berthd/berth/oci/runtime/external"
)

// Defaults of flags and configuration.
const (
	defaultRoot      = "/var/lib/berth"
	defaultState     = "/run/berth"
	defaultConfig    = "/etc/berth/config.toml"
	defaultHostsDir  = "/etc/berth/certs.d"
	defaultCNIConf   = "/etc/cni/net.d"
	defaultCNIBin    = "/opt/cni/bin"
	defaultVerbosity = 2
	// socketName is the CRI socket's in the state folder.
	socketName = "berth.sock"
	// monitorName is the monitor's program, which stands beside berthd's.
	monitorName = "berth-monitor"
	// maxLinkName is the longest name of a network link (IFNAMSIZ - 1).
	maxLinkName = 15
	// minMTU is the least that IPv6 needs (RFC 8200 section 5).
	minMTU, maxMTU = 1280, 65535
	// maxConfigBytes bounds the file.
	maxConfigBytes = 1 << 20
)

// fileConfig is the configuration file as it is written.
type fileConfig struct {
	Registry struct {
		ConfigPath string `toml:"config_path"`
	} `toml:"registry"`
	Network struct {
		ConfDir string   `toml:"conf_dir"`
		BinDirs []string `toml:"bin_dirs"`
		Bridge  string   `toml:"bridge"`
		Subnets []string `toml:"subnets"`
		MTU     int      `toml:"mtu"`
	} `toml:"network"`
	Runtime struct {
		Monitor string `toml:"monitor"`
		Default string `toml:"default"`
	} `toml:"runtime"`
	Runtimes  map[string]runtimeFile `toml:"runtimes"`
	Streaming streamingFile          `toml:"streaming"`
	Log       struct {
		Verbosity *int `toml:"verbosity"`
	} `toml:"log"`
}

// runtimeFile is one table of runtimes.
type runtimeFile struct {
	Type    string   `toml:"type"`
	Path    string   `toml:"path"`
	Options []string `toml:"options"`
}

// streamingFile is the table streaming.
type streamingFile struct {
	Address     string `toml:"address"`
	Port        int    `toml:"port"`
	TLSCert     string `toml:"tls_cert"`
	TLSKey      string `toml:"tls_key"`
	IdleTimeout string `toml:"idle_timeout"`
}

// config is what the daemon works with, parsed and complete.
type config struct {
	hostsDir string
	confDir  string
	binDirs  []string
	// bridge and subnets are the built-in bridge's; empty when package cni is to choose.
	bridge    string
	subnets   []netip.Prefix
	mtu       int
	monitor   string
	runtimes  map[string]*external.Program // by the handler's name; nil is the native engine
	prober    *external.Prober             // looks at their programs
	streaming streamingConfig
	verbosity int
}

// instanceOf tells daemons with different roots apart: "" is the one with the default root, and whatever another makes on the host
// carries these six hex digits.
func instanceOf(root string) string {
	root = filepath.Clean(root)
	if root == defaultRoot {
		return ""
	}
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:3])
}

// readDefaultConfig reads the configuration file if it is there.
func readDefaultConfig(path string) (config, error) {
	c, err := readConfig(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fileConfig{}.parse()
	}
	return c, err
}

// readConfig reads a configuration file. Every key has a default.
func readConfig(path string) (config, error) {
	text, err := readFile(path)
	if err != nil {
		return config{}, fmt.Errorf("read configuration: %w", err)
	}
	var file fileConfig
	if err := decode(text, &file); err != nil {
		return config{}, fmt.Errorf("%s:%w", path, err)
	}
	c, err := file.parse()
	if err != nil {
		return config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// readFile reads a file of at most maxConfigBytes.
func readFile(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxConfigBytes {
		return nil, fmt.Errorf("%s: want a regular file of at most %d bytes", path, maxConfigBytes)
	}
	return os.ReadFile(path)
}

// decode parses the file. Its errors begin with the line and name the key.
func decode(text []byte, into *fileConfig) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(into)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) {
		var all []error
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			all = append(all, fmt.Errorf("%d: unknown key %s", line, strings.Join(e.Key(), ".")))
		}
		return errors.Join(all...)
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, column := wrong.Position()
		if key := strings.Join(wrong.Key(), "."); key != "" {
			return fmt.Errorf("%d:%d: key %s: %w", line, column, key, err)
		}
		return fmt.Errorf("%d:%d: %w", line, column, err)
	}
	return err
}

// parse checks every value and fills in the defaults.
func (f fileConfig) parse() (config, error) {
	c := config{
		hostsDir: f.Registry.ConfigPath, confDir: f.Network.ConfDir, binDirs: f.Network.BinDirs, bridge: f.Network.Bridge,
		mtu: f.Network.MTU, monitor: f.Runtime.Monitor, verbosity: defaultVerbosity, prober: &external.Prober{},
	}
	setDefault(&c.hostsDir, defaultHostsDir)
	setDefault(&c.confDir, defaultCNIConf)
	if len(c.binDirs) == 0 {
		c.binDirs = []string{defaultCNIBin}
	}
	if c.monitor == "" {
		self, err := os.Executable()
		if err != nil {
			return config{}, fmt.Errorf("find the monitor: %w", err)
		}
		c.monitor = filepath.Join(filepath.Dir(self), monitorName)
	}
	if v := f.Log.Verbosity; v != nil {
		c.verbosity = *v
	}
	if err := c.check(); err != nil {
		return config{}, err
	}
	var err error
	if c.subnets, err = parseSubnets(f.Network.Subnets); err != nil {
		return config{}, err
	}
	if c.runtimes, err = parseRuntimes(f.Runtimes, f.Runtime.Default); err != nil {
		return config{}, err
	}
	c.streaming, err = f.Streaming.parse()
	return c, err
}

// setDefault fills in what the file leaves out.
func setDefault(value *string, def string) {
	if *value == "" {
		*value = def
	}
}

// check holds each value against its rule.
func (c config) check() error {
	for key, path := range map[string]string{
		"registry.config_path": c.hostsDir, "network.conf_dir": c.confDir, "runtime.monitor": c.monitor,
	} {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("key %s: %q is not an absolute path", key, path)
		}
	}
	for _, dir := range c.binDirs {
		if !filepath.IsAbs(dir) {
			return fmt.Errorf("key network.bin_dirs: %q is not an absolute path", dir)
		}
	}
	if c.bridge != "" && !isLinkName(c.bridge) {
		return fmt.Errorf("key network.bridge: %q is not a link's name (1 to %d of a-z A-Z 0-9 . _ -)", c.bridge, maxLinkName)
	}
	if c.mtu != 0 && (c.mtu < minMTU || c.mtu > maxMTU) {
		return fmt.Errorf("key network.mtu: %d is not 0 (the host's) or %d to %d", c.mtu, minMTU, maxMTU)
	}
	if c.verbosity < 0 || c.verbosity > 10 {
		return fmt.Errorf("key log.verbosity: %d is not 0 to 10", c.verbosity)
	}
	return nil
}

// isLinkName says whether the kernel and every tool take a name for a link.
func isLinkName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxLinkName {
		return false
	}
	return strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// parseSubnets parses the bridge's ranges. With none package cni chooses.
func parseSubnets(texts []string) ([]netip.Prefix, error) {
	subnets := make([]netip.Prefix, 0, len(texts))
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("key network.subnets: %w", err)
		}
		if p != p.Masked() {
			return nil, fmt.Errorf("key network.subnets: %s has host bits; the range is %s", text, p.Masked())
		}
		for _, other := range subnets {
			if other.Overlaps(p) {
				return nil, fmt.Errorf("key network.subnets: %s and %s overlap", other, p)
			}
		}
		subnets = append(subnets, p)
	}
	return subnets, nil
}
