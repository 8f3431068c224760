package cni

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/utils"
)

// DefaultConfDir is where the host's CNI configuration is.
const DefaultConfDir = "/etc/cni/net.d"

// DefaultBinDirs is where the plugins are.
var DefaultBinDirs = []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"}

const (
	defaultBridge = "berth0"
	resultsFolder = "results" // libcni's, below the cache folder
)

// The subnets of the daemon that works on the default folders.
var defaultSubnets = []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd62:6572:7468::/64")}

// Config says where things are. The zero values of all fields but CacheDir have a default.
type Config struct {
	Live
	CacheDir      string        // reservations and results; survives a reboot
	Instance      string        // of the daemon, "" for the one on the default folders
	PluginTimeout time.Duration // for one plugin; 60 s
	Bridge        BridgeConfig
}

// Live are the fields of Config that may change while a Dispatcher is used.
type Live struct {
	ConfDir  string   // CNI configuration; DefaultConfDir
	BinDirs  []string // CNI plugins; nil: DefaultBinDirs
	Template string   // what SetPodRanges makes a configuration of; "" = nothing
}

// BridgeConfig is the built-in bridge.
type BridgeConfig struct {
	Name     string         // berth0; "berth-INSTANCE" for other instances
	Subnets  []netip.Prefix // at most one of each family; 10.88.0.0/16 and fd62:6572:7468::/64, others for other instances
	MTU      int            // bytes; 0: that of the link of the default route when the bridge is made
	Disabled bool           // pods wait for a CNI configuration
}

// withDefaults checks cfg and fills it in.
func (cfg Config) withDefaults() (Config, error) {
	cfg.Live = cfg.Live.withDefaults()
	if !filepath.IsAbs(cfg.CacheDir) {
		return cfg, fmt.Errorf("network cache folder %q is not an absolute path", cfg.CacheDir)
	}
	var err error
	cfg.Bridge, err = cfg.Bridge.withDefaults(cfg.Instance)
	return cfg, err
}

// withDefaults fills the host's folders in.
func (l Live) withDefaults() Live {
	if l.ConfDir == "" {
		l.ConfDir = DefaultConfDir
	}
	if l.BinDirs == nil {
		l.BinDirs = DefaultBinDirs
	}
	return l
}

func (b BridgeConfig) withDefaults(instance string) (BridgeConfig, error) {
	if b.Name == "" {
		if b.Name = defaultBridge; instance != "" {
			b.Name = "berth-" + instance
		}
	}
	if err := CheckBridgeName(b.Name); err != nil {
		return b, fmt.Errorf("bridge name %w", err)
	}
	if len(b.Subnets) == 0 {
		if b.Subnets = defaultSubnets; instance != "" {
			b.Subnets = instanceSubnets(instance)
		}
	}
	if b.MTU != 0 && (b.MTU < 1280 || b.MTU > 65535) {
		return b, fmt.Errorf("bridge MTU %d is not from 1280 to 65535", b.MTU)
	}
	if err := CheckSubnets(b.Subnets); err != nil {
		return b, fmt.Errorf("bridge subnet %w", err)
	}
	b.Subnets = slices.Clone(b.Subnets)
	for i := range b.Subnets {
		b.Subnets[i] = b.Subnets[i].Masked()
	}
	return b, nil
}

// CheckBridgeName says why the built-in bridge cannot have a name.
func CheckBridgeName(name string) error {
	if err := utils.ValidateInterfaceName(name); err != nil || name == resultsFolder || strings.ContainsAny(name, "\"\\") {
		return fmt.Errorf("%q is not a name for the link of a bridge", name)
	}
	return nil
}

// CheckSubnets says why the built-in bridge cannot have ranges.
func CheckSubnets(subnets []netip.Prefix) error {
	for i, p := range subnets {
		room := p.Addr().BitLen() - p.Bits()
		if !p.IsValid() || room < 2 || p.Addr().Is4In6() {
			return fmt.Errorf("%s has no room for pods", p)
		}
		if p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() {
			return fmt.Errorf("%s is not of unicast addresses", p)
		}
		if slices.ContainsFunc(subnets[:i], func(q netip.Prefix) bool { return q.Addr().Is4() == p.Addr().Is4() }) {
			return fmt.Errorf("%s is the second of its family", p)
		}
	}
	return nil
}

// instanceSubnets gives daemons that run side by side different subnets without being told: one of the 1,792 /20 networks in
// 10.128.0.0 to 10.239.255.255, and one of the unique local ones.
func instanceSubnets(instance string) []netip.Prefix {
	sum := sha256.Sum256([]byte(instance))
	n := (int(sum[0])<<8 | int(sum[1])) % (112 * 16)
	var six [16]byte
	six[0] = 0xfd
	copy(six[1:8], sum[2:])
	return []netip.Prefix{
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + n/16), byte(n % 16 * 16), 0}), 20),
		netip.PrefixFrom(netip.AddrFrom16(six), 64),
	}
}

func is6(p netip.Prefix) bool { return p.Addr().Is6() }
