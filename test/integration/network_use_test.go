package integration_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// newPlugin is a plugin of CNI 1.1 in shell: it writes down each call, and fails a command for which there is a file.
const newPlugin = `#!/bin/sh
cat > %[1]s/stdin.$CNI_COMMAND
echo "$CNI_COMMAND $CNI_CONTAINERID" >> %[1]s/calls
[ -e %[1]s/fail.$CNI_COMMAND ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"told to fail '"$CNI_COMMAND"'"}'; exit 1; }
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"192.0.2.7/24","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
esac
`

// installPlugin puts it where the daemon looks for plugins.
func installPlugin(d *harness.Daemon) {
	d.T.Helper()
	path := d.Write(d.CNIBin+"/fake", fmt.Sprintf(newPlugin, d.Dir))
	if err := os.Chmod(path, 0o755); err != nil {
		d.T.Fatal(err)
	}
}

// fact is something that Status says when it is asked to be verbose.
func fact(d *harness.Daemon, name string) string {
	d.T.Helper()
	r, err := d.Runtime.Status(d.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		d.T.Fatal(err)
	}
	var facts map[string]string
	if err := json.Unmarshal([]byte(r.GetInfo()["config"]), &facts); err != nil {
		d.T.Fatal(err)
	}
	return facts[name]
}

func TestPodRangeMakesAConfiguration(t *testing.T) {
	d := harness.Start(t)
	installPlugin(d)
	update := func(cidr string) error {
		_, err := d.Runtime.UpdateRuntimeConfig(d.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}})
		return err
	}
	for _, bad := range []string{"10.1.0.0", "x", "10.1.0.0/24,", "10.1.0.0/24,10.1.0.0/24", "10.1.0.0/33"} {
		wantCode(t, "UpdateRuntimeConfig of "+bad, update(bad), codes.InvalidArgument)
	}
	// Without a template it changes nothing.
	wantCode(t, "UpdateRuntimeConfig", update("10.1.0.0/24"), codes.OK)
	bridged := d.RunPod(d.Pod("bridged"))
	if ip := bridged.IPs()[0]; !strings.HasPrefix(ip, d.Subnet) {
		t.Errorf("address %s, want one of the bridge", ip)
	}
	template := d.Write(d.Dir+"/template", `{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"fake","subnet":"{{.PodCIDR}}"{{range .Routes}},"{{.}}":1{{end}}}]}`)
	d.DropIn("10.toml", fmt.Sprintf("[network]\nconf_template = %q\n[runtimes.reloaded]\ntype = \"native\"\n", template))
	if err := d.Reload(); err != nil {
		t.Fatal(err)
	}
	d.Eventually(20*time.Second, "the template is taken over", func() bool { return offered(d, "reloaded") })
	wantCode(t, "UpdateRuntimeConfig", update("10.1.0.0/24, fd00:1::/64"), codes.OK)
	text := readFile(t, d.CNIConf+"/10-berth.conflist")
	if !strings.Contains(text, `"subnet":"10.1.0.0/24","0.0.0.0/0":1,"::/0":1`) {
		t.Errorf("the configuration is %s", text)
	}
	pod := d.RunPod(d.Pod("plugged"))
	if ip := pod.IPs()[0]; ip != "192.0.2.7" {
		t.Errorf("address %s, want the plugin's", ip)
	}
	if stdin := readFile(t, d.Dir+"/stdin.ADD"); !strings.Contains(stdin, `"subnet":"10.1.0.0/24"`) {
		t.Errorf("the plugin got %s", stdin)
	}
	pod.Remove()
	bridged.Remove()
}

// What CNI has besides ADD and DEL: STATUS makes the condition, CHECK is for people who look at a pod, GC is called again and again.
func TestStatusCheckAndGCOfPlugins(t *testing.T) {
	d := harness.Start(t)
	d.Stop()
	installPlugin(d)
	d.Write(d.CNIConf+"/10-fake.conflist", `{"cniVersion":"1.1.0","name":"fakenet","plugins":[{"type":"fake"}]}`)
	d.DropIn("10.toml", "[network]\ngc_interval = \"1s\"\n")
	d.Start()
	pod := d.RunPod(d.Pod("checked"))
	d.Eventually(20*time.Second, "GC is called with the pod among the valid attachments", func() bool {
		stdin, _ := os.ReadFile(d.Dir + "/stdin.GC")
		return strings.Contains(string(stdin), pod.ID)
	})
	gcs := func() int { return strings.Count(readFile(t, d.Dir+"/calls"), "GC ") }
	before := gcs()
	d.Eventually(20*time.Second, "GC is called again", func() bool { return gcs() > before })

	problem := func() string {
		t.Helper()
		r, err := d.Runtime.PodSandboxStatus(d.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.ID, Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		var info struct {
			NetworkProblem string `json:"networkProblem"`
		}
		if err := json.Unmarshal([]byte(r.GetInfo()["info"]), &info); err != nil {
			t.Fatal(err)
		}
		return info.NetworkProblem
	}
	if p := problem(); p != "" || !strings.Contains(readFile(t, d.Dir+"/calls"), "CHECK "+pod.ID) {
		t.Errorf("problem %q, calls %s", p, readFile(t, d.Dir+"/calls"))
	}
	fail := d.Write(d.Dir+"/fail.CHECK", "")
	if p := problem(); !strings.Contains(p, "told to fail CHECK") {
		t.Errorf("problem %q, want the plugin's words", p)
	}
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}

	fail = d.Write(d.Dir+"/fail.STATUS", "")
	d.Eventually(30*time.Second, "the network is not ready", func() bool {
		c := d.Status()["NetworkReady"]
		return !c.GetStatus() && strings.Contains(c.GetMessage(), "told to fail STATUS")
	})
	if err := os.Remove(fail); err != nil {
		t.Fatal(err)
	}
	d.Eventually(30*time.Second, "the network is ready", func() bool { return d.Status()["NetworkReady"].GetStatus() })
	pod.Remove()
}
