package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/cmd/berthd/keyfile"
	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/imageservice"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/sandbox"
)

// Defaults of flags.
const (
	defaultRoot   = "/var/lib/berth"
	defaultState  = "/run/berth"
	defaultConfig = "/etc/berth/config.toml"
	// socketName is the CRI socket's in the state folder.
	socketName = "berth.sock"
	// monitorName is the monitor's program, which stands beside berthd's.
	monitorName = "berth-monitor"
	// maxLinkName is the longest name of a network link (IFNAMSIZ - 1).
	maxLinkName = 15
	// minMTU is the least that IPv6 needs (RFC 8200 section 5).
	minMTU, maxMTU = 1280, 65535
)

// bridgeConfig is the built-in bridge's; what is empty package cni chooses.
type bridgeConfig struct {
	bridge  string
	subnets []netip.Prefix
	mtu     int
}

// handlerConfig is who makes containers.
type handlerConfig struct {
	defaultRuntime string
	runtimeFiles   map[string]runtimeFile       // as they stand in the files
	runtimes       map[string]*external.Program // by the handler's name; nil is the native engine
	prober         *external.Prober             // looks at their programs
}

// config is what the daemon works with, parsed and complete. The keys that fill it in are in keys.go.
type config struct {
	images     imageservice.Config // without Root
	network    cni.Live
	gcInterval time.Duration // of the network
	bridgeConfig
	primaryIP sandbox.IPFamily // "": the network's order
	monitor   string
	handlerConfig
	cgroupDriver string
	streaming    streamingConfig
	metrics      netip.AddrPort // not valid: they are not served
	adjust       adjustConfig
	verbosity    int
	values       *keyfile.Values
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

// readDefaultConfig reads the configuration file, if it is there, and its drop-ins.
func readDefaultConfig(path string) (config, error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return readFiles(path, nil)
	}
	return readConfig(path)
}

// readConfig reads a configuration file, which must be there, and its drop-ins.
func readConfig(path string) (config, error) { return readFiles(path, []string{path}) }

// readFiles reads files, and then the drop-ins of path.
func readFiles(path string, files []string) (config, error) {
	dropIns, err := keyfile.DropIns(path)
	if err != nil {
		return config{}, err
	}
	c := config{handlerConfig: handlerConfig{prober: &external.Prober{}}}
	c.values, err = keys.Read(&c, append(files, dropIns...)...)
	if err != nil {
		return config{}, err
	}
	return c, nil
}

// A setter puts a value of a key into a configuration; field finds the place.
type setter = func(c *config, name string, value any) error

// set makes a setter of a function that gets the value's type.
func set[T any](apply func(c *config, value T) error) setter {
	return func(c *config, _ string, value any) error { return apply(c, value.(T)) }
}

// text takes a string that keeps a rule.
func text(field func(*config) *string, rule func(string) error) setter {
	return set(func(c *config, v string) error {
		*field(c) = v
		return rule(v)
	})
}

// path takes an absolute path.
func path(field func(*config) *string) setter { return text(field, absolute) }

// onOff sets a field that is true or false.
func onOff(field func(*config) *bool) setter {
	return func(c *config, _ string, value any) error {
		*field(c) = value.(bool)
		return nil
	}
}

// paths takes a list of absolute paths.
func paths(field func(*config) *[]string) setter {
	return set(func(c *config, v []string) error {
		*field(c) = v
		for _, p := range v {
			if err := absolute(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// number takes an integer within bounds.
func number(field func(*config) *int, low, high int64) setter {
	return set(func(c *config, v int64) error {
		if v < low || v > high {
			return fmt.Errorf("%d is not %d to %d", v, low, high)
		}
		*field(c) = int(v)
		return nil
	})
}

// mebibytes takes a number of MiB.
func mebibytes(field func(*config) *int64, low, high int64) setter {
	return units(field, 20, low, high)
}

// kibibytes takes a number of KiB.
func kibibytes(field func(*config) *int64, low, high int64) setter {
	return units(field, 10, low, high)
}

func units(field func(*config) *int64, shift int, low, high int64) setter {
	return set(func(c *config, v int64) error {
		if v < low || v > high {
			return fmt.Errorf("%d is not %d to %d", v, low, high)
		}
		*field(c) = v << shift
		return nil
	})
}

// duration takes a length of time, as Go writes it.
func duration(field func(*config) *time.Duration, atLeast time.Duration) setter {
	return set(func(c *config, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < atLeast {
			return fmt.Errorf("%q is not a duration of at least %v, as 4h or 90s", v, atLeast)
		}
		*field(c) = d
		return nil
	})
}

func absolute(path string) error {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return fmt.Errorf("%q is not an absolute path", path)
	}
	return nil
}

// setIPPref takes the family of primary addresses.
func setIPPref(c *config, pref string) error {
	families := map[string]sandbox.IPFamily{"cni": "", "ipv4": sandbox.IPv4, "ipv6": sandbox.IPv6}
	family, known := families[pref]
	if !known {
		return fmt.Errorf("%q is none of cni, ipv4 and ipv6", pref)
	}
	c.primaryIP = family
	return nil
}

// setMTU takes the bridge's.
func setMTU(c *config, mtu int64) error {
	if mtu != 0 && (mtu < minMTU || mtu > maxMTU) {
		return fmt.Errorf("%d is not 0 (the host's) or %d to %d", mtu, minMTU, maxMTU)
	}
	c.mtu = int(mtu)
	return nil
}

// linkName says whether the kernel and every tool take a name for a link.
func linkName(name string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	if name == "" || name == "." || name == ".." || len(name) > maxLinkName || strings.Trim(name, letters) != "" {
		return fmt.Errorf("%q is not a link's name (1 to %d of a-z A-Z 0-9 . _ -)", name, maxLinkName)
	}
	return cni.CheckBridgeName(name)
}

// setSubnets parses the bridge's ranges. With none package cni chooses.
func setSubnets(c *config, texts []string) error {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return err
		}
		if p != p.Masked() {
			return fmt.Errorf("%s has host bits; the range is %s", text, p.Masked())
		}
		c.subnets = append(c.subnets, p)
	}
	return cni.CheckSubnets(c.subnets)
}

// findMonitor looks beside this program when no key names the monitor.
func findMonitor(c *config) error {
	if c.monitor != "" {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the monitor: %w", err)
	}
	c.monitor = filepath.Join(filepath.Dir(self), monitorName)
	return nil
}
