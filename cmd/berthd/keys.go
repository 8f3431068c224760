package main

import (
	"slices"
	"time"

	"github.com/berthd/berth/cmd/berthd/keyfile"
)

// keys is all that the configuration may say. To add a key: an entry here, a field of config that Set fills in, a rule at the end when it depends
// on other keys; then `make man`, which writes the manual page's section from this table. A Doc has one sentence a line. With Live, reloader.reload
// hands the value on.
var keys = keyfile.Table[config]{
	Keys: slices.Concat([]keyfile.Key[config]{
		{Name: "registry.config_path", Default: "/etc/berth/certs.d", Live: true, Set: path(func(c *config) *string { return &c.images.HostsDir }), Doc: `
Folder of HOST/hosts.toml: mirrors and certificates of registries, in containerd's format.
Read at every pull.`},

		{Name: "images.pinned", Default: []string{}, Live: true, Set: set(func(c *config, v []string) error { c.images.Pinned = v; return nil }), Doc: `
Images that the kubelet's garbage collection is to spare: references, or patterns in which an asterisk stands for any text, as "registry.k8s.io/*".
They are compared with an image's tags, digests and ID.
RemoveImage removes a pinned image as any other.`},
		{Name: "images.parallel_layers", Default: int64(6), Live: true, Set: number(func(c *config) *int { return &c.images.Parallel }, 1, 100), Doc: `
How many layers one pull fetches at a time.`},
		{Name: "images.unpack_layers", Default: int64(0), Live: true, Set: number(func(c *config) *int { return &c.images.Unpack }, 0, 1000), Doc: `
How many layers are unpacked at a time, of all pulls together; one that waits for its registry does not count.
0: as many as there are processors.`},
		{Name: "images.layer_connections", Default: int64(4), Live: true, Set: number(func(c *config) *int { return &c.images.Registry.Connections }, 1, 64), Doc: `
Over how many connections a big layer is fetched, one chunk over each, where the registry knows ranges; 1 is never more than one.`},
		{Name: "images.chunk_size", Default: int64(8), Live: true, Set: mebibytes(func(c *config) *int64 { return &c.images.Registry.ChunkSize }, 1, 1024), Doc: `
Size of a chunk in MiB; a layer is big if it has more than two.`},
		{Name: "images.max_connections", Default: int64(16), Live: true, Set: number(func(c *config) *int { return &c.images.Registry.MaxConnections }, 1, 1000), Doc: `
Connections for layers of all pulls together, besides one that each pull has for itself.`},
		{Name: "images.max_buffered", Default: int64(32), Live: true, Set: mebibytes(func(c *config) *int64 { return &c.images.Registry.MaxBuffered }, 1, 1<<20), Doc: `
Memory in MiB for chunks that have come before their turn, of all pulls together.`},
		{Name: "images.stall_timeout", Default: "1m", Live: true, Set: duration(func(c *config) *time.Duration { return &c.images.Registry.StallTimeout }, time.Second), Doc: `
How long a registry may take to answer, and to send stall_size: a connection that brings less in that time is given up, and its layer goes on over another, of the same host or the next.
After five in a row without progress the pull fails.
At least 1s.`},
		{Name: "images.stall_size", Default: int64(64), Live: true, Set: kibibytes(func(c *config) *int64 { return &c.images.Registry.StallBytes }, 1, 1<<20), Doc: `
What a connection must bring in stall_timeout, in KiB.`},
		{Name: "images.mirror_patience", Default: "2s", Live: true, Set: duration(func(c *config) *time.Duration { return &c.images.Registry.Patience }, time.Millisecond), Doc: `
How long a mirror may take to answer before the next host is asked; it is asked again after the others.`},
		{Name: "images.dial_timeout", Default: "30s", Live: true, Set: duration(func(c *config) *time.Duration { return &c.images.Registry.DialTimeout }, time.Millisecond), Doc: `
How long connecting to a registry may take, where hosts.toml says nothing else; a mirror has mirror_patience.`},

		{Name: "network.conf_dir", Default: "/etc/cni/net.d", Live: true, Set: path(func(c *config) *string { return &c.network.ConfDir }), Doc: `
Folder of CNI configurations.
It is looked at when it is needed; it may come and go.`},
		{Name: "network.bin_dirs", Default: []string{"/opt/cni/bin"}, Live: true, Set: paths(func(c *config) *[]string { return &c.network.BinDirs }), Doc: `
Folders of CNI plugins.`},
		{Name: "network.conf_template", Default: "", Live: true, Set: path(func(c *config) *string { return &c.network.Template }), Doc: `
File of a template of which a CNI configuration is made, conf_dir/10-berth.conflist, when the kubelet tells the range of the node's pods (UpdateRuntimeConfig).
It is as containerd's: a Go template with PodCIDR, PodCIDRRanges and Routes, in which text, fields, variables, if, else, range, with and comments are known, and no functions.
It is written only while conf_dir has no other configuration, and replaced, at once and as a whole, only while it is as berthd wrote it.
The file is read each time.
Empty: the range of the node's pods is not used; addresses come from the CNI configuration, or from network.subnets.`},
		{Name: "network.gc_interval", Default: "1h", Set: duration(func(c *config) *time.Duration { return &c.gcInterval }, time.Second), Doc: `
How often what no pod has is taken away from the network: addresses and links of the built-in bridge, what plugins have attached, and what they find themselves with GC of CNI 1.1.
It is done at the start, too.`},
		{Name: "network.bridge", Default: "", Set: text(func(c *config) *string { return &c.bridge }, linkName), Doc: `
Name of the built-in bridge, which serves when there is no CNI configuration.
At most 15 characters.
Empty: berth0; a daemon with another root has a bridge with a name of its own.`},
		{Name: "network.subnets", Default: []string{}, Set: set(setSubnets), Doc: `
Ranges of the built-in bridge, at most one of each family, as "10.88.0.0/16".
None: 10.88.0.0/16 and a private IPv6 range; a daemon with another root has ranges of its own.`},
		{Name: "network.mtu", Default: int64(0), Set: set(setMTU), Doc: `
MTU of the built-in bridge, 1280 to 65535; 0 is that of the host.`},
		{Name: "network.ip_pref", Default: "cni", Set: set(setIPPref), Doc: `
Which address of a pod with several is its primary one: "ipv4" or "ipv6", the first of that family, or "cni", the first that the network gives.
It counts for pods made from then on.`},

		{Name: "runtime.monitor", Default: "", Set: path(func(c *config) *string { return &c.monitor }), Doc: `
The program berth-monitor(8).
Empty: the one beside berthd.`},
		{Name: "runtime.default", Default: handlerNative, Live: true, Set: set(func(c *config, v string) error { c.defaultRuntime = v; return nil }), Doc: `
The handler of pods that name none.
The handler berth is the built-in engine.`},

		{Name: "runtimes.NAME.type", Default: "", Live: true, Set: runtimeKey(runtimeType, func(f *runtimeFile, v string) { f.Type = v }), Doc: `
What the runtime handler NAME is, which pods ask for by their RuntimeClass: "native", the built-in engine, or "oci", another OCI runtime, such as runc(8).
NAME is 1 to 63 of a-z 0-9 and -.
The handler berth is always there.
A pod keeps what its handler meant when the pod was made.`},
		{Name: "runtimes.NAME.path", Default: "", Live: true, Set: runtimeKey(runtimePath, func(f *runtimeFile, v string) { f.Path = v }), Doc: `
The program of an OCI runtime.
It needs the commands create, start, exec and delete of runc 1.1 or later, with exec's option --cgroup, as crun has them.
A program that is missing, or does not answer to --version, keeps nothing else from running: its handler is not among those of Status, its pods are refused, and it is taken as soon as it works, one that hung after a minute at most.
Without that of the default handler berth is not ready.`},
		{Name: "runtimes.NAME.options", Default: []string{}, Live: true, Set: runtimeKey(runtimeOptions, func(f *runtimeFile, v []string) { f.Options = v }), Doc: `
Options of that program that stand before its command; each begins with -.`},

		{Name: "cgroup.driver", Default: driverAuto, Set: text(func(c *config) *string { return &c.cgroupDriver }, cgroupDriver), Doc: `
Who makes the cgroups of pods: "cgroupfs", berth alone, or "systemd", which is asked over D-Bus for one delegated scope a pod, in the slice that the kubelet names.
With "auto" it is systemd where that is the init and cgroup version 2 alone is mounted, and cgroupfs everywhere else.
The kubelet learns it from berth (RuntimeConfig).
Pods that are there keep what they have when it changes.`},

		{Name: "streaming.address", Default: "127.0.0.1", Set: set(setStreamingAddress), Doc: `
IP address at which clients of Exec, Attach and PortForward are served.
The kubelet connects to it and passes on what its own clients send.
A token that is good for one client, for a minute, lets a client in.
With 0.0.0.0 or :: the kubelet is sent to the loopback address.`},
		{Name: "streaming.port", Default: int64(0), Set: number(func(c *config) *int { return &c.streaming.port }, 0, 65535), Doc: `
Port at that address; 0 is any that is free.`},
		{Name: "streaming.tls_cert", Default: "", Set: path(func(c *config) *string { return &c.streaming.cert }), Doc: `
File of the certificate that is shown to these clients, with its chain, in PEM.
Empty: TLS is not spoken.`},
		{Name: "streaming.tls_key", Default: "", Set: path(func(c *config) *string { return &c.streaming.key }), Doc: `
File of its private key, in PEM.
Both are read at the start, and again on SIGHUP: a renewed certificate needs no restart.`},
		{Name: "streaming.idle_timeout", Default: "4h", Set: duration(func(c *config) *time.Duration { return &c.streaming.idleTimeout }, time.Second), Doc: `
After how long without a byte in either direction a client is let go, as 4h or 90s; at least 1s.
The default is the kubelet's own.`},

		{Name: "apparmor.disabled", Default: false, Set: onOff(func(c *config) *bool { return &c.adjust.noAppArmor }), Doc: `
Whether berthd behaves as on a host without AppArmor: containers have no profile, and those that name one are refused.`},

		{Name: "blockio.classes", Default: "", Set: path(func(c *config) *string { return &c.adjust.blockIO }), Doc: `
File of block I/O classes, YAML or JSON: weights and throttles by devices, which pods name by the annotations blockio.resources.beta.kubernetes.io/pod
and blockio.resources.beta.kubernetes.io/container.NAME.
It is read for each container that names a class.
Empty: there are no classes.`},

		{Name: "cdi.spec_dirs", Default: []string{"/etc/cdi", "/var/run/cdi"}, Set: paths(func(c *config) *[]string { return &c.adjust.cdiDirs }), Doc: `
Folders of CDI specifications: what containers need to use devices that their requests name as vendor/class=name.
When several have a device, the last one counts.
They are read for each container that names a device.`},

		{Name: "devices.additional", Default: []string{}, Set: set(setDevices), Doc: `
Devices that all containers get, each as HOST, HOST:CONTAINER or HOST:CONTAINER:PERMISSIONS, such as "/dev/fuse:/dev/fuse:rw".
HOST is a device or a folder of devices; without one no container can be created.`},
		{Name: "devices.owned_by_user", Default: false, Set: onOff(func(c *config) *bool { return &c.adjust.devicePolicy.OwnedByUser }), Doc: `
Whether the devices of a request belong to the user and the group that it names, and not to those of the host.`},
		{Name: "devices.none_for_privileged", Default: false, Set: onOff(func(c *config) *bool { return &c.adjust.devicePolicy.NoHostDevices }), Doc: `
Whether privileged containers have the devices of their requests alone, and not all of the host.`},

		{Name: "hooks.dirs", Default: []string{}, Set: paths(func(c *config) *[]string { return &c.adjust.hookDirs }), Doc: `
Folders of OCI hooks in the format of oci-hooks(5), version 1.0.0: programs that are executed at points of a container's life.
Other runtimes have theirs in /usr/share/containers/oci/hooks.d and /etc/containers/oci/hooks.d.
A file in a later folder takes the place of one of the same name in an earlier one.
They are read when a container is created; a file that cannot be used keeps containers from being created.
A hook without a timeout of its own has the time of the call, those after a container's end have 10 seconds.`},

		{Name: "selinux.enabled", Default: false, Set: onOff(func(c *config) *bool { return &c.adjust.seLinux }), Doc: `
Whether containers get SELinux labels, on a host where SELinux is enabled: those of their requests, and where these leave something out those of the
policy (lxc_contexts), with a level that no other pod has.
Without it, or on a host without SELinux, the options of requests mean nothing.`},
	}, pluginKeys, []keyfile.Key[config]{
		{Name: "metrics.address", Default: "", Set: set(setMetricsAddress), Doc: `
IP address and port at which /metrics shows in Prometheus' format how many calls of the CRI were answered, with which codes, how long they took, and a few facts about berthd, as "127.0.0.1:9440".
Whoever reaches the address may read it.
The metrics of containers are not there, but in the CRI (ListPodSandboxMetrics), which the kubelet shows.
Empty: nothing is served.`},

		{Name: "log.verbosity", Default: int64(2), Live: true, Set: number(func(c *config) *int { return &c.verbosity }, 0, maxVerbosity), Doc: `
How much is logged, 0 to 10.
The option --v stands above it.`},
	}),
	Rules: []func(*config) error{findMonitor, makeRuntimes, checkStreaming},
}
