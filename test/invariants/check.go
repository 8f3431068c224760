package invariants

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/sandbox/store"
)

// lists is what the CRI says, and the processes in the cgroups of each name.
type lists struct {
	pods       map[string]*runtimeapi.PodSandboxStatus
	containers map[string]*runtimeapi.Container
	processes  map[string][]int
}

func readLists(ctx context.Context, rt runtimeapi.RuntimeServiceClient) (lists, error) {
	l := lists{pods: map[string]*runtimeapi.PodSandboxStatus{}, containers: map[string]*runtimeapi.Container{}}
	pods, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return l, fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		s, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if err != nil {
			return l, fmt.Errorf("status of a listed pod: %w", err)
		}
		l.pods[p.Id] = s.Status
	}
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return l, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers.Containers {
		l.containers[c.Id] = c
	}
	return l, nil
}

// Hold compares CRI lists, records and host once, and returns the breaches of I1, a line each.
func Hold(ctx context.Context, d Daemon, rt runtimeapi.RuntimeServiceClient) ([]string, error) {
	l, err := readLists(ctx, rt)
	if err != nil {
		return nil, err
	}
	items, err := Take(d)
	if err != nil {
		return nil, err
	}
	if l.processes, err = membersByName(d); err != nil {
		return nil, err
	}
	var breaches []string
	for _, check := range []func(Daemon, lists, Items) ([]string, error){
		owners, records, podThings, addresses, containerThings, monitors, scopes, leaks,
	} {
		found, err := check(d, l, items)
		if err != nil {
			return nil, err
		}
		breaches = append(breaches, found...)
	}
	slices.Sort(breaches)
	return breaches, nil
}

// owners: whatever carries an ID belongs to a listed object.
func owners(d Daemon, l lists, items Items) (breaches []string, err error) {
	for i := range items {
		for _, part := range strings.FieldsFunc(i.Name, func(r rune) bool { return r == '/' || r == ':' || r == ' ' }) {
			part = strings.TrimSuffix(strings.TrimPrefix(part, d.marked()+"-"), ".scope")
			if !sandboxID.MatchString(part) || i.Kind == Process {
				continue
			}
			if l.pods[part] == nil && l.containers[part] == nil {
				breaches = append(breaches, i.String()+": no pod or container of this ID is listed")
			}
		}
	}
	return breaches, nil
}

// records: each can be read (I7), and says of its object what the lists say.
func records(d Daemon, l lists, _ Items) (breaches []string, err error) {
	s, err := store.Open(d.Root)
	if err != nil {
		return nil, fmt.Errorf("open records: %w", err)
	}
	folders, err := s.Load()
	if err != nil {
		return nil, fmt.Errorf("read records: %w", err)
	}
	for _, f := range folders {
		p := l.pods[f.ID]
		switch {
		case f.Err != nil:
			breaches = append(breaches, fmt.Sprintf("record of pod %s: %v", f.ID, f.Err))
		case p != nil && (f.Pod.State == store.Ready) != ready(p):
			breaches = append(breaches, fmt.Sprintf("pod %s is %s in its record and %s in the list", f.ID, f.Pod.State, p.State))
		}
		for _, c := range f.Containers {
			listed := l.containers[c.ID]
			switch {
			case c.Err != nil:
				breaches = append(breaches, fmt.Sprintf("record of container %s: %v", c.ID, c.Err))
			case listed != nil && listed.State != states[c.Container.State]:
				breaches = append(breaches, fmt.Sprintf("container %s is %s in its record and %s in the list", c.ID, c.Container.State, listed.State))
			}
		}
	}
	return breaches, nil
}

// states are the CRI's words for those of the records.
var states = map[string]runtimeapi.ContainerState{
	store.Created: runtimeapi.ContainerState_CONTAINER_CREATED, store.Starting: runtimeapi.ContainerState_CONTAINER_CREATED,
	store.Running: runtimeapi.ContainerState_CONTAINER_RUNNING, store.Exited: runtimeapi.ContainerState_CONTAINER_EXITED,
}

