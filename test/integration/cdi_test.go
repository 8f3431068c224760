package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func cdiDevices(names ...string) harness.ContainerOption {
	return func(c *runtimeapi.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
		}
	}
}

// startCDI starts a daemon with a folder of CDI specifications.
func startCDI(t *testing.T) (d *harness.Daemon, folder string) {
	folder = t.TempDir()
	return harness.Start(t, harness.WithConfig(fmt.Sprintf("[cdi]\nspec_dirs = [%q, %q]\n", filepath.Join(folder, "missing"), folder))), folder
}

// A container gets all that the specifications of its devices say, and those that name none get nothing.
func TestCDIDevices(t *testing.T) {
	d, specs := startCDI(t)
	dir := folder(t, d, "driver")
	hook := d.Write(filepath.Join(d.Dir, "hook.sh"), "#!/bin/sh\ncd $(sed 's/.*\"bundle\":\"\\([^\"]*\\).*/\\1/')\necho hooked > rootfs/from-the-hook\n")
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(filepath.Join(specs, "gpu.yaml"), fmt.Sprintf(`
cdiVersion: 1.1.0
kind: test.vendor/gpu
containerEdits:
  env: [DRIVER=seven]
devices:
- name: one
  containerEdits:
    env: [GPU=one]
    additionalGids: [4444]
    deviceNodes: [{path: /dev/gpu-null, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: %q, containerPath: /usr/lib/gpu, options: [ro, nosuid, rbind, rprivate]}]
    hooks: [{hookName: createContainer, path: %q}]
- name: two
  containerEdits:
    env: [GPU=two]
    deviceNodes: [{path: /dev/gpu-zero, hostPath: /dev/zero}]
`, dir, hook))
	pod := d.RunPod(d.Pod("cdi"))
	see := "echo $DRIVER/$GPU; id -G; ls -l /dev/gpu-null | cut -d' ' -f1; echo lost > /dev/gpu-null; cat /usr/lib/gpu/file /from-the-hook; " +
		"echo x > /usr/lib/gpu/y || head -c 3 /dev/gpu-zero | wc -c"
	script := "(" + see + ") 2>/dev/null"
	c := pod.Run(d.Sleeper("c", cdiDevices("test.vendor/gpu=one"), func(c *runtimeapi.ContainerConfig) {
		c.Annotations = map[string]string{"cdi.k8s.io/plugin_1": "test.vendor/gpu=two"}
	}))
	got := strings.Fields(c.Sh(script))
	if want := "seven/two 0 4444 crw-rw-rw- driverhooked 3"; strings.Join(got, " ") != want && harness.Handler == "" {
		t.Errorf("with devices: %q, want %q", got, want)
	}
	groups := func() []int64 { return c.Status().GetUser().GetLinux().GetSupplementalGroups() }
	if got := groups(); !slices.Equal(got, []int64{0, 4444}) {
		t.Errorf("groups in the status: %d", got)
	}
	plain := pod.Run(d.Sleeper("plain"))
	if got := plain.Sh("echo $DRIVER$GPU; id -G; ls /dev/gpu* /usr/lib/gpu 2>/dev/null; true"); strings.TrimSpace(got) != "0" {
		t.Errorf("without devices: %q", got)
	}
	d.Restart()
	if got := c.Sh("echo $GPU; cat /from-the-hook"); got != "two\nhooked" {
		t.Errorf("after a restart: %q", got)
	}
	if got := groups(); !slices.Equal(got, []int64{0, 4444}) {
		t.Errorf("groups in the status after a restart: %d", got)
	}
	c.Stop(10 * time.Second)
	c.Remove()
}

// What cannot be given is refused with its name, and nothing is made.
func TestCDIRefused(t *testing.T) {
	d, specs := startCDI(t)
	d.Write(filepath.Join(specs, "bad.yaml"), "cdiVersion: 1.1.0\nkind: test.vendor/bad\ndevices: 7\n")
	d.Write(filepath.Join(specs, "net.json"), `{"cdiVersion": "1.1.0", "kind": "test.vendor/net", "devices": [
		{"name": "nic", "containerEdits": {"netDevices": [{"hostInterfaceName": "eth7", "name": "x"}]}},
		{"name": "gone", "containerEdits": {"deviceNodes": [{"path": "/dev/no-such-device"}]}}]}`)
	pod := d.RunPod(d.Pod("refused"))
	pod.Create(d.Sleeper("first"))
	for _, tc := range []struct {
		device string
		code   codes.Code
		says   []string
	}{
		{"test.vendor/gpu=none", codes.InvalidArgument, []string{"test.vendor/gpu=none", specs}},
		{"test.vendor/bad=one", codes.InvalidArgument, []string{"test.vendor/bad=one", "bad.yaml"}},
		{"not-a-name", codes.InvalidArgument, []string{"not-a-name"}},
		{"test.vendor/net=gone", codes.Internal, []string{"test.vendor/net=gone", "/dev/no-such-device"}},
		{"test.vendor/net=nic", codes.InvalidArgument, []string{"netDevices", "not supported"}},
	} {
		if harness.Handler != "" && tc.device == "test.vendor/net=nic" {
			continue // it is in config.json, for the runtime to judge
		}
		unchanged(d, func() {
			_, err := pod.TryCreate(d.Sleeper("c", cdiDevices(tc.device)))
			refused(t, tc.device, err, tc.code, tc.says...)
		})
	}
}

// Devices work in a pod with a user namespace: a mount shows the owners of the pod. What the engine cannot do there is refused.
func TestCDIDevicesInUserNamespace(t *testing.T) {
	harness.Native(t, "user namespaces")
	d, specs := startCDI(t)
	needUsers(t, d)
	dir := folder(t, d, "driver")
	hook := d.Write(filepath.Join(d.Dir, "hook.sh"), "#!/bin/sh\ncat rootfs/bin/sh > /dev/null && touch "+filepath.Join(d.Dir, "hooked")+"\n")
	if err := os.Chmod(hook, 0o755); err != nil {
		t.Fatal(err)
	}
	d.Write(filepath.Join(specs, "gpu.yaml"), fmt.Sprintf(`
cdiVersion: 1.1.0
kind: test.vendor/gpu
devices:
- name: one
  containerEdits:
    deviceNodes: [{path: /dev/gpu-null, hostPath: /dev/null, permissions: rw}]
    mounts: [{hostPath: %q, containerPath: /usr/lib/gpu, options: [ro, rbind]}]
    hooks: [{hookName: createRuntime, path: %q}]
- name: inside
  containerEdits:
    hooks: [{hookName: createContainer, path: %q}]
`, dir, hook, hook))
	pod := d.RunPod(d.Pod("cdi-users", users(300000)))
	c := pod.Run(d.Sleeper("c", cdiDevices("test.vendor/gpu=one"), likePod(pod)))
	if got := c.Sh("stat -c %u /usr/lib/gpu/file; cat /usr/lib/gpu/file; echo x > /dev/gpu-null"); got != "0\ndriver" {
		t.Errorf("in a user namespace: %q", got)
	}
	readFile(t, filepath.Join(d.Dir, "hooked"))
	_, err := pod.TryCreate(d.Sleeper("inside", cdiDevices("test.vendor/gpu=inside"), likePod(pod)))
	refused(t, "createContainer hook", err, codes.InvalidArgument, "createContainer", "user namespace")
}
