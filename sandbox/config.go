package sandbox

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/runtime"
	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/cgroup"
	"github.com/berthd/berth/sandbox/monitor"
	"github.com/berthd/berth/sandbox/netns"
)

// RootFS makes writable layers on images. Keys are opaque to it; berth uses container IDs. All methods are idempotent.
type RootFS interface {
	// Prepare makes the writable layer key and returns how to mount the root filesystem, and the images that are its volumes.
	Prepare(ctx context.Context, key, imageID string, volumes []string) (runtime.Trees, error)
	Release(ctx context.Context, key string) error
	// Keys are the writable layers that there are.
	Keys(ctx context.Context) ([]string, error)
}

// Spawner starts monitors.
type Spawner interface {
	// Spawn returns as soon as the process and its namespaces are there.
	Spawn(ctx context.Context, p monitor.Pod) (*monitor.Process, error)
}

// Monitor speaks to one monitor. Every call but Streamer's needs a deadline in its context.
type Monitor interface {
	Streamer
	// Hello waits until the sandbox is set up, and returns what set-up gave.
	Hello(ctx context.Context) (monitor.Hello, error)
	Start(ctx context.Context, r monitor.StartRequest) (pid int, err error)
	Signal(ctx context.Context, containerID string, sig unix.Signal) error
	ReopenLog(ctx context.Context, containerID string) error
	// Watch calls back for every exit, those that were before first, until ctx or the monitor ends.
	Watch(ctx context.Context, exited func(monitor.Exit)) error
	Forget(ctx context.Context, containerID string) error
	Shutdown(ctx context.Context) error
}

// Streamer connects callers with what runs in a sandbox.
type Streamer interface {
	// Exec returns when the process has ended; when ctx ends, all that it started is killed.
	Exec(ctx context.Context, r monitor.ExecRequest) (monitor.ExitStatus, error)
	// Attach returns when the container has exited. A client that does not keep up is monitor.ErrSlow.
	Attach(ctx context.Context, r monitor.AttachRequest) error
	CloseStdin(ctx context.Context, containerID string) error
	// Dial returns a TCP connection to a port of the sandbox's loopback.
	Dial(ctx context.Context, port uint16) (*os.File, error)
}

// Adjuster changes what containers are to be before anything of them exists, see package adjust.
type Adjuster interface {
	// Adjust changes c.Spec. An error refuses the container; *spec.InvalidError is one about the request.
	Adjust(ctx context.Context, c *adjust.Container) error
}

// Stage is who changes containers, and hears of them, besides requests.
type Stage struct {
	// Adjusters are asked in this order for each container that is created.
	Adjusters []Adjuster
	// Plugins are told what happens; nil: nobody is.
	Plugins Plugins
}

// Config is what a Manager is made of. Fields without a default must be set.
type Config struct {
	Root, State string // absolute folders; made when missing
	Instance    string // "" for the daemon with the default root
	Network     cni.Network
	RootFS      RootFS
	Spawner     Spawner
	Dial        func(socket string) Monitor // nil: monitor.Dial
	Cgroups     *cgroup.Driver
	// Host is what the containers' specs depend on. Open fills in the facts about cgroups.
	Host spec.Host
	// UserNamespaces is why pods cannot have user namespaces; nil: they can.
	UserNamespaces error
	// Handlers are what sandboxes may name, and how their containers are made then; nil is the native engine, which also serves "" when nothing
	// is said about it.
	Handlers map[string]*external.Program
	Stage
	// Prober looks at the programs of handlers; nil: nobody does before they are used.
	Prober *external.Prober
	// NetNSFolder is where network namespaces are pinned; "" means netns.Folder.
	NetNSFolder string
	NetworkRules
}

// NetworkRules are what a Manager adds to a Network.
type NetworkRules struct {
	// PrimaryIP is the family of a sandbox's first address, where it has one of both; "" leaves the network's order.
	PrimaryIP IPFamily
	// CollectInterval is how often the network is asked to free what no sandbox has; 0 = an hour.
	CollectInterval time.Duration
}

// IPFamily is a version of the Internet Protocol.
type IPFamily string

// Families of addresses.
const (
	IPv4 IPFamily = "ipv4"
	IPv6 IPFamily = "ipv6"
)

// order puts addresses of the family first.
func (f IPFamily) order(ips []netip.Addr) {
	if f == "" {
		return
	}
	slices.SortStableFunc(ips, func(a, b netip.Addr) int {
		rank := map[bool]int{true: 0, false: 1}
		return rank[a.Unmap().Is4() == (f == IPv4)] - rank[b.Unmap().Is4() == (f == IPv4)]
	})
}

func (c *Config) complete() error {
	for _, folder := range []string{c.Root, c.State} {
		if !filepath.IsAbs(folder) {
			return fmt.Errorf("folder %q is not absolute: %w", folder, ErrInvalid)
		}
	}
	if c.Dial == nil {
		c.Dial = func(socket string) Monitor { return monitor.Dial(socket) }
	}
	if c.Plugins == nil {
		c.Plugins = noPlugins{}
	}
	if c.NetNSFolder == "" {
		c.NetNSFolder = netns.Folder
	}
	c.Host.CgroupV2 = c.Cgroups.V2()
	c.Host.Controllers = c.Cgroups.Controllers()
	c.Host.SwapLimit = c.Cgroups.SwapLimit()
	c.Host.NoDeviceRules = !c.Cgroups.DeviceRules()
	return nil
}
