package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

func podAnnotation(key, value string) harness.PodOption {
	return func(c *runtimeapi.PodSandboxConfig) {
		if c.Annotations == nil {
			c.Annotations = map[string]string{}
		}
		c.Annotations[key] = value
	}
}

// disk is a block device of the host that can be throttled.
func disk(t *testing.T) (path, numbers string) {
	t.Helper()
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := "/dev/" + e.Name()
		var st unix.Stat_t
		if !strings.HasPrefix(e.Name(), "ram") && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK {
			return path, fmt.Sprintf("%d:%d", unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev)))
		}
	}
	t.Skip("this kernel has no block device")
	return "", ""
}

// A class's throttles are in the container's cgroup, which the kernel shows.
func TestBlockIOClasses(t *testing.T) {
	device, numbers := disk(t)
	classes := filepath.Join(t.TempDir(), "classes.yaml")
	d := harness.Start(t, harness.WithConfig(fmt.Sprintf("[blockio]\nclasses = %q\n", classes)))
	d.Write(classes, fmt.Sprintf("classes:\n  slow:\n  - devices: [%q]\n    throttleReadBps: 7M\n    throttleWriteIOPS: 900\n", device))
	pod := d.RunPod(d.Pod("blockio", podAnnotation("blockio.resources.beta.kubernetes.io/container.slow", "slow")))
	c := pod.Run(d.Container("slow", []string{"sleep", "3600"}))
	plain := pod.Run(d.Container("plain", []string{"sleep", "3600"}))
	read := func(c *harness.Container) string {
		if isUnified() {
			return readFile(t, cgroupFile(t, cgroupOf(c, "io"), "", "", "io.max"))
		}
		at := cgroupOf(c, "blkio")
		return readFile(t, cgroupFile(t, at, "blkio", "blkio.throttle.read_bps_device", "")) + " " +
			readFile(t, cgroupFile(t, at, "blkio", "blkio.throttle.write_iops_device", ""))
	}
	want := numbers + " 7000000 " + numbers + " 900"
	if isUnified() {
		want = numbers + " rbps=7000000 wbps=max riops=max wiops=900"
	}
	if got := read(c); got != want {
		t.Errorf("limits %q, want %q", got, want)
	}
	if got := strings.TrimSpace(read(plain)); got != "" {
		t.Errorf("a container without a class has the limits %q", got)
	}

	// What cannot be had is refused, and nothing is made.
	other := d.RunPod(d.Pod("other", podAnnotation("blockio.resources.beta.kubernetes.io/pod", "fast")))
	unchanged(d, func() {
		_, err := other.TryCreate(d.Sleeper("c"))
		refused(t, "unknown class", err, codes.InvalidArgument, "fast", classes, "slow")
	})
}

// Classes of service need hardware and a kernel that have them.
func TestClassOfServiceIsRefused(t *testing.T) {
	if _, err := os.Stat("/sys/fs/resctrl/schemata"); err == nil {
		t.Skip("this kernel has resctrl")
	}
	d := harness.Start(t)
	pod := d.RunPod(d.Pod("rdt", podAnnotation("rdt.resources.beta.kubernetes.io/pod", "gold")))
	unchanged(d, func() {
		_, err := pod.TryCreate(d.Sleeper("c"))
		refused(t, "class of service", err, codes.InvalidArgument, "gold", "not supported by this kernel")
	})
}
