package integration_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/test/harness"
)

// TestDamagedFiles damages each file that is kept of a pod, by itself. The daemon starts, the other pod runs on, and what was damaged can be removed with
// all that it had on the host.
func TestDamagedFiles(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"emptied":  func(path string) error { return os.Truncate(path, 0) },
		"garbage":  func(path string) error { return os.WriteFile(path, []byte("\x00\xffgarbage\n{"), 0o600) },
		"a folder": func(path string) error { return errors.Join(os.Remove(path), os.MkdirAll(path+"/below", 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.Start(t)
			good := d.RunPod(d.Pod("good")).Run(d.Sleeper("c"))
			pid := good.PID()
			for n, file := range []string{"pod", "runs/container", "runs/spec", "created/container", "created/spec", "done/container", "done/spec", "done/exit"} {
				bad := d.RunPod(d.Pod("bad"))
				ids := map[string]string{"runs": bad.Run(d.Sleeper("runs")).ID, "created": bad.Create(d.Sleeper("created")).ID}
				done := bad.Run(d.Shell("done", "exit 3"))
				done.Wait(harness.Patience)
				ids["done"] = done.ID
				d.Kill()
				path := filepath.Join(d.Options().Root, "pods", bad.ID)
				if container, name, of := strings.Cut(file, "/"); of {
					path = filepath.Join(path, "containers", ids[container], name)
				} else {
					path = filepath.Join(path, file)
				}
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
				d.Start()
				if got := good.Sh("echo runs"); got != "runs" || good.PID() != pid {
					t.Errorf("%s: the other pod's container: %q, process %d, was %d", file, got, good.PID(), pid)
				}
				if n%2 == 0 {
					bad.Stop()
				}
				bad.Remove()
				d.Check()
				d.RunPod(d.Pod("bad")).Remove()
				if t.Failed() {
					return
				}
			}
		})
	}
}