func ready(p *runtimeapi.PodSandboxStatus) bool {
	return p.State == runtimeapi.PodSandboxState_SANDBOX_READY
}

// ownNetwork tells whether a pod has a network namespace of its own.
func ownNetwork(p *runtimeapi.PodSandboxStatus) bool {
	return p.GetLinux().GetNamespaces().GetOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE
}

// podThings: a ready pod has its record, pin, shm mount and link. One that is not ready has all of it or nothing: it keeps what it has until
// it is stopped.
func podThings(d Daemon, l lists, items Items) (breaches []string, err error) {
	owned := map[string]bool{d.Bridge: true}
	for id, p := range l.pods {
		owned[d.VethName(id)] = ready(p) || items[Item{Pin, d.Pin(id)}] > 0
		owned[d.IfbName(id)] = owned[d.VethName(id)]
		if items[Item{Record, id}] == 0 {
			breaches = append(breaches, "pod "+id+" has no record")
		}
		pin, shm := items[Item{Pin, d.Pin(id)}] > 0, items[Item{Mount, path.Join(d.State, "pods", id, "shm")}] > 0
		mounted := items[Item{Mount, d.Pin(id)}] > 0
		link := items[Item{Link, d.VethName(id)}] > 0
		switch {
		case !ready(p) && (pin != mounted || link && !pin):
			breaches = append(breaches, fmt.Sprintf("pod %s is not ready: pin %t (mounted %t), shm %t, link %t", id, pin, mounted, shm, link))
		case ready(p) && ownNetwork(p) && (!pin || !mounted):
			breaches = append(breaches, fmt.Sprintf("pod %s is ready: pin %t (mounted %t)", id, pin, mounted))
		case ready(p) && !shm && p.GetLinux().GetNamespaces().GetOptions().GetIpc() != runtimeapi.NamespaceMode_NODE:
			breaches = append(breaches, "pod "+id+" is ready without its shm mount")
		}
	}
	for _, name := range items.Names(Link) {
		if !owned[name] {
			breaches = append(breaches, "link "+name+" belongs to no pod that has a network")
		}
	}
	return breaches, nil
}

// addresses: each address of a ready pod is reserved for it once, no address is shared, and no other one is reserved by the bridge.
func addresses(d Daemon, l lists, items Items) (breaches []string, err error) {
	owner := map[string]string{}
	for id, p := range l.pods {
		if !ownNetwork(p) || !ready(p) && items[Item{Pin, d.Pin(id)}] == 0 {
			continue
		}
		ips := []string{p.GetNetwork().GetIp()}
		for _, more := range p.GetNetwork().GetAdditionalIps() {
			ips = append(ips, more.Ip)
		}
		for _, ip := range ips {
			if ip == "" && ready(p) {
				breaches = append(breaches, "pod "+id+" is ready without an address")
			}
			if ip == "" {
				continue
			}
			if other := owner[ip]; other != "" {
				breaches = append(breaches, fmt.Sprintf("address %s: of pod %s and of pod %s", ip, id, other))
			}
			owner[ip] = id
		}
	}
	for _, file := range items.Names(Address) {
		text, err := os.ReadFile(path.Join(d.Root, "network", file))
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read reservation: %w", err)
		}
		id, _, _ := strings.Cut(string(text), "\n")
		id = strings.TrimSpace(id)
		switch p := l.pods[id]; {
		case p == nil || items[Item{Pin, d.Pin(id)}] == 0:
			breaches = append(breaches, "address "+file+" is reserved for a pod without a network: "+id)
		case ready(p) && owner[path.Base(file)] != id:
			breaches = append(breaches, fmt.Sprintf("address %s is reserved for pod %s, and pod %q has it", file, id, owner[path.Base(file)]))
		}
	}
	return breaches, nil
}

