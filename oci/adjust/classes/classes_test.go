package classes

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/oci/adjust"
	"github.com/berthd/berth/oci/spec"
)

func container(annotations ...map[string]string) *adjust.Container {
	c := &adjust.Container{Pod: &runtimeapi.PodSandboxConfig{}, Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "web"}},
		Spec: &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}}
	if len(annotations) > 0 {
		c.Pod.Annotations = annotations[0]
	}
	if len(annotations) > 1 {
		c.Config.Annotations = annotations[1]
	}
	return c
}

// The container's own annotation comes first, then the pod's for the container, then the pod's for all.
func TestAnnotations(t *testing.T) {
	for _, k := range []struct {
		kind
		name, own string
	}{{blockIOKind, "blockio", "io.kubernetes.cri.blockio-class"}, {serviceKind, "rdt", "io.kubernetes.cri.rdt-class"}} {
		base := k.name + ".resources.beta.kubernetes.io/"
		pod := map[string]string{base + "pod": "all", base + "container.other": "other's"}
		for _, tc := range []struct {
			c     *adjust.Container
			class string
		}{
			{container(), ""},
			{container(pod), "all"},
			{container(map[string]string{base + "pod": "all", base + "container.web": "its own"}), "its own"},
			{container(pod, map[string]string{k.own: "said by itself"}), "said by itself"},
		} {
			if class, field := k.class(tc.c); class != tc.class || (field == "") != (class == "") {
				t.Errorf("%s: class %q of %q, want %q", k.name, class, field, tc.class)
			}
		}
	}
}

func write(t *testing.T, text string) BlockIO {
	t.Helper()
	path := filepath.Join(t.TempDir(), "classes.yaml")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return BlockIO(path)
}

func TestBlockIO(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root: device nodes")
	}
	dir := t.TempDir()
	for i, name := range []string{"disk0", "disk1"} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFBLK|0o600, int(unix.Mkdev(240, uint32(i)))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(dir+"/disk-file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f := write(t, fmt.Sprintf(`
classes:
  slow:
  - weight: 80
  - devices: [%[1]s/disk*]
    weight: 50
    throttleReadBps: 60M
    throttleWriteIOPS: 1000
  - Devices: [%[1]s/disk1, %[1]s/none]
    ThrottleReadBps: 1Mi
  plain: []
`, dir))
	c := container(map[string]string{"blockio.resources.beta.kubernetes.io/pod": "slow"})
	if err := f.Adjust(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	weight, less := uint16(80), uint16(50)
	throttle := func(minor int64, rate uint64) specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 240, minor
		return d
	}
	heavy := func(minor int64) specs.LinuxWeightDevice {
		d := specs.LinuxWeightDevice{Weight: &less}
		d.Major, d.Minor = 240, minor
		return d
	}
	want := &specs.LinuxBlockIO{Weight: &weight, WeightDevice: []specs.LinuxWeightDevice{heavy(0), heavy(1)},
		ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{throttle(0, 60e6), throttle(1, 1<<20)},
		ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttle(0, 1000), throttle(1, 1000)}}
	equal := cmp.Comparer(func(a, b specs.LinuxThrottleDevice) bool { return a == b })
	same := cmp.Comparer(func(a, b specs.LinuxWeightDevice) bool {
		return a.Major == b.Major && a.Minor == b.Minor && *a.Weight == *b.Weight
	})
	if diff := cmp.Diff(want, c.Spec.Linux.Resources.BlockIO, equal, same); diff != "" {
		t.Errorf("block I/O (-want +got):\n%s", diff)
	}
	plain := container()
	if err := BlockIO("/no/such/file").Adjust(t.Context(), plain); err != nil || plain.Spec.Linux.Resources.BlockIO != nil {
		t.Errorf("a container without a class: %v", err)
	}
}

func TestBadBlockIO(t *testing.T) {
	asks := func() *adjust.Container {
		return container(map[string]string{"blockio.resources.beta.kubernetes.io/pod": "a"})
	}
	for _, tc := range []struct{ name, text, says string }{
		{"unknown class", "classes: {b: [], c: []}", "b, c"},
		{"no YAML", "classes: [", "yaml"},
		{"unknown key", "classes: {a: [{wait: 3}]}", `"wait"`},
		{"weight", "classes: {a: [{weight: 3}]}", "weight 3 is not 10 to 1000"},
		{"rate", "classes: {a: [{devices: [/dev/x], throttleReadBps: fast}]}", `"fast" is not a number`},
		{"unit", "classes: {a: [{devices: [/dev/x], throttleReadBps: 3X}]}", `"3X" is not a number`},
		{"too much", "classes: {a: [{devices: [/dev/x], throttleReadBps: 99999999999T}]}", "is not a number"},
		{"throttle of nothing", "classes: {a: [{throttleReadBps: 3}]}", "needs devices"},
		{"relative device", "classes: {a: [{devices: [sda]}]}", `"sda" is not an absolute path`},
		{"pattern", "classes: {a: [{devices: ['/dev/[']}]}", `"/dev/["`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := write(t, tc.text)
			err := f.Adjust(t.Context(), asks())
			if err == nil || !strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), string(f)) {
				t.Errorf("error %v, want one that names the file and says %q", err, tc.says)
			}
		})
	}
	invalid := (*spec.InvalidError)(nil)
	if err := BlockIO("").Adjust(t.Context(), asks()); !errors.As(err, &invalid) || invalid.Value != "a" {
		t.Errorf("without a file: %v", err)
	}
	if err := BlockIO("/no/such/file").Adjust(t.Context(), asks()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with a file that is not there: %v", err)
	}
}

func TestService(t *testing.T) {
	dir := t.TempDir()
	asks := func(class string) *adjust.Container {
		return container(map[string]string{"rdt.resources.beta.kubernetes.io/container.web": class})
	}
	invalid := (*spec.InvalidError)(nil)
	if err := Service(dir).Adjust(t.Context(), asks("gold")); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "not supported by this kernel") {
		t.Errorf("without resctrl: %v", err)
	}
	device := container()
	device.Spec.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "of-a-device"}
	if err := Service(dir).Adjust(t.Context(), device); !errors.As(err, &invalid) || !strings.Contains(err.Error(), "of-a-device") {
		t.Errorf("a device's class without resctrl: %v", err)
	}
	if err := errors.Join(os.WriteFile(dir+"/schemata", nil, 0o644), os.Mkdir(dir+"/gold", 0o755), os.WriteFile(dir+"/gold/tasks", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	c := asks("gold")
	if err := Service(dir).Adjust(t.Context(), c); err != nil || c.Spec.Linux.IntelRdt == nil || c.Spec.Linux.IntelRdt.ClosID != "gold" {
		t.Errorf("class of service: %+v, %v", c.Spec.Linux.IntelRdt, err)
	}
	for _, class := range []string{"silver", "../gold", "info", "."} {
		if err := Service(dir).Adjust(t.Context(), asks(class)); !errors.As(err, &invalid) || invalid.Value != class {
			t.Errorf("class %q: %v", class, err)
		}
	}
	if err := Service(dir).Join("gold", 4711); err != nil {
		t.Error(err)
	}
	if text, _ := os.ReadFile(dir + "/gold/tasks"); string(text) != "4711" {
		t.Errorf("tasks = %q", text)
	}
	if err := Service(dir).Join("../gold", 1); err == nil {
		t.Error("joined by a path")
	}
}
