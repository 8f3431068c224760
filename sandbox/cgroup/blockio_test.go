package cgroup

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// diskNumbers are those of a block device that this kernel has.
func diskNumbers(t *testing.T) (major, minor int64, text string) {
	t.Helper()
	entries, err := os.ReadDir("/sys/block")
	if err != nil || len(entries) == 0 {
		t.Skip("this kernel has no block device")
	}
	numbers, err := os.ReadFile("/sys/block/" + entries[0].Name() + "/dev")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat("/dev/"+entries[0].Name(), &st); err != nil {
		t.Skip("no node of the block device: ", err)
	}
	return int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev))), strings.TrimSpace(string(numbers))
}

func TestBlockIO(t *testing.T) {
	d := open(t)
	name := "blkio"
	if d.V2() {
		name = "io"
	}
	h, err := d.controller(name)
	if err != nil {
		t.Skipf("the kernel has no %s controller: %v", name, err)
	}
	major, minor, numbers := diskNumbers(t)
	throttle := func(rate uint64) []specs.LinuxThrottleDevice {
		one := specs.LinuxThrottleDevice{Rate: rate}
		one.Major, one.Minor = major, minor
		return []specs.LinuxThrottleDevice{one}
	}
	p := d.Tree() + "/pod/leaf"
	create(t, d, p, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(1 << 20), ThrottleWriteBpsDevice: throttle(2 << 20),
		ThrottleReadIOPSDevice: throttle(300), ThrottleWriteIOPSDevice: throttle(400)}})
	want := map[string]string{"blkio.throttle.read_bps_device": numbers + " 1048576", "blkio.throttle.write_bps_device": numbers + " 2097152",
		"blkio.throttle.read_iops_device": numbers + " 300", "blkio.throttle.write_iops_device": numbers + " 400"}
	if d.V2() {
		want = map[string]string{"io.max": numbers + " rbps=1048576 wbps=2097152 riops=300 wiops=400"}
	}
	for file, value := range want {
		if got, err := h.read(relative(p), file); err != nil || strings.TrimSpace(got) != value {
			t.Errorf("%s = %q, %v, want %q", file, got, err, value)
		}
	}

	// A weight is there, or the kernel has no scheduler for it, and that is said.
	err = d.limitBlockIO(relative(p), &specs.LinuxBlockIO{Weight: ptr(uint16(200))})
	switch {
	case errors.Is(err, ErrNotSupported):
		t.Log(err)
	case err != nil:
		t.Error(err)
	default:
		for file, value := range map[string]string{"blkio.bfq.weight": "200", "io.bfq.weight": "default 200"} {
			if got, err := h.read(relative(p), file); err == nil && strings.TrimSpace(got) != value {
				t.Errorf("%s = %q, want %q", file, got, value)
			}
		}
	}
	if err := d.limitBlockIO(relative(p), &specs.LinuxBlockIO{LeafWeight: ptr(uint16(200))}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("weight of a leaf: %v", err)
	}
}
