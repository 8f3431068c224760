package integration_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// berth runs the command line for people against a test's daemon, and returns what it prints.
func berth(d *harness.Daemon, args ...string) string {
	d.T.Helper()
	cmd := exec.Command(filepath.Join(d.Options().Bin, "berth"), append([]string{"--socket", d.Options().Socket}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.T.Errorf("berth %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestCommandLine(t *testing.T) {
	d := harness.Start(t)
	wants := func(out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in\n%s", w, out)
			}
		}
	}
	base := harness.Base(t)
	wants(berth(d, "status"), "RuntimeReady", "NetworkReady", d.Options().Root)
	wants(berth(d, "pull", base.Ref), base.ImageID)
	if got := berth(d, "pull", "-q", base.Ref); got != base.ImageID+"\n" {
		t.Errorf("pull -q prints %q", got)
	}
	wants(berth(d, "images"), "test/base", base.ImageID[7:19])
	pod := d.RunPod(d.Pod("shown"))
	pod.Run(d.Shell("talker", "echo out; echo err >&2; sleep 1000")).WaitOutput("err")
	done := pod.Run(d.Shell("done", "exit 3"))
	done.Wait(5 * time.Second)
	wants(berth(d, "pods"), "shown", pod.IPs()[0])
	wants(berth(d, "ps"), "talker", "Running")
	if strings.Contains(berth(d, "ps"), "done") {
		t.Error("ps lists an exited container")
	}
	wants(berth(d, "ps", "-a"), "talker", "done", "Exited")
	for _, name := range []string{"talker", "shown/talker"} {
		wants(berth(d, "logs", name), "out\n", "err\n")
	}
	if got := berth(d, "logs", "-n", "1", "talker"); strings.Count(got, "\n") != 1 {
		t.Errorf("logs -n 1 prints %q", got)
	}
	for _, list := range []string{"status", "images", "pods", "ps"} {
		var v any
		if err := json.Unmarshal([]byte(berth(d, list, "-o", "json")), &v); err != nil {
			t.Errorf("%s -o json: %v", list, err)
		}
	}
	d.Stop()
	out, err := exec.Command(filepath.Join(d.Options().Bin, "berth"), "--socket", d.Options().Socket, "pods").CombinedOutput()
	if err == nil || !strings.Contains(string(out), d.Options().Socket) {
		t.Errorf("without a daemon: %v, %s", err, out)
	}
	d.Start()
}