// containerThings: a running container has a process in its cgroup, another has none; each has its record and its writable layer.
func containerThings(d Daemon, l lists, items Items) (breaches []string, err error) {
	for id, c := range l.containers {
		if items[Item{Record, path.Join(c.PodSandboxId, "containers", id)}] == 0 {
			breaches = append(breaches, "container "+id+" has no record")
		}
		if l.pods[c.PodSandboxId] == nil {
			breaches = append(breaches, "container "+id+" belongs to no listed pod")
		}
		pids := l.processes[id]
		running := c.State == runtimeapi.ContainerState_CONTAINER_RUNNING
		if running != (len(pids) > 0) {
			breaches = append(breaches, fmt.Sprintf("container %s is %s and has %d processes %v", id, c.State, len(pids), pids))
		}
		// Another runtime has its root on the host while it runs.
		if root := path.Join(d.State, "pods", c.PodSandboxId, id, "rootfs"); !running && items[Item{Mount, root}] > 0 {
			breaches = append(breaches, fmt.Sprintf("container %s is %s and its root is mounted", id, c.State))
		}
	}
	for _, id := range items.Names(Layer) {
		if l.containers[id] == nil {
			breaches = append(breaches, "writable layer "+id+" belongs to no container")
		}
	}
	return breaches, nil
}

// monitors: one a ready pod, in the pod's network namespace, and no other. A pod with one PID namespace has that one's first process as well.
func monitors(d Daemon, l lists, items Items) (breaches []string, err error) {
	pids, err := Monitors(d)
	if err != nil {
		return nil, err
	}
	count := map[uint64]int{}
	total := 0
	for _, pid := range pids {
		if inode(fmt.Sprintf("/proc/%d/ns/pid", pid)) == inode("/proc/self/ns/pid") {
			count[inode(fmt.Sprintf("/proc/%d/ns/net", pid))]++
			total++
		}
	}
	want := 0
	for id, p := range l.pods {
		if !ready(p) {
			continue
		}
		want++
		if ownNetwork(p) && count[inode(d.Pin(id))] != 1 {
			breaches = append(breaches, fmt.Sprintf("pod %s is ready and has %d monitors", id, count[inode(d.Pin(id))]))
		}
	}
	if total != want {
		breaches = append(breaches, fmt.Sprintf("%d monitors for %d ready pods", total, want))
	}
	return breaches, nil
}

// inode names a namespace; 0 if there is none.
func inode(path string) uint64 {
	if st, ok := stat(path); ok {
		return st.Ino
	}
	return 0
}

// scopes: with systemd a ready pod has one, with a process that holds it, unless somebody has ended it; one that is not ready has none once it is stopped.
func scopes(d Daemon, l lists, _ Items) (breaches []string, err error) {
	for name, pids := range l.processes {
		id, found := strings.CutPrefix(strings.TrimSuffix(name, ".scope"), d.marked()+"-")
		if d.Systemd && found && sandboxID.MatchString(id) && l.pods[id] != nil && len(pids) == 0 {
			breaches = append(breaches, "pod "+id+" has a scope without a process")
		}
	}
	return breaches, nil
}

// leaks: no process in a container's cgroup has a descriptor of berth's.
func leaks(d Daemon, l lists, _ Items) (breaches []string, err error) {
	for id := range l.containers {
		for _, pid := range l.processes[id] {
			targets, err := descriptors(pid)
			if err != nil {
				return nil, err
			}
			for _, target := range targets {
				if within(target, d.Root) && !strings.Contains(target, "/images/") || within(target, d.State) && !strings.Contains(target, "/shm/") ||
					strings.HasPrefix(target, "anon_inode:[pidfd") || strings.HasPrefix(target, "/memfd:berth") || strings.HasPrefix(target, "net:[") {
					breaches = append(breaches, fmt.Sprintf("container %s: process %d holds %s", id, pid, target))
				}
			}
		}
	}
	return breaches, nil
}
