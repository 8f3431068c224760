package invariants

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Daemon says where a berthd keeps its things. PID is 0 when it does not run.
type Daemon struct {
	Root, State, Bridge string
	PID                 int
	CgroupParents       []string // parents besides the daemon's own tree that pods were given, as "/kubepods/x"
	Systemd             bool     // the cgroup driver is systemd
}

// Instance is the mark that everything carries which the daemon makes outside its folders: empty for the default root.
func (d Daemon) Instance() string {
	root := filepath.Clean(d.Root)
	if root == "/var/lib/berth" {
		return ""
	}
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:3])
}

// marked returns "berth", or "berth-INSTANCE".
func (d Daemon) marked() string {
	if i := d.Instance(); i != "" {
		return "berth-" + i
	}
	return "berth"
}

// CgroupRoot is the daemon's own tree in every hierarchy.
func (d Daemon) CgroupRoot() string {
	if !d.Systemd {
		return "/" + d.marked()
	}
	if d.Instance() == "" {
		return "/berth.slice"
	}
	return "/berth.slice/" + d.marked() + ".slice"
}

// monitorScope is what the monitors' cgroup is in.
func (d Daemon) monitorScope() string {
	if !d.Systemd {
		return d.CgroupRoot()
	}
	return d.CgroupRoot() + "/" + d.marked() + "-monitors.scope"
}

// PodCgroup is that of a pod with this parent; "" is the own tree.
func (d Daemon) PodCgroup(parent, sandboxID string) string {
	if parent == "" {
		parent = d.CgroupRoot()
	}
	if d.Systemd {
		return parent + "/" + d.marked() + "-" + sandboxID + ".scope"
	}
	return parent + "/" + sandboxID
}

// VethName is the host's end of a sandbox's link.
func (d Daemon) VethName(sandboxID string) string {
	sum := sha256.Sum256([]byte(d.Instance() + sandboxID))
	return "vb" + hex.EncodeToString(sum[:5])
}

// IfbName is the link that limits what a sandbox sends, if anything does.
func (d Daemon) IfbName(sandboxID string) string { return d.VethName(sandboxID) + "-e" }

// IfbMAC is the hardware address of the links that limit what pods send.
func (d Daemon) IfbMAC() string {
	sum := sha256.Sum256([]byte("ifb " + d.Bridge))
	return "0a:58:" + net.HardwareAddr(sum[:4]).String()
}

// Table is the name of the bridge's nftables tables.
func (d Daemon) Table() string { return "berth-" + d.Bridge }

// Pin is where a sandbox's network namespace is pinned.
func (d Daemon) Pin(sandboxID string) string { return "/run/netns/" + d.marked() + "-" + sandboxID }

// Kind says what an Item is.
type Kind string

// The kinds of items.
const (
	Process    Kind = "process"
	Mount      Kind = "mount"
	Cgroup     Kind = "cgroup"
	Pin        Kind = "pin"
	Link       Kind = "link"
	Address    Kind = "address"
	Firewall   Kind = "nftables"
	Record     Kind = "record"
	Layer      Kind = "writable layer"
	State      Kind = "state"
	Descriptor Kind = "descriptors of berthd"
)

// Item is one thing on the host.
type Item struct {
	Kind Kind
	Name string
}

func (i Item) String() string { return string(i.Kind) + " " + i.Name }

// Items is a collection, with a count where things are counted and 1 elsewhere.
type Items map[Item]int

// Names returns the names of one kind, sorted.
func (items Items) Names(k Kind) []string {
	var names []string
	for i := range items {
		if i.Kind == k {
			names = append(names, i.Name)
		}
	}
	slices.Sort(names)
	return names
}

var sandboxID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Take collects everything of the daemon's that is on the host now.
func Take(d Daemon) (Items, error) {
	items := Items{}
	for _, take := range []func(Daemon, Items) error{
		takeMounts, takePins, takeCgroups, takeProcesses, takeLinks, takeFirewall, takeFiles, takeDescriptors,
	} {
		if err := take(d, items); err != nil {
			return nil, err
		}
	}
	return items, nil
}

func takeMounts(d Daemon, items Items) error {
	mounts, err := mountpoints("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if within(m, d.Root) || within(m, d.State) || isPin(d, m) {
			items[Item{Mount, m}]++
		}
	}
	return nil
}

// mountpoints reads the fifth field of a mountinfo file.
func mountpoints(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 {
			all = append(all, strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(f[4]))
		}
	}
	return all, nil
}

func isPin(d Daemon, path string) bool {
	id, ok := strings.CutPrefix(path, "/run/netns/"+d.marked()+"-")
	return ok && sandboxID.MatchString(id)
}

