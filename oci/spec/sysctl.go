package spec

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const fieldPod = "config.linux."

// ipcSysctls are those of System V IPC that each ipc namespace has for itself (ipc/ipc_sysctl.c); fs.mqueue.* are too.
var ipcSysctls = []string{
	"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.msg_next_id", "kernel.sem", "kernel.sem_next_id", "kernel.shmall",
	"kernel.shmmax", "kernel.shmmni", "kernel.shm_next_id", "kernel.shm_rmid_forced",
}

// sysctlName is a name with dots. A slash, which sysctl(8) takes for a dot within a part, is refused: it would be a path
// inside a path. sysctlValue has what numbers, lists, ranges and names are written with.
var (
	sysctlName  = regexp.MustCompile(`^[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-_a-z0-9]*[a-z0-9])?)+$`)
	sysctlValue = regexp.MustCompile(`^[A-Za-z0-9_.,:/\- \t]*$`)
)

// ownNetwork are those that a network namespace of the pod's own gets when the request does not name them: no port and no ping needs a
// capability there, as with containerd.
var ownNetwork = [][2]string{{"net.ipv4.ip_unprivileged_port_start", "0"}, {"net.ipv4.ping_group_range", "0 2147483647"}}

// Sysctls returns the pod's sysctls: those that every pod gets, then the request's, sorted by name. All are of namespaces that the
// pod has for itself: others would be set for the host (CVE-2022-0532), and are refused.
func Sysctls(cfg *runtimeapi.PodSandboxConfig) ([][2]string, error) {
	options := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	hostNet := options.GetNetwork() == runtimeapi.NamespaceMode_NODE
	hostIPC := options.GetIpc() == runtimeapi.NamespaceMode_NODE
	all := cfg.GetLinux().GetSysctls()
	out := make([][2]string, 0, len(all)+len(ownNetwork))
	for _, s := range ownNetwork {
		if _, asked := all[s[0]]; !asked && !hostNet {
			out = append(out, s)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		value := all[name]
		if len(name) > maxName || !sysctlName.MatchString(name) {
			return nil, invalid(fieldPod+"sysctls", name, "must be a name of parts with dots, such as net.core.somaxconn")
		}
		// CVE-2022-0811: a + in a value began another sysctl.
		if len(value) > 4096 || !sysctlValue.MatchString(value) {
			return nil, invalid(fieldPod+"sysctls."+name, value, "must be one line of letters, digits, spaces and _ . , : / -")
		}
		switch ipc := slices.Contains(ipcSysctls, name) || strings.HasPrefix(name, "fs.mqueue."); {
		case ipc && hostIPC:
			return nil, invalid(fieldPod+"sysctls", name, "must not be set in a pod that uses the host's ipc namespace")
		case ipc:
		case (strings.HasPrefix(name, "net.") || name == "kernel.domainname") && hostNet:
			return nil, invalid(fieldPod+"sysctls", name, "must not be set in a pod that uses the host's network")
		case strings.HasPrefix(name, "net.") || name == "kernel.domainname":
		default:
			return nil, invalid(fieldPod+"sysctls", name, "is not of a namespace that the pod has for itself")
		}
		out = append(out, [2]string{name, value})
	}
	return out, nil
}

// CheckSysctls checks kernel parameters that a container is to have besides its pod's: they are of namespaces that it shares with the pod.
func CheckSysctls(pod *runtimeapi.PodSandboxConfig, all map[string]string) error {
	_, err := Sysctls(&runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: pod.GetLinux().GetSecurityContext(), Sysctls: all}})
	return err
}
