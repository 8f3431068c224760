package uml_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/harness"
)

// A kernel without NAT by nftables: the daemon says so, and pods talk to each other and to the host all the same.
func TestNetworkWithoutNAT(t *testing.T) {
	d := harness.Start(t)
	page := d.RunPod(d.Pod("server"))
	page.Run(d.Container("c", []string{"probe", "serve", ":80", "a page"}))
	c := d.RunPod(d.Pod("client")).Run(d.Sleeper("c"))
	for _, ip := range page.IPs() {
		c.Sh("ping -c 1 -w 10 " + ip)
		address := "http://" + net.JoinHostPort(ip, "80")
		d.Eventually(harness.Timeout, "the server listens", func() bool { return c.Exec("probe", "get", address).Code == 0 })
		if got := c.Sh("probe get " + address); !strings.HasPrefix(got, "a page\n") {
			t.Errorf("another pod gets %q from %s", got, address)
		}
		client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Get(address)
		if err != nil {
			t.Errorf("the host gets nothing from %s: %v", address, err)
			continue
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || !strings.HasPrefix(string(body), "a page\n") {
			t.Errorf("the host gets %q, %v from %s", body, err, address)
		}
	}
	condition := d.Status()["NoAddressTranslation"]
	if condition == nil || !condition.Status || !d.Status()["NetworkReady"].GetStatus() {
		t.Errorf("conditions = %v, want NetworkReady and NoAddressTranslation", d.Status())
	}
	_, err := d.TryRunPod(d.Pod("ports", harness.HostPort(runtimeapi.Protocol_TCP, 8080, 80, "")))
	if err == nil || !strings.Contains(err.Error(), "kernel has no nftables NAT") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a pod with a host port: %v, want one line with the reason", err)
	}
}
