package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/runtime/external"
	"github.com/berthd/berth/oci/spec"
	"github.com/berthd/berth/sandbox/store"
)

// shmBytes is the size of a pod's /dev/shm, as other runtimes have it.
const shmBytes = 64 << 20

// maxHostFile bounds what is copied from the host's /etc, in bytes.
const maxHostFile = 1 << 20

// specPod is the sandbox as package spec needs it.
func (m *Manager) specPod(p *pod) spec.Pod {
	dir := m.stateDir(p.id)
	out := spec.Pod{Config: p.config, Level: m.record(p).SELinuxLevel, HostsPath: filepath.Join(dir, "hosts"), ResolvPath: filepath.Join(dir, "resolv.conf"),
		HostnamePath: filepath.Join(dir, "hostname")}
	if !hostIPC(p.config) {
		out.ShmPath = m.shm(p.id)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if l := p.link; l != nil && l.pidInit != 0 {
		out.PIDPath = pidNamespace(l.pidInit)
	}
	return out
}

func pidNamespace(pid int) string { return fmt.Sprintf("/proc/%d/ns/pid", pid) }

// writePodFiles makes /dev/shm, resolv.conf and hostname.
func (m *Manager) writePodFiles(p *pod) error {
	if !hostIPC(p.config) {
		if err := m.effect("mount shm"); err != nil {
			return err
		}
		if err := mountShm(m.shm(p.id), spec.PodMountLabel(m.specPod(p), m.cfg.Host.SELinux)); err != nil {
			return err
		}
	}
	if err := m.effect("write resolv.conf and hostname"); err != nil {
		return err
	}
	resolv, err := resolvConf(p.config.GetDnsConfig())
	if err != nil {
		return err
	}
	name, err := podHostname(p.config)
	if err != nil {
		return err
	}
	dir := m.stateDir(p.id)
	if err := errors.Join(writePublic(filepath.Join(dir, "resolv.conf"), resolv), writePublic(filepath.Join(dir, "hostname"), name+"\n")); err != nil {
		return err
	}
	return m.labelPodFiles(m.ctx, p, "resolv.conf", "hostname")
}

// writeHosts makes hosts, once the sandbox has its addresses.
func (m *Manager) writeHosts(p *pod) error {
	if err := m.effect("write hosts"); err != nil {
		return err
	}
	path := filepath.Join(m.stateDir(p.id), "hosts")
	if hostNetwork(p.config) {
		text, err := hostFile("/etc/hosts")
		if err != nil {
			return err
		}
		return errors.Join(writePublic(path, text), m.labelPodFiles(m.ctx, p, "hosts"))
	}
	var text strings.Builder
	text.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	if name := p.config.GetHostname(); name != "" {
		for _, ip := range m.addresses(p) {
			fmt.Fprintf(&text, "%s\t%s\n", ip, name)
		}
	}
	if err := writePublic(path, text.String()); err != nil {
		return err
	}
	return m.labelPodFiles(m.ctx, p, "hosts")
}

// podHostname is what the pod's uts namespace says: its own name, or the host's when it has none of its own.
func podHostname(config *runtimeapi.PodSandboxConfig) (string, error) {
	if name := config.GetHostname(); name != "" && !hostNetwork(config) {
		return name, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the host's name: %w", err)
	}
	return name, nil
}

// resolvConf writes a configuration as resolv.conf(5) has it. Without one the host's is taken.
func resolvConf(dns *runtimeapi.DNSConfig) (string, error) {
	if len(dns.GetServers()) == 0 && len(dns.GetSearches()) == 0 && len(dns.GetOptions()) == 0 {
		return hostFile("/etc/resolv.conf")
	}
	var text strings.Builder
	if len(dns.GetSearches()) > 0 {
		text.WriteString("search " + strings.Join(dns.GetSearches(), " ") + "\n")
	}
	for _, server := range dns.GetServers() {
		text.WriteString("nameserver " + server + "\n")
	}
	if len(dns.GetOptions()) > 0 {
		text.WriteString("options " + strings.Join(dns.GetOptions(), " ") + "\n")
	}
	return text.String(), nil
}

// hostFile reads a file of the host's /etc. One that is not there is empty.
func hostFile(path string) (string, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("copy the host's %s: %w", path, err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxHostFile {
		return "", fmt.Errorf("copy the host's %s: it is not a regular file of at most %d bytes", path, maxHostFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("copy the host's %s: %w", path, err)
	}
	return string(text), nil
}

// writePublic writes a file that containers read, whoever they run as.
func writePublic(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write pod file: %w", err)
	}
	if err := os.Chmod(path, 0o644); err != nil { // the umask may have taken something away
		return fmt.Errorf("write pod file: %w", err)
	}
	return nil
}

func mountShm(path, label string) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make %s: %w", path, err)
	}
	options := fmt.Sprintf("mode=1777,size=%d", shmBytes)
	if label != "" {
		options += `,context="` + label + `"`
	}
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options); err != nil {
		return fmt.Errorf("mount shm at %s: %w", path, err)
	}
	return nil
}

// removeStateDir unmounts what is in the sandbox's folder and removes it. It is idempotent.
func (m *Manager) removeStateDir(sandboxID string) error {
	shm := m.shm(sandboxID)
	for {
		err := unix.Unmount(shm, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", shm, err)
		}
	}
	// One by one, not RemoveAll: what somebody mounts in here must never be walked into.
	dir := m.stateDir(sandboxID)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if store.ValidID(e.Name()) { // a bundle that its container's end has not taken away
			errs = append(errs, external.Remove(filepath.Join(dir, e.Name())))
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove state folder: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove state folder: %w", err)
	}
	return nil
}
