package sandbox

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func labelOf(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 200)
	n, err := unix.Lgetxattr(path, "security.selinux", b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// hostIPCPod has no /dev/shm of its own: this kernel, without SELinux, mounts none with a label.
func hostIPCPod(name string) *runtimeapi.PodSandboxConfig {
	config := podConfig(name)
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Ipc: runtimeapi.NamespaceMode_NODE}}}
	return config
}

// Each pod has a level of its own, also after a restart, and its files and volumes have it.
func TestSELinuxLevels(t *testing.T) {
	w := newWorld(t)
	w.cfg.Host.SELinux.Enabled = true
	m := w.open(nil)
	form := regexp.MustCompile(`^s0:c[0-9]+,c[0-9]+$`)
	levels := map[string]bool{}
	for _, name := range []string{"a", "b", "c"} {
		id := run(t, m, hostIPCPod(name))
		level := m.pods[id].rec.SELinuxLevel
		if !form.MatchString(level) || levels[level] {
			t.Errorf("level %q", level)
		}
		levels[level] = true
		label := "system_u:object_r:container_file_t:" + level
		for _, file := range []string{"hosts", "hostname", "resolv.conf"} {
			if got := labelOf(t, filepath.Join(w.cfg.State, "pods", id, file)); got != label {
				t.Errorf("%s has the label %q, want %q", file, got, label)
			}
		}
		volume, other := t.TempDir(), t.TempDir()
		if err := os.WriteFile(volume+"/file", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		r := createRequest(id, "c", "sleep")
		r.Config.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/a", SelinuxRelabel: true}, {HostPath: other, ContainerPath: "/b"}}
		c, err := m.CreateContainer(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := [3]string{labelOf(t, volume), labelOf(t, volume+"/file"), labelOf(t, other)}; got != [3]string{label, label, ""} {
			t.Errorf("volumes have the labels %q, want %q for the first", got, label)
		}
		if s, err := m.specOf(m.containers[c]); err != nil || s.Process.SelinuxLabel != "system_u:system_r:container_t:"+level || s.Linux.MountLabel != label {
			t.Errorf("spec has %q and %q, %v", s.Process.SelinuxLabel, s.Linux.MountLabel, err)
		}
		r = createRequest(id, "bad", "sleep")
		r.Config.Mounts = []*runtimeapi.Mount{{HostPath: "/etc", ContainerPath: "/a", SelinuxRelabel: true}}
		if _, err := m.CreateContainer(t.Context(), r); err == nil || !strings.Contains(err.Error(), "selinux_relabel") || labelOf(t, "/etc") == label {
			t.Errorf("relabel of the host's own: %v", err)
		}
	}
	named := hostIPCPod("named")
	named.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
	if id := run(t, m, named); m.pods[id].rec.SELinuxLevel != "" {
		t.Errorf("a pod that names a level got %q", m.pods[id].rec.SELinuxLevel)
	}
	again := w.open(nil)
	w.recovered(again)
	for id, p := range m.pods {
		if now := again.pods[id].rec.SELinuxLevel; now != p.rec.SELinuxLevel {
			t.Errorf("level %q became %q", p.rec.SELinuxLevel, now)
		}
	}
}

func TestNoSELinux(t *testing.T) {
	w := newWorld(t)
	m := w.open(nil)
	config := podConfig("a")
	config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{SelinuxOptions: &runtimeapi.SELinuxOption{Type: "t"}}}
	id := run(t, m, config)
	volume := t.TempDir()
	r := createRequest(id, "c", "sleep")
	r.Config.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/a", SelinuxRelabel: true}}
	c, err := m.CreateContainer(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := m.specOf(m.containers[c]); err != nil || s.Process.SelinuxLabel+s.Linux.MountLabel+labelOf(t, volume)+m.pods[id].rec.SELinuxLevel != "" {
		t.Errorf("labels without SELinux: %+v, %v", s, err)
	}
}