func within(path, dir string) bool {
	return dir != "" && (path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/"))
}

func takePins(d Daemon, items Items) error {
	entries, err := os.ReadDir("/run/netns")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list pins: %w", err)
	}
	for _, e := range entries {
		if path := "/run/netns/" + e.Name(); isPin(d, path) {
			items[Item{Pin, path}]++
		}
	}
	return nil
}

// takeFiles collects records, reservations, writable layers and what stands in the state folder.
func takeFiles(d Daemon, items Items) error {
	walk := func(dir string, visit func(rel string, e fs.DirEntry)) error {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it went while we looked
			}
			if err != nil {
				return err
			}
			if rel, err := filepath.Rel(dir, path); err == nil && rel != "." {
				visit(rel, e)
			}
			if e.IsDir() && e.Name() == "rootfs" { // a container's own files, mounted for another runtime
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		return nil
	}
	add := func(k Kind) func(string, fs.DirEntry) {
		return func(rel string, _ fs.DirEntry) { items[Item{k, rel}]++ }
	}
	entries, err := os.ReadDir(filepath.Join(d.Root, "images", "containers"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list writable layers: %w", err)
	}
	for _, e := range entries {
		items[Item{Layer, e.Name()}]++
	}
	return errors.Join(
		walk(filepath.Join(d.Root, "pods"), add(Record)),
		walk(filepath.Join(d.State, "pods"), add(State)),
		walk(filepath.Join(d.State, "runtimes"), func(rel string, _ fs.DirEntry) {
			if container := strings.Split(rel, "/"); len(container) == 2 { // HANDLER/CONTAINER; what is in there is the runtime's
				items[Item{State, "runtimes/" + rel}]++
			}
		}),
		walk(filepath.Join(d.Root, "network"), func(rel string, e fs.DirEntry) {
			if _, err := netip.ParseAddr(e.Name()); err == nil && e.Type().IsRegular() {
				items[Item{Address, rel}]++
			}
		}),
	)
}

// takeDescriptors counts the daemon's descriptors by what they are. A socket may be a client's, so sockets are not counted.
func takeDescriptors(d Daemon, items Items) error {
	if d.PID == 0 {
		return nil
	}
	targets, err := descriptors(d.PID)
	if err != nil {
		return err
	}
	for _, target := range targets {
		if name := describe(d, target); name != "socket" {
			items[Item{Descriptor, name}]++
		}
	}
	return nil
}

// descriptors returns what a process's descriptors point at. A process that has gone has none.
func descriptors(pid int) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list descriptors: %w", err)
	}
	var all []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			all = append(all, target)
		}
	}
	return all, nil
}

var digits = regexp.MustCompile(`[0-9a-f]{64}|[0-9]+`)

// describe turns a descriptor's target into a kind: numbers and IDs out, so that two pods look alike.
func describe(d Daemon, target string) string {
	switch {
	case strings.HasPrefix(target, "socket:"):
		return "socket"
	case within(target, d.Root):
		target = "ROOT" + strings.TrimPrefix(target, d.Root)
	case within(target, d.State):
		target = "STATE" + strings.TrimPrefix(target, d.State)
	}
	return digits.ReplaceAllString(target, "N")
}

// standing tells whether an item is made once for all pods and stays.
func (d Daemon) standing(i Item) bool {
	switch i.Kind {
	case Link:
		return i.Name == d.Bridge
	case Firewall:
		return !strings.Contains(i.Name, " set ")
	case Process: // another one when somebody ends the scope
		return strings.HasSuffix(i.Name, " (berth-hold "+d.marked()+"-monitors.scope)")
	case Cgroup:
		_, path, _ := strings.Cut(i.Name, ":")
		return path == d.CgroupRoot() || slices.Contains(d.CgroupParents, path) ||
			slices.Contains([]string{d.monitorScope(), d.monitorScope() + "/monitors", d.monitorScope() + "/hold"}, path)
	}
	return false
}

// Diff tells what was left behind and what is gone, a line each, sorted. No lines means that everything is as before.
func Diff(d Daemon, before, after Items) []string {
	var lines []string
	for i, n := range after {
		switch was := before[i]; {
		case n <= was || was == 0 && d.standing(i):
		case i.Kind == Descriptor || was > 0:
			lines = append(lines, fmt.Sprintf("left behind: %s: %d, before %d", i, n, was))
		default:
			lines = append(lines, "left behind: "+i.String())
		}
	}
	for i := range before {
		if after[i] == 0 && i.Kind != Descriptor && !d.standing(i) {
			lines = append(lines, "gone: "+i.String())
		}
	}
	slices.Sort(lines)
	return lines
}

// String lists the items, a line each.
func (items Items) String() string {
	keys := slices.SortedFunc(maps.Keys(items), func(a, b Item) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name))
	})
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, "%s\n", k)
	}
	return b.String()
}
