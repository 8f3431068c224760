package uml_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/harness"
)

func TestMain(m *testing.M) {
	if text, err := os.ReadFile("/proc/cpuinfo"); err != nil || !strings.Contains(string(text), "User Mode Linux") {
		fmt.Println("this package runs in User-Mode Linux only: make test-uml")
		os.Exit(1)
	}
	harness.Main(m)
}

// What the tests of this package rely on.
func TestTheGuestIsWhatItShouldBe(t *testing.T) {
	for path, want := range map[string]string{
		"/sys/fs/cgroup/cgroup.controllers":                "cpu io memory pids",
		"/sys/module/apparmor/parameters/enabled":          "Y",
		"/proc/sys/kernel/cap_last_cap":                    "40",
		"/proc/self/oom_score_adj":                         "0",
		"/sys/kernel/security/apparmor/.access":            "",
		"/sys/kernel/security/apparmor/features/caps/mask": "sys_resource",
	} {
		text, err := os.ReadFile(path)
		if want != "" && (err != nil || !strings.Contains(strings.Join(strings.Fields(string(text)), " "), want)) {
			t.Errorf("%s is %q, %v, want %q in it", path, text, err, want)
		}
	}
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		t.Fatal(err)
	}
	if got := uint64(data[0].Effective) | uint64(data[1].Effective)<<32; got != 1<<41-1 {
		t.Errorf("effective capabilities %x, want all", got)
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("the machine's root file system can be written to: %v", err)
	}
}

// hostMounts is the guest's mount table.
func hostMounts(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
