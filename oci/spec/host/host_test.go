package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRead(t *testing.T) {
	h, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	name, _ := os.Hostname()
	if h.Arch != runtime.GOARCH || h.Hostname != name || h.Kernel[0] < 4 {
		t.Errorf("host %s %s %v", h.Arch, h.Hostname, h.Kernel)
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || h.RlimitHard["RLIMIT_NOFILE"] != l.Max || len(h.RlimitHard) != 16 {
		t.Errorf("limits %v, want %d files", h.RlimitHard, l.Max)
	}
	if !slices.ContainsFunc(h.Devices, func(d specs.LinuxDevice) bool {
		return d.Path == "/dev/null" && d.Type == "c" && d.Major == 1 && d.Minor == 3 && d.FileMode.Perm() != 0
	}) {
		t.Errorf("no /dev/null among %d devices", len(h.Devices))
	}
	if slices.ContainsFunc(h.Devices, func(d specs.LinuxDevice) bool {
		return strings.HasPrefix(d.Path, "/dev/pts/") || d.Path == "/dev/console" || d.Type == "p"
	}) {
		t.Errorf("devices %v", h.Devices)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(status), "Seccomp:") && !h.Seccomp {
		t.Error("no seccomp")
	}
	if os.Geteuid() == 0 && !slices.Contains(h.Capabilities, "CAP_CHOWN") {
		t.Errorf("capabilities %v", h.Capabilities)
	}
}

func TestDevices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("making device nodes needs root")
	}
	dir := t.TempDir()
	real := filepath.Join(dir, "real")
	for _, d := range []string{real, filepath.Join(real, "sub"), filepath.Join(real, "pts")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Umask(unix.Umask(0o022))
	for name, mode := range map[string]uint32{"a": unix.S_IFCHR | 0o640, "sub/b": unix.S_IFBLK | 0o600, "pts/c": unix.S_IFCHR, "console": unix.S_IFCHR, "fifo": unix.S_IFIFO} {
		if err := unix.Mknod(filepath.Join(real, name), mode, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(real, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"link": "real", "real/alias": "a", "one": "real/a", "loop": "loop", "gone": "nothing"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"real": "real/a real/sub/b", "link": "link/a link/sub/b", "one": "one", "real/a": "real/a", "real/fifo": "real/fifo", "real/file": "",
		"gone": "not there", "real/file/x": "error", "loop": "error",
	} {
		found, err := Devices(filepath.Join(dir, path))
		var got []string
		for _, d := range found {
			got = append(got, strings.TrimPrefix(d.Path, dir+"/"))
		}
		switch {
		case want == "not there":
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Devices(%s) = %v, %v", path, got, err)
			}
		case (want == "error") != (err != nil):
			t.Errorf("Devices(%s) = %v, %v", path, got, err)
		case err == nil && strings.Join(got, " ") != want:
			t.Errorf("Devices(%s) = %v, want %s", path, got, want)
		}
	}
	d, _ := Devices(filepath.Join(real, "a"))
	if d[0].Type != "c" || d[0].Major != 1 || d[0].Minor != 3 || *d[0].FileMode != 0o640 {
		t.Errorf("device %+v", d[0])
	}
	var request []*runtimeapi.Device
	for _, p := range []string{"one", "gone", "real/file/x", "loop", "real/file"} {
		request = append(request, &runtimeapi.Device{HostPath: filepath.Join(dir, p)})
	}
	got, err := Requested(&runtimeapi.ContainerConfig{Devices: request})
	if err != nil || len(got[request[0].HostPath]) != 1 {
		t.Errorf("Requested = %v, %v", got, err)
	}
	for _, r := range request[1:] {
		if len(got[r.HostPath]) > 0 {
			t.Errorf("%s is a device: %v", r.HostPath, got[r.HostPath])
		}
	}
}
