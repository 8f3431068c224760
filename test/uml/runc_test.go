package uml_test

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// Another runtime gets the same profiles and limits.
func TestRunc(t *testing.T) {
	program, err := exec.LookPath("runc")
	if err != nil {
		t.Fatal(err)
	}
	loadProfile(t, noData)
	d := harness.Start(t, harness.WithConfig("[runtime]\ndefault = \"runc\"\n\n[runtimes.runc]\ntype = \"oci\"\npath = \""+program+"\"\n"))
	pod := d.RunPod(d.Pod("runc"))
	c := pod.Run(d.Sleeper("c", harness.Resources(&resources{
		CpuShares: 512, CpuPeriod: 50000, CpuQuota: 25000, MemoryLimitInBytes: 64 << 20, Unified: map[string]string{"memory.high": "50331648"},
	})))
	dir := cgroupFolder(c)
	for file, want := range map[string]string{"cpu.max": "25000 50000", "memory.max": "67108864", "memory.high": "50331648", "memory.swap.max": "0"} {
		if got := read(t, filepath.Join(dir, file)); got != want {
			t.Errorf("%s = %q, want %q", file, got, want)
		}
	}
	for _, script := range []string{first, own} {
		if got := c.Sh(script); got != isDefault {
			t.Errorf("%q says %q, want %q", script, got, isDefault)
		}
	}
	local := pod.Run(d.Sleeper("local", appArmor(localhost("berth test no data"))))
	if r := local.Exec("sh", "-c", "echo 1 >/tmp/x && echo 1 >/data/x"); r.Code == 0 {
		t.Error("the exec wrote where its profile forbids it")
	}
	eater := pod.Run(d.Container("eater", []string{"probe", "eat", "200"}, harness.Resources(&resources{MemoryLimitInBytes: 32 << 20})))
	if s := eater.Wait(30 * time.Second); s.ExitCode != 137 || s.Reason != "OOMKilled" {
		t.Errorf("code %d, reason %q, want 137 OOMKilled", s.ExitCode, s.Reason)
	}
}
